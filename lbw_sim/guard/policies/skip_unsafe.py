"""Drop the update of every step that is called unsafe."""

from __future__ import annotations

from lbw_sim.guard.policies.hold import HoldState
from lbw_sim.params import policy
from lbw_sim.values import Assessment, Posture, Request, is_unsafe


@policy(version=1)
class SkipUnsafe:
    """SKIP while the regime is unsafe, scale 1 otherwise: OLMo-core, Levanter, llm.c, FlagScale.

    The weights, moments and step counts of a skipped step stay as they are. Known trap: with an analyzer that never
    accepts a level shift this stops training; only the envelope's skip budget ends it.

    >>> Posture(SkipUnsafe().step(SkipUnsafe().init(), Assessment(3), 1.0)[1].posture).name
    'SKIP'
    """

    def init(self) -> HoldState:
        """Empty."""
        return HoldState()

    def step(self, state: HoldState, assessment: Assessment, scale: float) -> tuple[HoldState, Request]:
        """One regime."""
        if is_unsafe(assessment.regime):
            return state, Request(int(Posture.SKIP), 1.0)
        return state, Request(int(Posture.HOLD), 1.0)
