"""Does what was decided beforehand, at steps that were named beforehand."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, policy
from lbw_sim.values import Assessment, Posture, Request

LATEST_STEP = 1_000_000_000
"""Counting ends here."""


class PlannedState(NamedTuple):
    """How many steps were decided."""

    steps: int


@policy(version=1)
class Planned:
    """Scale `scale`, or SKIP, from `first_step` to `last_step`, both inclusive; scale 1 otherwise. It watches nothing.

    The action of a fork, and the control for a guard with feedback: what the same cut does when nothing chose its
    moment. Steps are counted from the first that this policy decided, 0. The envelope has the last word: at its
    defaults a cut comes and goes slowly, and skips are few.

    >>> rule = Planned(first_step=1, last_step=1, scale=0.5)
    >>> state, now = rule.step(rule.init(), Assessment(1), 1.0)
    >>> now.scale, rule.step(state, Assessment(1), 1.0)[1].scale
    (1.0, 0.5)
    """

    first_step: int = param(0, low=0, high=LATEST_STEP, unit="step", doc="first step that is acted on")
    last_step: int = param(LATEST_STEP, low=0, high=LATEST_STEP, unit="step", doc="last one, inclusive")
    scale: float = param(0.3, low=0.01, high=1.0, doc="factor on the learning rate of these steps", log=True)
    skip: int = param(0, low=0, high=1, doc="1: drop their updates instead")

    def init(self) -> PlannedState:
        """Before the first step."""
        return PlannedState(0)

    def step(self, state: PlannedState, assessment: Assessment, scale: float) -> tuple[PlannedState, Request]:
        """One step, whatever the regime."""
        now = state.steps
        state = PlannedState(min(LATEST_STEP, now + 1))
        if not (self.first_step <= now <= self.last_step):
            return state, Request(int(Posture.HOLD), 1.0)
        if self.skip == 1:
            return state, Request(int(Posture.SKIP), 1.0)
        return state, Request(int(Posture.DAMP) if self.scale < 1.0 else int(Posture.HOLD), self.scale)
