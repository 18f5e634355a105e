"""Go back a little when the weights are damaged, and go on with a lower learning rate until it has proved itself."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, policy
from lbw_sim.values import Assessment, Posture, Regime, Request

LARGEST_LR = 1e12
"""A learning rate beyond this is none."""
LONGEST_DOUBT_STEPS = 1_000_000
"""Doubling ends here."""


class RollBackState(NamedTuple):
    """The last failure, and how often there was one."""

    failed_lr: float
    """Learning rate in force when the last alarm came; where no analyzer tells it, the scale; 0 when none is held."""
    since_steps: int
    """Steps since the last alarm."""
    doubt_steps: int
    """Steps after the last alarm for which that learning rate is not tried again."""
    depth_steps: int
    """How far the last rollback asked for went."""
    age_steps: int
    """Steps that the present weights have behind them, as far as it matters."""


@policy(version=1)
class RollBack:
    """On DIVERGING or OSCILLATION: ROLLBACK, scale × `cut`. On SPIKE and NONFINITE: SKIP. STRESSED keeps the scale.

    How far back: `rollback_steps`, twice as far when the last alarm is not long past, for a short step is cheap and
    deep ones are the worst false alarms; but `deepest_steps` on OSCILLATION, which has lasted for a while before it is
    seen, and in a run younger than `young_steps`, which has little to lose and no healthy weights near.

    Afterwards: `hold_steps` at the lower scale, then release up to `trust` times the learning rate that failed. When
    that rate was a passing bump this is soon the whole scheduled one. After `doubt_steps` the failure is forgiven,
    after twice as many when it is the second, and so on: a false alarm costs little, a learning rate that is too high
    is not tried every time. PLATEAU is not answered: a stall can come from a learning rate that is too low as well.

    The envelope grants no rollback unless `max_rollbacks` says so; without it this policy only damps.

    >>> rule = RollBack(cut=0.25, rollback_steps=10, young_steps=0)
    >>> state, request = rule.step(rule.init(), Assessment(Regime.DIVERGING), 1.0)
    >>> Posture(request.posture).name, request.scale, request.rollback_steps
    ('ROLLBACK', 0.25, 10)
    """

    cut: float = param(0.15, low=0.05, high=1.0, doc="factor on the scale at an alarm", log=True)
    rollback_steps: int = param(10, low=1, high=10_000, unit="steps", doc="how far to go back", log=True)
    deepest_steps: int = param(80, low=1, high=100_000, unit="steps", doc="how far at most", log=True)
    young_steps: int = param(100, low=0, high=100_000, unit="steps", doc="age up to which a run goes back deepest")
    hold_steps: int = param(20, low=0, high=10_000, unit="steps", doc="from an alarm to the first release")
    release: float = param(1.05, low=1.001, high=2.0, unit="1/step", doc="factor of one step of release")
    trust: float = param(0.25, low=0.05, high=1.0, doc="share of the learning rate that failed which is released")
    doubt_steps: int = param(
        160, low=1, high=100_000, unit="steps", doc="from the first alarm to forgiveness", log=True
    )

    def init(self) -> RollBackState:
        """No failure."""
        return RollBackState(0.0, 0, 0, 0, 0)

    def step(self, state: RollBackState, assessment: Assessment, scale: float) -> tuple[RollBackState, Request]:
        """One regime; `scale` is the one now in force."""
        regime = assessment.regime
        lr = assessment.lr if 0.0 < assessment.lr <= LARGEST_LR else 1.0
        failed_lr, doubt_steps, depth_steps = state.failed_lr, state.doubt_steps, state.depth_steps
        since_steps = min(state.since_steps + 1, LONGEST_DOUBT_STEPS)
        age_steps = min(state.age_steps + 1, self.young_steps + self.deepest_steps)
        if regime == Regime.DIVERGING or regime == Regime.OSCILLATION:
            again = depth_steps > 0 and since_steps <= 2 * self.hold_steps + depth_steps
            depth_steps = min(self.deepest_steps, 2 * depth_steps) if again else self.rollback_steps
            if regime == Regime.OSCILLATION or age_steps <= self.young_steps:
                depth_steps = self.deepest_steps
            doubt_steps = min(LONGEST_DOUBT_STEPS, 2 * doubt_steps) if doubt_steps > 0 else self.doubt_steps
            request = Request(int(Posture.ROLLBACK), scale * self.cut, depth_steps)
            return RollBackState(scale * lr, 0, doubt_steps, depth_steps, max(0, age_steps - depth_steps)), request
        if since_steps > doubt_steps:
            failed_lr = 0.0
        after = RollBackState(failed_lr, since_steps, doubt_steps, depth_steps, age_steps)
        if regime == Regime.NONFINITE or regime == Regime.SPIKE:
            return after, Request(int(Posture.SKIP), scale)
        if regime == Regime.STRESSED or (doubt_steps > 0 and since_steps < self.hold_steps):
            return after, Request(int(Posture.HOLD), scale)
        ceiling = 1.0 if failed_lr == 0.0 else self.trust * failed_lr / lr
        # what is in force already is not taken back by a schedule that rises
        return after, Request(int(Posture.RELEASE), min(1.0, max(scale, min(ceiling, scale * self.release))))
