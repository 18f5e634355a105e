"""A wrapper: a loss that leaps while another analyzer has nothing against the weights is the batch's fault."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbw_sim.guard.analyzers.canary_rise import CanaryRise
from lbw_sim.guard.guard import Analyzer
from lbw_sim.params import analyzer, param, part
from lbw_sim.values import Assessment, Regime, Signals


class BadBatchState(NamedTuple):
    """The inner state and for how long the loss has been too high."""

    inner: Any
    high_steps: int


@analyzer(version=1, needs=("loss", "loss_level", "loss_sd"), uses=("lr",))
class BadBatch:
    """SPIKE while the loss stands above its level by `leap_sd`, unless the inner analyzer calls the run unsafe.

    Meant for a policy that skips on SPIKE: nothing is lost by waiting with the weights as they are until the next
    evaluation of a canary or of an older batch says whose fault it is, and if it was the weights', the inner analyzer's
    DIVERGING is passed on. What lasts for more than `patience_steps` is not a bad batch but other data, and is
    accepted until the loss is back at its level. The inner analyzer must not judge by this batch or by the one before:
    they are what is in question.

    >>> rule = BadBatch(patience_steps=2)
    >>> state, names = rule.init(), []
    >>> for loss in [2.0, 9.0, 9.0, 9.0, 2.0, 9.0]:
    ...     state, assessment = rule.step(state, Signals(loss=loss, loss_level=2.0, loss_sd=0.1, canary_loss=2.0))
    ...     names.append(Regime(assessment.regime).name)
    >>> names
    ['STABLE', 'SPIKE', 'SPIKE', 'STABLE', 'STABLE', 'SPIKE']
    """

    inner: Analyzer = part(CanaryRise, doc="the analyzer that knows about the weights")
    leap_sd: float = param(8.0, low=2.0, high=100.0, unit="sd", doc="leap that makes a bad batch", log=True, limit=True)
    patience_steps: int = param(10, low=1, high=1_000, unit="steps", doc="longest run of bad batches", log=True)

    def init(self) -> BadBatchState:
        """The inner analyzer's start."""
        return BadBatchState(self.inner.init(), 0)

    def step(self, state: BadBatchState, signals: Signals) -> tuple[BadBatchState, Assessment]:
        """Ask the inner analyzer, then look at the loss."""
        inner, assessment = self.inner.step(state.inner, signals)
        regime, evidence = assessment.regime, assessment.evidence
        leap = signals.loss - signals.loss_level
        high_steps = state.high_steps
        if leap == leap:
            high_steps = min(high_steps + 1, self.patience_steps + 1) if leap > self.leap_sd * signals.loss_sd else 0
        blamed = regime == Regime.DIVERGING or regime == Regime.OSCILLATION or regime == Regime.NONFINITE
        if high_steps > 0 and high_steps <= self.patience_steps and not blamed and leap == leap:
            regime, evidence = int(Regime.SPIKE), leap / signals.loss_sd if signals.loss_sd > 0.0 else evidence
        return BadBatchState(inner, high_steps), Assessment(regime, evidence, signals.lr)
