"""A wrapper: believes another analyzer only when it insists."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbw_sim.guard.analyzers.threshold import Threshold
from lbw_sim.guard.guard import Analyzer
from lbw_sim.params import analyzer, param, part
from lbw_sim.values import Assessment, Regime, Signals, is_unsafe


class DebounceState(NamedTuple):
    """The inner state and for how many steps it has called the run unsafe."""

    inner: Any
    insisted: int


@analyzer(version=1)
class Debounce:
    """Passes an unsafe regime on once the inner analyzer has named one for so many steps running.

    A regime of non-finite values is passed on at once. The inner analyzer keeps its own memory either way.

    >>> rule = Debounce(inner=Threshold(limit_sd=3.0, warmup_steps=0, hold_steps=1), steps=2)
    >>> state, first = rule.step(rule.init(), Signals(loss_z=5.0))
    >>> state, second = rule.step(state, Signals(loss_z=5.0))
    >>> Regime(first.regime).name, Regime(second.regime).name
    ('STABLE', 'SPIKE')
    """

    inner: Analyzer = part(Threshold, doc="the analyzer that is wrapped")
    steps: int = param(3, low=1, high=1_000, unit="steps", doc="how long it has to insist", log=True)

    def init(self) -> DebounceState:
        """The inner analyzer's start."""
        return DebounceState(self.inner.init(), 0)

    def step(self, state: DebounceState, signals: Signals) -> tuple[DebounceState, Assessment]:
        """Ask the inner analyzer, count, and pass on or hold back."""
        inner, assessment = self.inner.step(state.inner, signals)
        regime = assessment.regime
        unsafe = is_unsafe(regime)
        insisted = min(state.insisted + 1, self.steps) if unsafe else 0
        if unsafe and insisted < self.steps and regime != Regime.NONFINITE:
            regime = int(Regime.STABLE)
        return DebounceState(inner, insisted), Assessment(regime, assessment.evidence)
