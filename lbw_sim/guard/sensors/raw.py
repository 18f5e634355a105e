"""The null sensor: the telemetry as it came."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import sensor
from lbw_sim.values import Signals, Telemetry


class RawState(NamedTuple):
    """Nothing to remember."""


@sensor(version=1, needs=(), uses=("loss", "lr", "grad_norm", "update_norm", "nonfinite"),
        emits=("loss", "lr", "grad_norm", "update_norm", "nonfinite"))  # fmt: skip
class Raw:
    """Passes every channel through and derives nothing: for analyzers that keep their own history, and for `never`.

    >>> state, signals = Raw().step(Raw().init(), Telemetry(step=0, loss=2.5))
    >>> signals.loss
    2.5
    """

    def init(self) -> RawState:
        """Empty."""
        return RawState()

    def step(self, state: RawState, telemetry: Telemetry) -> tuple[RawState, Signals]:
        """Copy."""
        return state, Signals(
            loss=telemetry.loss,
            lr=telemetry.lr,
            grad_norm=telemetry.grad_norm,
            update_norm=telemetry.update_norm,
            nonfinite=telemetry.nonfinite,
        )
