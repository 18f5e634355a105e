"""Divide the learning rate by how far a value is above its limit."""

from __future__ import annotations

from lbw_sim.guard.policies.hold import HoldState
from lbw_sim.params import param, policy
from lbw_sim.values import Assessment, Posture, Request


@policy(version=1)
class ScaleByEvidence:
    """Scale 1/evidence^power for this step when the evidence is above 1, scale 1 otherwise; the regime does not count.

    For analyzers whose evidence is a value over its limit: power 1 brings a norm down to the limit (clipping), power 4
    is metaseq's answer to the loss ratio. Clipping a gradient is not this under Adam, whose update hardly depends on
    the gradient's size: this scales the update itself.

    >>> ScaleByEvidence().step(ScaleByEvidence().init(), Assessment(3, 4.0), 1.0)[1].scale
    0.25
    """

    power: int = param(1, low=1, high=8, doc="exponent")

    def init(self) -> HoldState:
        """Empty."""
        return HoldState()

    def step(self, state: HoldState, assessment: Assessment, scale: float) -> tuple[HoldState, Request]:
        """One piece of evidence; nan asks for nothing."""
        if not (assessment.evidence > 1.0):
            return state, Request(int(Posture.RELEASE), 1.0)
        wanted = 1.0
        for _ in range(self.power):
            wanted = wanted / assessment.evidence
        return state, Request(int(Posture.DAMP), wanted)
