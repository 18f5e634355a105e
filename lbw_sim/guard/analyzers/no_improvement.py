"""Patience: the loss has not improved for so many checks."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.guard.analyzers import LARGEST
from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals


class NoImprovementState(NamedTuple):
    """The check that is being filled, and the best one so far."""

    losses: int
    """How many are in this check."""
    total: float
    checks: int
    """0 before the first check, then 1."""
    best: float
    bad: int
    """Checks in a row that brought nothing."""


@analyzer(version=1, needs=("loss",))
class NoImprovement:
    """PLATEAU for one step when more than `patience` checks in a row improved the best by less than `threshold`.

    torch's ReduceLROnPlateau in its default mode (min, relative, no cooldown). torch leaves it to its caller what is
    checked and how often; here a check is the mean loss of `check_steps` steps. Evidence is the check over the best.

    Known trap: it cannot tell a run that has converged from one that has stalled.

    >>> rule, names = NoImprovement(check_steps=1, patience=2), []
    >>> state = rule.init()
    >>> for loss in [3.0, 2.0, 2.0, 2.0, 2.0]:
    ...     state, assessment = rule.step(state, Signals(loss=loss))
    ...     names.append(Regime(assessment.regime).name)
    >>> names.index("PLATEAU")
    4
    """

    check_steps: int = param(100, low=1, high=100_000, unit="steps", doc="steps whose mean is one check", log=True)
    patience: int = param(10, low=0, high=1_000, doc="checks without improvement that are tolerated", limit=True)
    threshold: float = param(1e-4, low=0.0, high=0.5, doc="least improvement, as a part of the best")

    def init(self) -> NoImprovementState:
        """Nothing seen."""
        return NoImprovementState(0, 0.0, 0, 0.0, 0)

    def step(self, state: NoImprovementState, signals: Signals) -> tuple[NoImprovementState, Assessment]:
        """One loss; one that is missing or not finite counts for no check."""
        if not (-LARGEST <= signals.loss <= LARGEST):
            return state, Assessment(int(Regime.STABLE))
        count, total = state.losses + 1, state.total + signals.loss
        if count < self.check_steps:
            after = NoImprovementState(count, total, state.checks, state.best, state.bad)
            return after, Assessment(int(Regime.STABLE))
        mean = total / count
        if state.checks == 0 or mean < state.best * (1.0 - self.threshold):
            return NoImprovementState(0, 0.0, 1, mean, 0), Assessment(int(Regime.STABLE))
        bad = state.bad + 1
        regime = int(Regime.STABLE)
        if bad > self.patience:
            regime, bad = int(Regime.PLATEAU), 0
        evidence = mean / state.best if state.best > 0.0 else 0.0
        return NoImprovementState(0, 0.0, 1, state.best, bad), Assessment(regime, evidence)
