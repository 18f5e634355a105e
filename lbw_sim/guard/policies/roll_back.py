"""Go back a little when the weights are damaged, and go on with a lower learning rate until it has proved itself."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, policy
from lbw_sim.values import Assessment, Posture, Regime, Request


class RollBackState(NamedTuple):
    """The last failure."""

    failed_scale: float
    """Scale at which the last alarm came; 1 when none is remembered."""
    since_steps: int
    """Steps since the last alarm."""
    depth_steps: int
    """How far the last rollback asked for went."""
    age_steps: int
    """Steps that the present weights have behind them, as far as it matters."""


@policy(version=1)
class RollBack:
    """On DIVERGING or OSCILLATION: ROLLBACK by `rollback_steps`, scale × `cut`. On SPIKE and NONFINITE: SKIP.

    An alarm soon after the last one goes back twice as far, up to `deepest_steps`: a short step back is cheap, and deep
    ones are the worst false alarms. After `hold_steps` the scale rises again, at first only up to `trust` times the
    scale that failed, and after `forget_steps` to 1: a false alarm costs some progress, and is forgiven. STRESSED keeps
    the scale where it is. PLATEAU is not answered: a stall can come from a learning rate that is too low as well.
    The envelope grants no rollback unless `max_rollbacks` says so; without it this policy only damps.

    >>> rule = RollBack(cut=0.3, rollback_steps=10)
    >>> state, request = rule.step(rule.init(), Assessment(Regime.DIVERGING), 1.0)
    >>> Posture(request.posture).name, request.scale, request.rollback_steps
    ('ROLLBACK', 0.3, 10)
    """

    cut: float = param(0.3, low=0.05, high=1.0, doc="factor on the scale at an alarm", log=True)
    rollback_steps: int = param(10, low=1, high=10_000, unit="steps", doc="how far to go back", log=True)
    deepest_steps: int = param(40, low=1, high=100_000, unit="steps", doc="how far at most", log=True)
    hold_steps: int = param(20, low=0, high=10_000, unit="steps", doc="from an alarm to the first release")
    release: float = param(1.03, low=1.001, high=2.0, unit="1/step", doc="factor of one step of release")
    trust: float = param(0.6, low=0.1, high=1.0, doc="share of the failed scale that is released at first")
    young_steps: int = param(100, low=0, high=100_000, unit="steps", doc="age up to which a run goes back deepest")
    forget_steps: int = param(200, low=1, high=100_000, unit="steps", doc="from an alarm to full release", log=True)

    def init(self) -> RollBackState:
        """No failure."""
        return RollBackState(1.0, self.forget_steps, 0, 0)

    def step(self, state: RollBackState, assessment: Assessment, scale: float) -> tuple[RollBackState, Request]:
        """One regime; `scale` is the one now in force."""
        regime = assessment.regime
        since_steps = min(state.since_steps + 1, self.forget_steps)
        failed_scale, depth_steps = state.failed_scale, state.depth_steps
        age_steps = min(state.age_steps + 1, self.young_steps + self.deepest_steps)
        if regime == Regime.DIVERGING or regime == Regime.OSCILLATION:
            again = depth_steps > 0 and state.since_steps < 2 * self.hold_steps + depth_steps
            depth_steps = min(self.deepest_steps, 2 * depth_steps) if again else self.rollback_steps
            if regime == Regime.OSCILLATION or age_steps <= self.young_steps:
                # it has swung for a while before it was seen; and a young run has little to lose and nothing to heal
                depth_steps = self.deepest_steps
            request = Request(int(Posture.ROLLBACK), scale * self.cut, depth_steps)
            return RollBackState(scale, 0, depth_steps, max(0, age_steps - depth_steps)), request
        after = RollBackState(failed_scale, since_steps, depth_steps, age_steps)
        if regime == Regime.NONFINITE or regime == Regime.SPIKE:
            return after, Request(int(Posture.SKIP), scale)
        if regime == Regime.STRESSED or since_steps < self.hold_steps:
            return after, Request(int(Posture.HOLD), scale)
        ceiling = 1.0 if since_steps >= self.forget_steps else max(scale, self.trust * failed_scale)
        return after, Request(int(Posture.RELEASE), min(ceiling, scale * self.release))
