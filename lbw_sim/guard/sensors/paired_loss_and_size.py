"""The signals of `paired_loss`, and beside them the learning rate that the initial weights can take."""

from __future__ import annotations

from lbw_sim.guard.sensors.paired_loss import PairedLoss
from lbw_sim.guard.sensors.robust_loss import RobustLossState
from lbw_sim.params import meta, part, sensor
from lbw_sim.values import Signals, Telemetry


@sensor(
    version=1,
    uses=meta(PairedLoss).uses,
    emits=(*meta(PairedLoss).emits, "full_step_lr"),
    extra=(*meta(PairedLoss).extra, "full_step_lr"),
)
class PairedLossAndSize:
    """What `paired_loss` makes of loss and paired probe, with channel `full_step_lr` passed on as it came.

    >>> sensor = PairedLossAndSize()
    >>> sensor.step(sensor.init(), Telemetry(step=0, loss=2.5, extra=(-0.25, 0.05)))[1].full_step_lr
    0.05
    """

    inner: PairedLoss = part(PairedLoss, doc="the sensor of loss and paired probe")

    def init(self) -> RobustLossState:
        """The inner sensor's start."""
        return self.inner.init()

    def step(self, state: RobustLossState, telemetry: Telemetry) -> tuple[RobustLossState, Signals]:
        """Ask the inner sensor, add the size."""
        state, signals = self.inner.step(state, telemetry)
        return state, signals._replace(full_step_lr=telemetry.extra[1])
