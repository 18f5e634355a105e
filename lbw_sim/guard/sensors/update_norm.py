"""The update norm as it came, for rules that are nothing without it."""

from __future__ import annotations

from lbw_sim.guard.sensors.raw import RawState
from lbw_sim.params import sensor
from lbw_sim.values import Signals, Telemetry


@sensor(version=1, needs=("update_norm",), uses=("nonfinite",), emits=("update_norm", "nonfinite"))
class UpdateNorm:
    """Passes the update norm through and refuses, unlike `raw`, a run in which it was not measured.

    It is always that of the step before: the update follows the decision.

    >>> UpdateNorm().step(UpdateNorm().init(), Telemetry(step=0, update_norm=0.5))[1].update_norm
    0.5
    """

    def init(self) -> RawState:
        """Empty."""
        return RawState()

    def step(self, state: RawState, telemetry: Telemetry) -> tuple[RawState, Signals]:
        """Copy."""
        return state, Signals(update_norm=telemetry.update_norm, nonfinite=telemetry.nonfinite)
