"""The loss signals of `robust_loss`, and beside them the loss of a canary batch."""

from __future__ import annotations

from lbw_sim.guard.sensors.robust_loss import RobustLoss, RobustLossState
from lbw_sim.params import meta, part, sensor
from lbw_sim.values import Signals, Telemetry


@sensor(
    version=2,
    uses=meta(RobustLoss).uses,
    emits=(*meta(RobustLoss).emits, "canary_loss"),
    extra=("canary_loss",),
)
class CanaryLoss:
    """What `robust_loss` makes of the training loss, with channel `canary_loss` passed on as it came.

    The channel is nan on the steps on which the canary was not evaluated: most of them.

    >>> sensor = CanaryLoss()
    >>> sensor.step(sensor.init(), Telemetry(step=0, loss=2.5, extra=(2.25,)))[1].canary_loss
    2.25
    """

    inner: RobustLoss = part(RobustLoss, doc="the sensor of the training loss")

    def init(self) -> RobustLossState:
        """The inner sensor's start."""
        return self.inner.init()

    def step(self, state: RobustLossState, telemetry: Telemetry) -> tuple[RobustLossState, Signals]:
        """Ask the inner sensor, add the canary."""
        state, signals = self.inner.step(state, telemetry)
        return state, signals._replace(canary_loss=telemetry.extra[0])
