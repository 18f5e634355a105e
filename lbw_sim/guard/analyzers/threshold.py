"""One limit on the loss's z-score: the alert that most logging services offer."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals


class ThresholdState(NamedTuple):
    """Steps left for which the alarm is held."""

    steps: int
    hold: int


@analyzer(version=1, needs=("loss_z",), uses=("nonfinite",))
class Threshold:
    """SPIKE while the z-score is above a limit and for a few steps after, so that one event is one alarm.

    >>> rule = Threshold(limit_sd=4.0, warmup_steps=0)
    >>> rule.step(rule.init(), Signals(loss_z=4.5))[1].regime == Regime.SPIKE
    True
    """

    limit_sd: float = param(
        3.0, low=1.0, high=20.0, unit="sd", doc="z-score above which the loss is a spike", limit=True
    )
    hold_steps: int = param(10, low=1, high=1_000, unit="steps", doc="how long an alarm is held", log=True)
    warmup_steps: int = param(30, low=0, high=10_000, unit="steps", doc="steps without a judgement")

    def init(self) -> ThresholdState:
        """No alarm."""
        return ThresholdState(0, 0)

    def step(self, state: ThresholdState, signals: Signals) -> tuple[ThresholdState, Assessment]:
        """One z-score."""
        steps = min(state.steps + 1, self.warmup_steps + 1)
        hold = max(0, state.hold - 1)
        if signals.nonfinite == 1.0:
            return ThresholdState(steps, hold), Assessment(int(Regime.NONFINITE), signals.nonfinite)
        if steps <= self.warmup_steps:
            return ThresholdState(steps, 0), Assessment(int(Regime.WARMUP))
        if signals.loss_z > self.limit_sd:
            hold = self.hold_steps
        regime = int(Regime.SPIKE) if hold > 0 else int(Regime.STABLE)
        return ThresholdState(steps, hold), Assessment(regime, signals.loss_z)
