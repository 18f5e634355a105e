"""Go back to an earlier snapshot when an alarm starts."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, policy
from lbw_sim.values import Assessment, Posture, Request, is_unsafe


class RewindState(NamedTuple):
    """Whether the alarm is an old one."""

    unsafe: int
    """1: the last regime was unsafe."""


@policy(version=1)
class Rewind:
    """Asks for a ROLLBACK once at the start of each alarm and never touches the learning rate (PaLM, arXiv 2204.02311).

    PaLM restarted from about 100 steps before the spike and skipped 200 to 500 batches; which batches follow is up to
    the training loop. The envelope grants no rollback unless `max_rollbacks` says so.

    >>> rule = Rewind()
    >>> state, request = rule.step(rule.init(), Assessment(3), 1.0)
    >>> Posture(request.posture).name, request.rollback_steps
    ('ROLLBACK', 100)
    """

    rollback_steps: int = param(100, low=1, high=100_000, unit="steps", doc="how far to go back", log=True)

    def init(self) -> RewindState:
        """No alarm."""
        return RewindState(0)

    def step(self, state: RewindState, assessment: Assessment, scale: float) -> tuple[RewindState, Request]:
        """One regime."""
        unsafe = 1 if is_unsafe(assessment.regime) else 0
        if unsafe > state.unsafe:
            return RewindState(unsafe), Request(int(Posture.ROLLBACK), 1.0, self.rollback_steps)
        return RewindState(unsafe), Request(int(Posture.HOLD), 1.0)
