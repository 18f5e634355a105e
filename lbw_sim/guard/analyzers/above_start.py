"""The loss against the largest loss of the first steps."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.guard.analyzers import LARGEST
from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals


class AboveStartState(NamedTuple):
    """The reference and which of the last losses stand above it."""

    seen: int
    """Losses so far; stops counting after the start."""
    largest: float
    """Of the first losses."""
    above: tuple[float, ...]
    """1.0 for each of the last losses beyond the limit, oldest first."""


@analyzer(version=1, needs=("loss",), uses=("nonfinite",))
class AboveStart:
    """SPIKE when a share of the last losses exceeds min(cap, factor · the largest of the first `start_steps`).

    The defaults are Megatron's spiky-loss test: this loss alone, ten times the largest of the first 100. llm-foundry's
    KillLossSpike asks for half of a window above the start, at most 10. Evidence is the loss over that limit.

    Known trap: the reference is the start of training, where the loss is highest, so a spike in mid-run all but never
    fires.

    >>> rule, state = AboveStart(start_steps=2, factor=1.0), AboveStart().init()
    >>> for loss in [11.0, 9.0, 4.0, 12.0]:
    ...     state, assessment = rule.step(state, Signals(loss=loss))
    >>> Regime(assessment.regime).name
    'SPIKE'
    """

    start_steps: int = param(100, low=1, high=100_000, unit="steps", doc="losses that make the reference", log=True)
    factor: float = param(10.0, low=0.5, high=100.0, doc="multiple of the largest of them", log=True, limit=True)
    cap: float = param(1e12, low=0.1, high=1e12, unit="nats", doc="the limit is at most this", log=True)
    window_steps: int = param(1, low=1, high=10_000, unit="steps", doc="last losses that are judged", log=True)
    share: float = param(1.0, low=0.01, high=1.0, doc="part of them that must exceed the limit")
    nonfinite_fires: int = param(1, low=0, high=1, doc="1: a loss or gradient that is nan or infinite is an alarm")

    def init(self) -> AboveStartState:
        """Nothing seen."""
        return AboveStartState(0, 0.0, (0.0,) * self.window_steps)

    def step(self, state: AboveStartState, signals: Signals) -> tuple[AboveStartState, Assessment]:
        """One loss; a missing one changes nothing."""
        loss = signals.loss
        if self.nonfinite_fires == 1 and signals.nonfinite == 1.0:
            return state, Assessment(int(Regime.NONFINITE), signals.nonfinite)
        if loss != loss:
            return state, Assessment(int(Regime.STABLE))
        if state.seen < self.start_steps:
            if not (-LARGEST <= loss <= LARGEST):
                return state, Assessment(int(Regime.WARMUP))
            largest = max(state.largest, loss) if state.seen > 0 else loss
            return AboveStartState(state.seen + 1, largest, state.above), Assessment(int(Regime.WARMUP))
        limit = min(self.cap, self.factor * state.largest)
        over = 1.0 if loss > limit else 0.0
        above = state.above[1:] + (over,)  # noqa: RUF005 (the form that the compiled engine knows)
        count = 0.0
        for one in above:
            count = count + one
        regime = int(Regime.SPIKE) if count >= self.share * self.window_steps else int(Regime.STABLE)
        evidence = loss / limit if limit > 0.0 else 0.0
        return AboveStartState(state.seen, state.largest, above), Assessment(regime, evidence)
