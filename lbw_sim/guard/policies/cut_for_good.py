"""Cut the learning rate at every alarm and never give it back."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, policy
from lbw_sim.values import Assessment, Posture, Request, is_unsafe

# keeps the product from underflow; the envelope's floor is far above
LEAST = 1e-9


class CutForGoodState(NamedTuple):
    """What the cuts so far have left."""

    left: float
    """Factor on the learning rate; in (0, 1]."""
    unsafe: int
    """1: the last regime was unsafe."""


@policy(version=1)
class CutForGood:
    """Multiplies the scale by `cut` once at the start of each alarm, for the rest of the run (ReduceLROnPlateau).

    Known trap: a false alarm is never forgiven. The envelope does forgive: its longest damping ends every cut.

    >>> rule = CutForGood()
    >>> state, request = rule.step(rule.init(), Assessment(6), 1.0)
    >>> rule.step(state, Assessment(1), 1.0)[1].scale
    0.1
    """

    cut: float = param(0.1, low=0.01, high=0.99, doc="factor of one cut")

    def init(self) -> CutForGoodState:
        """Nothing cut."""
        return CutForGoodState(1.0, 0)

    def step(self, state: CutForGoodState, assessment: Assessment, scale: float) -> tuple[CutForGoodState, Request]:
        """One regime."""
        left = state.left
        unsafe = 1 if is_unsafe(assessment.regime) else 0
        if unsafe > state.unsafe:
            left = max(LEAST, left * self.cut)
        posture = int(Posture.DAMP) if left < 1.0 else int(Posture.HOLD)
        return CutForGoodState(left, unsafe), Request(posture, left)
