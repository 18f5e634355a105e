"""A wrapper: a cap on the learning rate, learned from whether a whole step brings twice what half of it would."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbw_sim.guard.analyzers.bad_batch import BadBatch
from lbw_sim.guard.guard import Analyzer
from lbw_sim.params import analyzer, param, part
from lbw_sim.values import Assessment, Regime, Signals, nan

LARGEST, LEAST = 1e12, 1e-12
"""Learning rates beyond these count as these."""
LONGEST_STEPS = 1_000_000_000
"""Counters go no further."""
LEAST_TRIED = 0.25
"""A smaller share of the cap says nothing about the cap."""
REACH_WEIGHT = 0.3
"""Of the newest reach in its mean: one batch tells little."""


class TrustCapState(NamedTuple):
    """The inner state, what is known of the schedule, and what has been learned."""

    inner: Any
    peak_lr: float
    """Learning rate that stands for the whole schedule; 0 before the first."""
    tenure_steps: int
    """Steps for which the learning rate was at least half of that, less those since for which it was not."""
    cap: float
    """Largest peak that is allowed now; 0: there is none."""
    before_cut: float
    """The cap, or the peak below it, when it was lowered last; 0: it never was."""
    measured: int
    """Ratios since then, as far as they matter."""
    silent_steps: int
    """Steps since the last ratio, as far as they matter."""
    age_steps: int
    """Steps since the start or the last collapse, as far as they matter."""
    reach: float
    """Mean of the gradient's reach over the last few steps; 0 before the first."""
    best_reach: float
    """The largest that it has been since the last collapse."""
    ceiling: float
    """The cap grows no further; 0: there is none."""
    tried_steps: int
    """Steps at a learning rate from which the cap can be judged, as far as they matter."""


