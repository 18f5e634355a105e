"""A wrapper: what another policy asks for, and never more than the evidence leaves room for."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbw_sim.guard.guard import Policy
from lbw_sim.guard.policies.roll_back import RollBack
from lbw_sim.params import part, policy
from lbw_sim.values import Assessment, Posture, Regime, Request


class UnderCapState(NamedTuple):
    """The inner state and its wish."""

    inner: Any
    own_scale: float
    """Scale that the inner policy asked for last: what it would have without the cap; in [0, 1]."""


@policy(version=1)
class UnderCap:
    """Scale = the lesser of the inner policy's and 1 / evidence; no evidence is no cap.

    For analyzers whose evidence is a value over its limit, as `scale_by_evidence`, but with a policy inside that skips,
    rolls back and damps as the regime wants it. The inner policy damps what was really in force, and lets go of its own
    damping at its own pace, whatever the cap has become meanwhile: a cap that opens opens at once.

    >>> rule = UnderCap()
    >>> state, request = rule.step(rule.init(), Assessment(1, 8.0), 1.0)
    >>> Posture(request.posture).name, request.scale
    ('DAMP', 0.125)
    """

    inner: Policy = part(RollBack, doc="the policy that answers to the regime")

    def init(self) -> UnderCapState:
        """The inner policy's start."""
        return UnderCapState(self.inner.init(), 1.0)

    def step(self, state: UnderCapState, assessment: Assessment, scale: float) -> tuple[UnderCapState, Request]:
        """One regime and one piece of evidence; `scale` is the one now in force."""
        regime = assessment.regime
        harmed = regime == Regime.DIVERGING or regime == Regime.OSCILLATION
        inner, request = self.inner.step(
            state.inner, assessment, min(scale, state.own_scale) if harmed else state.own_scale
        )
        own_scale = max(0.0, min(1.0, request.scale)) if request.scale == request.scale else 1.0
        wanted = min(own_scale, 1.0 / assessment.evidence) if assessment.evidence > 1.0 else own_scale
        posture = request.posture
        if posture != Posture.SKIP and posture != Posture.ROLLBACK and wanted < own_scale:
            posture = int(Posture.DAMP)
        return UnderCapState(inner, own_scale), Request(posture, wanted, request.rollback_steps)
