"""CUSUM: small evidence, added up."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals


class CusumState(NamedTuple):
    """The sum, the steps seen and the steps for which the alarm is held."""

    steps: int
    total: float
    hold: int


@analyzer(version=1, needs=("loss_z",), uses=("nonfinite",))
class Cusum:
    """Accumulates evidence that the loss stands above its own trend (Page 1954).

    total ← max(0, total + min(z, clip) - drift); DIVERGING when total exceeds the limit, then the sum starts afresh.
    For independent normal residuals, drift 0.5 and limit 5 give a false alarm every 930 steps; autocorrelated noise
    gives many more, so take the limit from recorded stable traces.

    >>> rule, state = Cusum(limit_sd=10.0, warmup_steps=0), Cusum().init()
    >>> regimes = []
    >>> for z in [0.0, 3.0, 3.0, 3.0, 3.0, 3.0]:
    ...     state, assessment = rule.step(state, Signals(loss_z=z))
    ...     regimes.append(Regime(assessment.regime).name)
    >>> regimes.index("DIVERGING")
    5
    """

    drift_sd: float = param(0.75, low=0.0, high=4.0, unit="sd", doc="slack subtracted at every step")
    limit_sd: float = param(
        15.0, low=1.0, high=200.0, unit="sd", doc="sum at which the alarm is raised", log=True, limit=True
    )
    clip_sd: float = param(4.0, low=1.0, high=50.0, unit="sd", doc="most that one step can add", log=True)
    hold_steps: int = param(10, low=1, high=1_000, unit="steps", doc="how long an alarm is held", log=True)
    warmup_steps: int = param(30, low=0, high=10_000, unit="steps", doc="steps without a judgement")

    def init(self) -> CusumState:
        """No evidence."""
        return CusumState(0, 0.0, 0)

    def step(self, state: CusumState, signals: Signals) -> tuple[CusumState, Assessment]:
        """One residual; a missing one adds nothing."""
        steps = min(state.steps + 1, self.warmup_steps + 1)
        hold = max(0, state.hold - 1)
        if signals.nonfinite == 1.0:
            return CusumState(steps, state.total, hold), Assessment(int(Regime.NONFINITE), signals.nonfinite)
        if steps <= self.warmup_steps:
            return CusumState(steps, 0.0, 0), Assessment(int(Regime.WARMUP))
        total = state.total
        if signals.loss_z == signals.loss_z:
            total = max(0.0, total + max(-self.clip_sd, min(self.clip_sd, signals.loss_z)) - self.drift_sd)
        evidence = total
        if total > self.limit_sd:
            hold = self.hold_steps
            total = 0.0
        regime = int(Regime.DIVERGING) if hold > 0 else int(Regime.STABLE)
        return CusumState(steps, total, hold), Assessment(regime, evidence)