@analyzer(version=4, needs=("lr", "full_step_lr", "gain_ratio"), uses=("gradient_reach",))
class TrustCap:
    """The inner analyzer's regime; the evidence is the schedule's peak over the cap, above 1 when it is too high.

    `gain_ratio` compares the optimizer's own steps with their halves: near 1 while they are short for the curvature
    along them, 2/3 at the bottom of the valley, 0 where they bring nothing; its scale is the same for every model. So

    - the cap begins at `first_share` of `full_step_lr`, what the initial weights can take;
    - above `grow_ratio` it is multiplied by `up` at every measurement. What a share of the cap brought is drawn out to
      the whole of it, for the ratio falls below 1 in proportion to the learning rate; less than a quarter says nothing;
    - below `cut_ratio` it falls to `down` times what was in force, at most once in `wait` measurements; where it was
      not in the way it does so below `alarm_ratio`;
    - above the middle of `cut_ratio` and `grow_ratio` it goes back by `up` to where it was before the last cut: that
      one was a false alarm;
    - after an alarm of the inner analyzer it falls to `harm_cut` times what was in force.

    It grows in the first `learn_steps` at a quarter of it or more, and never later: a ratio does not know that a long
    run wants less than a short one. A cap that is in the way cuts the schedule's own warm-up short; so in the first
    `warmup_steps` of the run it is reached in equal steps. After them, as long as it has never fallen, it is not in the
    way of a peak that is above it by one growth or less: the first cap is no more exact than that.

    What kills a post-LN transformer is not to be seen there: its steps stay straight while it stops looking at its
    input. `gradient_reach` tells, within some fifteen steps. Its mean over the last few steps against the best so far:

    - below `collapse_share` the network has collapsed, which does not heal: the regime is OSCILLATION, on which a
      policy goes back as far as it can; the cap falls to `collapse_cut` times what was in force and never rises above
      that again, and the best reach is forgotten;
    - above `whole_share` nothing of the kind is near, and a cap that is in the way grows by `whole_up` already above
      `whole_ratio`.

    While the schedule comes down, at less than `still` of its peak, the ratio rises by itself and would undo the decay:
    then the cap grows no further than to where it was before the last cut. A ratio that stops coming is no evidence:
    after `stale_steps` without one the cap opens by 5 % a step; without a reach nothing collapses and nothing is whole.
    In the first `settle_steps`, and in as many after a collapse, SPIKE, DIVERGING and OSCILLATION of the inner analyzer
    are WARMUP: the noise of the loss is not known yet, or what it compares with was taken back.

    The peak and not the present rate is capped, so that what divides by the evidence keeps the schedule's shape:
    warm-up and decay stay, only lower. The peak is forgotten when the learning rate has been below half of it for as
    long as it was above: a bump of 20 steps 20 steps after its end, the peak of a linear or cosine decay only with the
    run; the new peak is then the learning rate of that step. A schedule that falls fast and goes on for long, such as
    1/√step, is followed in stairs. Neither rule knows the length of the run.

    >>> rule, cap = TrustCap(warmup_steps=1), []
    >>> state = rule.init()
    >>> for ratio in [0.97, 0.97, 0.8, 0.3]:
    ...     state, _ = rule.step(state, Signals(lr=1.0, full_step_lr=0.08, gain_ratio=ratio))
    ...     cap.append(round(state.cap, 5))
    >>> cap
    [0.026, 0.0338, 0.0338, 0.02704]
    """

    inner: Analyzer = part(BadBatch, doc="the analyzer that names the regime")
    first_share: float = param(0.25, low=1e-3, high=1e6, doc="first cap, as a share of full_step_lr", log=True)
    cut_ratio: float = param(0.65, low=-1.0, high=1.0, doc="ratio below which a cap that is in the way falls")
    alarm_ratio: float = param(0.3, low=-1.0, high=1.0, doc="ratio below which a cap is put in the way")
    grow_ratio: float = param(0.95, low=0.0, high=2.0, doc="ratio above which the cap may grow")
    up: float = param(1.3, low=1.001, high=2.0, doc="factor of one growth")
    down: float = param(0.8, low=0.1, high=0.99, doc="factor of one cut")
    wait: int = param(3, low=1, high=1_000, doc="measurements from one cut to the next")
    harm_cut: float = param(0.5, low=0.05, high=1.0, doc="factor of a cut after an alarm of the inner analyzer")
    still: float = param(0.9, low=0.0, high=1.0, doc="share of the peak below which the schedule comes down")
    stale_steps: int = param(100, low=1, high=100_000, unit="steps", doc="silence after which the cap opens")
    collapse_share: float = param(0.1, low=0.0, high=1.0, doc="share of its best below which the reach has collapsed")
    collapse_cut: float = param(0.33, low=0.05, high=1.0, doc="factor of the cut after a collapse, which is for good")
    whole_share: float = param(0.85, low=0.0, high=2.0, doc="share of its best above which the reach is whole")
    whole_ratio: float = param(0.88, low=0.0, high=2.0, doc="ratio above which the cap may grow while it is")
    whole_up: float = param(1.15, low=1.001, high=2.0, doc="factor of one growth then")
    learn_steps: int = param(64, low=1, high=1_000_000, unit="steps", doc="steps in which the cap may grow", log=True)
    warmup_steps: int = param(12, low=1, high=100_000, unit="steps", doc="first steps, in which the cap is reached")
    settle_steps: int = param(
        20, low=0, high=10_000, unit="steps", doc="first steps, in which the inner one is not asked"
    )

    def init(self) -> TrustCapState:
        """No schedule, no cap."""
        return TrustCapState(self.inner.init(), 0.0, 0, 0.0, 0.0, self.wait, 0, 0, 0.0, 0.0, 0.0, 0)

    def step(self, state: TrustCapState, signals: Signals) -> tuple[TrustCapState, Assessment]:
        """Ask the inner analyzer, then look at the learning rate and at the ratio, if there is one."""
        inner, assessment = self.inner.step(state.inner, signals)
        regime = assessment.regime
        age_steps = min(state.age_steps + 1, max(self.settle_steps, self.warmup_steps) + 1)
        alarmed = regime == Regime.DIVERGING or regime == Regime.OSCILLATION
        if age_steps <= self.settle_steps and (alarmed or regime == Regime.SPIKE):
            regime, alarmed = int(Regime.WARMUP), False
        reach, best_reach, ceiling = state.reach, state.best_reach, state.ceiling
        if signals.gradient_reach >= 0.0:
            now = min(1.0, signals.gradient_reach)
            reach = reach + REACH_WEIGHT * (now - reach) if reach > 0.0 else now
            best_reach = max(best_reach, reach)
        collapsed, whole = reach < self.collapse_share * best_reach, reach > self.whole_share * best_reach
        peak_lr, tenure_steps = state.peak_lr, state.tenure_steps
        lr = 0.0
        # a learning rate of 0, before a warm-up or after a decay, says nothing about the peak
        if signals.lr > 0.0:
            lr = max(LEAST, min(LARGEST, signals.lr))
            if lr > 2.0 * peak_lr:
                tenure_steps = 0
            peak_lr = max(peak_lr, lr)
            tenure_steps = min(tenure_steps + 1, LONGEST_STEPS) if lr >= 0.5 * peak_lr else tenure_steps - 1
            if tenure_steps <= 0:
                peak_lr, tenure_steps = lr, 1
        cap, before_cut, measured = state.cap, state.before_cut, state.measured
        silent_steps = min(state.silent_steps + 1, self.stale_steps)
        if cap == 0.0 and signals.full_step_lr > 0.0:
            cap = max(LEAST, min(LARGEST, self.first_share * signals.full_step_lr))
        warmed = min(1.0, age_steps / self.warmup_steps) if cap < peak_lr and ceiling == 0.0 else 1.0
        in_force = min(cap, peak_lr) if cap > 0.0 else peak_lr
        leeway = self.up if before_cut == 0.0 and ceiling == 0.0 and age_steps > self.warmup_steps else 1.0
        in_the_way = cap > 0.0 and peak_lr > leeway * cap
        ratio = signals.gain_ratio
        tried = min(lr / cap, warmed) if cap > 0.0 else 0.0
        tried_steps = min(state.tried_steps + 1, self.learn_steps + 1) if tried >= LEAST_TRIED else state.tried_steps
        at_cap = 1.0 - (1.0 - ratio) / tried if tried >= LEAST_TRIED else nan
        may_grow = tried_steps <= self.learn_steps and lr >= self.still * peak_lr
        if collapsed:
            regime = int(Regime.OSCILLATION)
            reach, best_reach, age_steps = 0.0, 0.0, 0
            if in_force > 0.0:
                cap = max(LEAST, self.collapse_cut * in_force)
                before_cut, measured, ceiling = 0.0, 0, cap
        elif alarmed:
            if in_force > 0.0:
                cap, before_cut, measured = max(LEAST, self.harm_cut * in_force), in_force, 0
        elif ratio == ratio:
            silent_steps = 0
            measured = min(measured + 1, self.wait)
            if ratio < (self.cut_ratio if in_the_way else self.alarm_ratio):
                if measured >= self.wait and in_force > 0.0:
                    cap, before_cut, measured = max(LEAST, self.down * in_force), in_force, 0
            elif at_cap > self.grow_ratio and may_grow:
                cap = min(LARGEST, cap * self.up)
            elif at_cap > self.whole_ratio and whole and may_grow and cap < peak_lr:
                cap = min(LARGEST, cap * self.whole_up)
            elif ratio > 0.5 * (self.cut_ratio + self.grow_ratio) and cap < before_cut:
                cap = min(before_cut, cap * self.up)
        elif silent_steps >= self.stale_steps:
            cap = min(LARGEST, cap * 1.05)
        if ceiling > 0.0:
            cap = min(cap, ceiling)
        evidence = peak_lr / (warmed * cap) if cap > 0.0 and peak_lr > 0.0 else nan
        if before_cut == 0.0 and ceiling == 0.0 and evidence <= leeway:
            evidence = min(1.0, evidence)
        return TrustCapState(
            inner,
            peak_lr,
            tenure_steps,
            cap,
            before_cut,
            measured,
            silent_steps,
            age_steps,
            reach,
            best_reach,
            ceiling,
            tried_steps,
        ), Assessment(regime, evidence, signals.lr)
