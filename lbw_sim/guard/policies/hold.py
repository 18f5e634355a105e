"""The null policy: scale 1, always. Stands in every results table."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import policy
from lbw_sim.values import Assessment, Posture, Request


class HoldState(NamedTuple):
    """Nothing to remember."""


@policy(version=1)
class Hold:
    """Never acts.

    >>> Hold().step(Hold().init(), Assessment(3), 1.0)[1].scale
    1.0
    """

    def init(self) -> HoldState:
        """Empty."""
        return HoldState()

    def step(self, state: HoldState, assessment: Assessment, scale: float) -> tuple[HoldState, Request]:
        """Scale 1, whatever comes."""
        return state, Request(int(Posture.HOLD), 1.0)
