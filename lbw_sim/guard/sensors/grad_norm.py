"""The gradient norm as it came, for rules that are nothing without it."""

from __future__ import annotations

from lbw_sim.guard.sensors.raw import RawState
from lbw_sim.params import sensor
from lbw_sim.values import Signals, Telemetry


@sensor(version=1, needs=("grad_norm",), uses=("nonfinite",), emits=("grad_norm", "nonfinite"))
class GradNorm:
    """Passes the gradient norm through and refuses, unlike `raw`, a run in which it was not measured.

    >>> GradNorm().step(GradNorm().init(), Telemetry(step=0, grad_norm=0.5))[1].grad_norm
    0.5
    """

    def init(self) -> RawState:
        """Empty."""
        return RawState()

    def step(self, state: RawState, telemetry: Telemetry) -> tuple[RawState, Signals]:
        """Copy."""
        return state, Signals(grad_norm=telemetry.grad_norm, nonfinite=telemetry.nonfinite)
