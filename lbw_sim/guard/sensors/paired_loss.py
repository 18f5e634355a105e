"""The loss signals of `robust_loss`, and beside them the gain of a paired probe."""

from __future__ import annotations

from lbw_sim.guard.sensors.robust_loss import RobustLoss, RobustLossState
from lbw_sim.params import meta, part, sensor
from lbw_sim.values import Signals, Telemetry


@sensor(
    version=2,
    uses=meta(RobustLoss).uses,
    emits=(*meta(RobustLoss).emits, "probe_gain"),
    extra=("probe_gain",),
)
class PairedLoss:
    """What `robust_loss` makes of the training loss, with channel `probe_gain` passed on as it came.

    The channel is nan on the steps on which no batch was evaluated a second time.

    >>> sensor = PairedLoss()
    >>> sensor.step(sensor.init(), Telemetry(step=0, loss=2.5, extra=(-0.25,)))[1].probe_gain
    -0.25
    """

    inner: RobustLoss = part(RobustLoss, doc="the sensor of the training loss")

    def init(self) -> RobustLossState:
        """The inner sensor's start."""
        return self.inner.init()

    def step(self, state: RobustLossState, telemetry: Telemetry) -> tuple[RobustLossState, Signals]:
        """Ask the inner sensor, add the gain."""
        state, signals = self.inner.step(state, telemetry)
        return state, signals._replace(probe_gain=telemetry.extra[0])
