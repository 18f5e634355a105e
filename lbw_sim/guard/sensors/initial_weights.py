"""The learning rate beside the size of the weights that training began with: all that a static cap looks at."""

from __future__ import annotations

from lbw_sim.guard.sensors.raw import RawState
from lbw_sim.params import sensor
from lbw_sim.values import Signals, Telemetry


@sensor(
    version=1,
    needs=("lr",),
    uses=("nonfinite",),
    emits=("lr", "nonfinite", "initial_weight_rms"),
    extra=("initial_weight_rms",),
)
class InitialWeights:
    """Passes the learning rate on, and channel `initial_weight_rms`, which probe `InitialWeightRms` delivers.

    >>> sensor = InitialWeights()
    >>> sensor.step(sensor.init(), Telemetry(step=0, lr=0.1, extra=(0.02,)))[1].initial_weight_rms
    0.02
    """

    def init(self) -> RawState:
        """Empty."""
        return RawState()

    def step(self, state: RawState, telemetry: Telemetry) -> tuple[RawState, Signals]:
        """Copy."""
        return state, Signals(lr=telemetry.lr, nonfinite=telemetry.nonfinite, initial_weight_rms=telemetry.extra[0])
