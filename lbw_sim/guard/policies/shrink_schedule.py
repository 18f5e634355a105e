"""A wrapper: shrink the whole learning-rate schedule until its peak is at a cap, and learn the cap from harm."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbw_sim.guard.guard import Policy
from lbw_sim.guard.policies.roll_back import RollBack
from lbw_sim.params import param, part, policy
from lbw_sim.values import Assessment, Posture, Request

LARGEST = 1e12
"""Evidence beyond this is none."""
LEAST_SHARE = 1e-6
"""The cap is never lowered to less of what it was."""
LONGEST_STEPS = 1_000_000
"""Doubling ends here."""
LN_2 = 0.6931471805599453


class ShrinkScheduleState(NamedTuple):
    """The inner state and what has been learned about the cap."""

    inner: Any
    own_scale: float
    """Scale that the inner policy asked for last: what it would have without the cap."""
    share: float
    """The cap now, as a share of the one that the evidence is measured in."""
    age_steps: int
    """Steps since the start, as far as they matter."""
    double_steps: int
    """Steps without harm in which the cap doubles."""


@policy(version=1)
class ShrinkSchedule:
    """Scale = the least of what the inner policy asks for and cap / peak of the schedule, 1 where the peak is lower.

    The evidence has to be the peak learning rate over a cap that is known beforehand, as `lr_excess` gives it. A run
    that is under the cap is not touched. One that is over it gets its own schedule, smaller, and a linear warm-up of
    `ramp_steps`, which its own, made for the larger rate, may have passed already.

    The cap is learned: when the inner policy asks for a ROLLBACK, it falls to `cut` times what was in force, whether or
    not it was the cap that was in force. Without harm it grows back, doubling in `double_steps`, up to `most` times the
    first one; after every harm that takes twice as long. So a false alarm costs half of the learning rate for a while,
    and a rate that does harm is tried less and less often: about once in each doubling of the run's length.

    Without evidence the schedule's own peak counts as the cap: nothing is shrunk before there was harm.

    >>> rule = ShrinkSchedule(ramp_steps=1)
    >>> state, request = rule.step(rule.init(), Assessment(1, 8.0), 1.0)
    >>> Posture(request.posture).name, request.scale
    ('DAMP', 0.125)
    """

    inner: Policy = part(RollBack, doc="the policy that answers to the regime")
    ramp_steps: int = param(25, low=1, high=100_000, unit="steps", doc="warm-up of a run over the cap", log=True)
    cut: float = param(0.5, low=0.05, high=0.95, doc="cap after harm, as a share of the lr that did it")
    double_steps: int = param(
        250, low=1, high=100_000, unit="steps", doc="without harm, until the cap has doubled", log=True
    )
    most: float = param(1.0, low=1.0, high=1_000.0, doc="largest cap, as a multiple of the first", log=True)

    def init(self) -> ShrinkScheduleState:
        """The first cap."""
        return ShrinkScheduleState(self.inner.init(), 1.0, 1.0, 0, self.double_steps)

    def step(self, state: ShrinkScheduleState, assessment: Assessment, scale: float) -> tuple[ShrinkScheduleState, Request]:
        """One regime and how far the schedule is over the cap; `scale` is the one now in force."""
        excess = assessment.evidence if 0.0 < assessment.evidence <= LARGEST else 1.0
        share, double_steps = state.share, state.double_steps
        age_steps = min(state.age_steps + 1, self.ramp_steps)
        # the inner policy lets go of its own damping at its own pace, whatever the cap allows
        inner, request = self.inner.step(state.inner, assessment, state.own_scale)
        own_scale = min(1.0, max(0.0, request.scale)) if request.scale == request.scale else 1.0
        if request.posture == Posture.ROLLBACK:
            share = max(LEAST_SHARE, self.cut * min(share, scale * excess))
            double_steps = min(LONGEST_STEPS, 2 * double_steps)
        else:
            share = min(self.most, share * (1.0 + LN_2 / state.double_steps))
        limit = share / excess
        if limit < 1.0:
            limit = limit * age_steps / self.ramp_steps
        wanted = min(own_scale, limit)
        posture = request.posture
        if posture != Posture.SKIP and posture != Posture.ROLLBACK and wanted < 1.0:
            posture = int(Posture.DAMP)
        return ShrinkScheduleState(inner, own_scale, share, age_steps, double_steps), Request(
            posture, wanted, request.rollback_steps
        )
