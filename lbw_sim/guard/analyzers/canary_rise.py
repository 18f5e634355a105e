"""The loss of a batch that never changes, against the least that it has been."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals, nan

LARGEST = 1e12
"""A canary loss beyond this, infinite ones included, counts as this."""


class CanaryRiseState(NamedTuple):
    """The reference and how often it was exceeded."""

    known: int
    """Evaluations since the reference began, as far as they matter; 0: there is no reference."""
    low: float
    """Least canary loss since the reference began; leaks upward; nats."""
    above: float
    """Evaluations in a row above the limit; one far above counts double."""
    age_steps: int
    """Steps since the last evaluation."""
    previous: float
    """The last canary loss; nats."""
    change: float
    """Mean change from one evaluation to the next; nats."""
    jitter: float
    """Mean of the change's absolute value; nats."""


@analyzer(version=1, needs=("canary_loss",), uses=("lr", "nonfinite"))
class CanaryRise:
    """Names the regime from the first of these that holds. The batch is always the same, so what moves is the weights'
    doing, not the data's: one evaluation tells more than many training losses.

    - DIVERGING: `confirm` evaluations in a row stood above the lowest one by more than `limit_share` of it.
    - OSCILLATION: from one evaluation to the next the loss changes by more than `jitter_share` of itself in the mean,
      and all that changing brings it down by less than `progress` of it. So swings a learning rate that is too high;
      one that is too low makes a stall without swings, which is no alarm.
    - NONFINITE: the training loss or its gradient is not finite.
    - STRESSED: the last evaluation was above the limit, and one more is waited for.
    - WARMUP: there is nothing to compare with.

    The two alarms last one step and begin everything anew: after a rollback the canary is back where it was some steps
    ago, and that is no second alarm; and a rise that lasts, as after a change of data that the canary knows nothing of,
    is one alarm and not a state. A canary that stops being delivered is no evidence: after `stale_steps` the reference
    is forgotten. Evidence is the rise, or the mean change, as a share of the loss.

    >>> rule, names = CanaryRise(limit_share=0.03, confirm=2), []
    >>> state = rule.init()
    >>> for loss in [3.0, 2.5, float("nan"), 2.6, 2.6, 2.6]:
    ...     state, assessment = rule.step(state, Signals(canary_loss=loss))
    ...     names.append(Regime(assessment.regime).name)
    >>> names
    ['STABLE', 'STABLE', 'STABLE', 'STRESSED', 'DIVERGING', 'STABLE']
    """

    limit_share: float = param(
        0.02, low=0.001, high=1.0, doc="rise above the lowest, as a share of it, that counts", log=True, limit=True
    )
    confirm: int = param(2, low=1, high=20, doc="evaluations in a row that make an alarm")
    jitter_share: float = param(
        0.01, low=0.001, high=1.0, doc="mean change, as a share of the level, that is too much", log=True, limit=True
    )
    progress: float = param(0.25, low=0.0, high=1.0, doc="net fall, as a share of the mean change, that excuses it")
    jitter_evaluations: int = param(5, low=2, high=1_000, doc="evaluations that the means look back", log=True)
    forget: int = param(100, low=2, high=10_000, doc="evaluations in which a higher level is accepted", log=True)
    stale_steps: int = param(100, low=1, high=100_000, unit="steps", doc="silence after which nothing is known")

    def init(self) -> CanaryRiseState:
        """No reference."""
        return CanaryRiseState(0, 0.0, 0.0, 0, 0.0, 0.0, 0.0)

    def step(self, state: CanaryRiseState, signals: Signals) -> tuple[CanaryRiseState, Assessment]:
        """One step, mostly without an evaluation."""
        known, low, above, age_steps = state.known, state.low, state.above, state.age_steps
        previous, change, jitter = state.previous, state.change, state.jitter
        regime, evidence = int(Regime.STABLE), nan
        if signals.canary_loss == signals.canary_loss:
            loss = max(-LARGEST, min(LARGEST, signals.canary_loss))
            size = max(abs(loss), 1e-9)
            age_steps = 0
            if known == 0:
                known, low, above, change, jitter = 1, loss, 0.0, 0.0, 0.0
            else:
                known = min(known + 1, self.jitter_evaluations)
                evidence = (loss - low) / max(abs(low), 1e-9)
                far = 2.0 if evidence > 2.0 * self.limit_share else 1.0
                above = above + far if evidence > self.limit_share else 0.0
                # one leap, the fall of the first steps above all, must not own the means
                most = 5.0 * self.jitter_share * size
                moved = max(-most, min(most, loss - previous))
                change = change + (moved - change) / self.jitter_evaluations
                jitter = jitter + (abs(moved) - jitter) / self.jitter_evaluations
                low = loss if loss < low else low + (loss - low) / self.forget
            previous = loss
            if above >= self.confirm:
                regime = int(Regime.DIVERGING)
            elif (
                known >= self.jitter_evaluations
                and jitter > self.jitter_share * size
                and -change < self.progress * jitter
            ):
                regime, evidence = int(Regime.OSCILLATION), jitter / size
        else:
            age_steps = min(age_steps + 1, self.stale_steps)
            if age_steps >= self.stale_steps:
                known, low, above = 0, 0.0, 0.0
        if regime == Regime.DIVERGING or regime == Regime.OSCILLATION:
            known, low, above = 0, 0.0, 0.0
        elif signals.nonfinite == 1.0:
            regime = int(Regime.NONFINITE)
        elif above > 0.0:
            regime = int(Regime.STRESSED)
        elif known == 0:
            regime = int(Regime.WARMUP)
        return CanaryRiseState(known, low, above, age_steps, previous, change, jitter), Assessment(
            regime, evidence, signals.lr
        )
