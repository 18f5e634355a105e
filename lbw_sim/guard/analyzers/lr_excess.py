"""A wrapper: how far the peak of the learning-rate schedule is above a share of what the initial weights can take."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbw_sim.guard.analyzers.bad_batch import BadBatch
from lbw_sim.guard.guard import Analyzer
from lbw_sim.params import analyzer, param, part
from lbw_sim.values import Assessment, Signals, nan

LARGEST = 1e12
"""A learning rate or an excess beyond this counts as this."""
LONGEST_STEPS = 1_000_000_000
"""A tenure that is not counted further."""


class LrExcessState(NamedTuple):
    """The inner state and what is known of the schedule."""

    inner: Any
    peak_lr: float
    """Learning rate that stands for the whole schedule; 0 before the first."""
    tenure_steps: int
    """Steps for which the learning rate was at least half of that, less those since for which it was not."""


@analyzer(version=1, needs=("lr", "full_step_lr"))
class LrExcess:
    """The inner analyzer's regime; the evidence is peak lr / (`share` · `full_step_lr`), above 1 when over the cap.

    The peak and not the present rate, so that what divides by the evidence keeps the schedule's shape: warm-up and decay
    stay, only lower. The peak is forgotten when the learning rate has been below half of it for as long as it was above:
    a bump of 20 steps 20 steps after its end, the peak of a linear or cosine decay only with the run; the new peak is
    then the learning rate of that step. No number of steps is built in, so the length of a run does not matter. A
    schedule that falls fast and goes on for long, such as 1/√step, is followed in stairs: never above the cap.

    A learning rate or a size that is not known gives no evidence and changes nothing.

    >>> rule = LrExcess(share=0.25)
    >>> state, found = rule.init(), []
    >>> for lr in [0.05, 0.1, 0.08, 0.06]:
    ...     state, assessment = rule.step(state, Signals(lr=lr, full_step_lr=0.1))
    ...     found.append(assessment.evidence)
    >>> found
    [2.0, 4.0, 4.0, 4.0]
    """

    inner: Analyzer = part(BadBatch, doc="the analyzer that names the regime")
    share: float = param(0.25, low=1e-3, high=100.0, doc="cap on the lr, as a share of full_step_lr", log=True)

    def init(self) -> LrExcessState:
        """No schedule."""
        return LrExcessState(self.inner.init(), 0.0, 0)

    def step(self, state: LrExcessState, signals: Signals) -> tuple[LrExcessState, Assessment]:
        """Ask the inner analyzer, then look at the learning rate."""
        inner, assessment = self.inner.step(state.inner, signals)
        peak_lr, tenure_steps = state.peak_lr, state.tenure_steps
        # a learning rate of 0, before a warm-up or after a decay, says nothing about the peak
        if signals.lr > 0.0:
            lr = min(signals.lr, LARGEST)
            if lr > 2.0 * peak_lr:
                tenure_steps = 0
            peak_lr = max(peak_lr, lr)
            tenure_steps = min(tenure_steps + 1, LONGEST_STEPS) if lr >= 0.5 * peak_lr else tenure_steps - 1
            if tenure_steps <= 0:
                peak_lr, tenure_steps = lr, 1
        cap = self.share * signals.full_step_lr
        evidence = nan
        if cap > 0.0 and peak_lr > 0.0:
            evidence = min(LARGEST, peak_lr / cap)
        return LrExcessState(inner, peak_lr, tenure_steps), Assessment(assessment.regime, evidence, signals.lr)
