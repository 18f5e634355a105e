"""The null analyzer: every run is always stable. Stands in every results table."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import analyzer
from lbw_sim.values import Assessment, Regime, Signals


class NeverState(NamedTuple):
    """Nothing to remember."""


@analyzer(version=1)
class Never:
    """Never raises an alarm: recall 0, no false alarm. What any detector has to beat.

    >>> Never().step(Never().init(), Signals(loss=1e9))[1].regime == Regime.STABLE
    True
    """

    def init(self) -> NeverState:
        """Empty."""
        return NeverState()

    def step(self, state: NeverState, signals: Signals) -> tuple[NeverState, Assessment]:
        """Stable, whatever comes."""
        return state, Assessment(int(Regime.STABLE))
