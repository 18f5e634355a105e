"""ZClip's test: a z-score against exponential moments that never see the outlier itself."""

from __future__ import annotations

import math
from typing import NamedTuple

from lbw_sim.guard.analyzers import GRAD_NORM, LARGEST, channel_param, watched
from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals

# what the source adds to the sd before it divides
EPSILON = 1e-6


class EmaOutlierState(NamedTuple):
    """Running moments."""

    seen: int
    """Values so far; stops counting after the warm-up."""
    mean: float
    spread: float
    """During the warm-up the sum of squared deviations, then the variance."""


@analyzer(version=1, uses=("loss", "grad_norm", "update_norm", "nonfinite"))
class EmaOutlier:
    """SPIKE when z = (value - mean) / sd exceeds a limit; the moments are fed the clipped value (arXiv 2504.02507).

    The first `warmup_steps` values give plain mean and variance; from then on both are exponential with factor `keep`.
    A value beyond the limit counts as mean + limit_sd · sd · (limit_sd / z): the further out, the less. Evidence is the
    value over what it is clipped to, 1 when it is not.

    Known traps: the limit of 2.5 sd clips a Gaussian on 0.62 % of steps; fed its own clipped values, the variance
    follows a lasting change slowly.

    >>> rule = EmaOutlier(warmup_steps=4)
    >>> state = rule.init()
    >>> for norm in [1.0, 1.1, 1.0, 1.1, 2.0]:
    ...     state, assessment = rule.step(state, Signals(grad_norm=norm))
    >>> Regime(assessment.regime).name, assessment.evidence > 1.5
    ('SPIKE', True)
    """

    channel: int = channel_param(GRAD_NORM)
    warmup_steps: int = param(25, low=2, high=10_000, unit="steps", doc="values that start the moments", log=True)
    keep: float = param(0.97, low=0.5, high=0.9999, doc="part of the moments that stays at each value (α)")
    limit_sd: float = param(
        2.5, low=1.0, high=20.0, unit="sd", doc="z-score above which the value is clipped", limit=True
    )
    nonfinite_fires: int = param(1, low=0, high=1, doc="1: a loss or gradient that is nan or infinite is an alarm")

    def init(self) -> EmaOutlierState:
        """Nothing seen."""
        return EmaOutlierState(0, 0.0, 0.0)

    def step(self, state: EmaOutlierState, signals: Signals) -> tuple[EmaOutlierState, Assessment]:
        """One value; one that is missing or not finite leaves the moments alone."""
        value = watched(signals, self.channel)
        if self.nonfinite_fires == 1 and signals.nonfinite == 1.0:
            return state, Assessment(int(Regime.NONFINITE), signals.nonfinite)
        if not (-LARGEST <= value <= LARGEST):
            return state, Assessment(int(Regime.STABLE))
        mean, spread = state.mean, state.spread
        if state.seen < self.warmup_steps:
            seen = state.seen + 1
            away = value - mean
            mean = mean + away / seen
            spread = spread + away * (value - mean)
            if seen == self.warmup_steps:
                spread = spread / seen
            return EmaOutlierState(seen, mean, spread), Assessment(int(Regime.WARMUP))
        sd = math.sqrt(spread)
        z = (value - mean) / (sd + EPSILON)
        regime, evidence = int(Regime.STABLE), 1.0
        if z > self.limit_sd:
            clipped = mean + self.limit_sd * sd * (self.limit_sd / z)
            regime = int(Regime.SPIKE)
            evidence = value / clipped if clipped > 0.0 else 1.0
            value = clipped
        mean = self.keep * mean + (1.0 - self.keep) * value
        spread = self.keep * spread + (1.0 - self.keep) * (value - mean) * (value - mean)
        return EmaOutlierState(state.seen, mean, spread), Assessment(regime, evidence)
