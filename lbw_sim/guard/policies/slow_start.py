"""A wrapper: begin with a small share of the learning rate and let it grow while nothing speaks against it."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbw_sim.guard.guard import Policy
from lbw_sim.guard.policies.roll_back import RollBack
from lbw_sim.params import param, part, policy
from lbw_sim.values import Assessment, Posture, Request, is_unsafe


class SlowStartState(NamedTuple):
    """The inner state and how far the start has come."""

    inner: Any
    ramp: float
    """Largest scale so far allowed; 1 when the start is over."""


@policy(version=1)
class SlowStart:
    """Scale `start_scale` at first, times `growth` at every step in WARMUP, STABLE or RECOVERY, until it is 1.

    In any other regime the ramp stands still. The first DAMP or ROLLBACK that the inner policy asks for ends the start,
    at the scale that it asks for: how far to trust the learning rate after that is its business. The ramp is the same
    for a learning rate that needs it and for one that does not: what the latter loses is the price.

    >>> rule = SlowStart(start_scale=0.1, growth=1.5)
    >>> state, request = rule.step(rule.init(), Assessment(1), 1.0)
    >>> request.scale
    0.1
    """

    inner: Policy = part(RollBack, doc="the policy that has the word")
    start_scale: float = param(0.05, low=0.01, high=1.0, doc="scale of the first step", log=True)
    growth: float = param(1.1, low=1.001, high=2.0, unit="1/step", doc="factor of one step")

    def init(self) -> SlowStartState:
        """At the beginning."""
        return SlowStartState(self.inner.init(), self.start_scale)

    def step(self, state: SlowStartState, assessment: Assessment, scale: float) -> tuple[SlowStartState, Request]:
        """One regime; `scale` is the one now in force."""
        ramp = state.ramp
        inner, request = self.inner.step(state.inner, assessment, min(scale, ramp))
        if ramp >= 1.0 or request.posture == Posture.DAMP or request.posture == Posture.ROLLBACK:
            return SlowStartState(inner, 1.0), request
        posture = int(Posture.SKIP) if request.posture == Posture.SKIP else int(Posture.DAMP)
        return SlowStartState(inner, ramp if is_unsafe(assessment.regime) else min(1.0, ramp * self.growth)), Request(
            posture, ramp
        )
