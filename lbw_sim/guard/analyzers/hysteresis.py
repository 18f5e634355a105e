"""The default analyzer: thresholds on robust loss signals, with hysteresis and a minimum dwell."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals, nan


class HysteresisState(NamedTuple):
    """Where the run is and how long it has been there."""

    steps: int
    regime: int
    dwell: int
    """Steps spent in the regime."""
    hot: float
    """Recent steps with a z-score above the spike limit, older ones fading."""
    high: int
    """Steps for which the level has stood high; falls twice as fast as it rises."""


@analyzer(version=1, needs=("loss_z", "loss_rise"), uses=("loss_trend", "oscillation", "grad_ratio", "nonfinite"))
class Hysteresis:
    """Names the regime from amplitude (SPIKE), persistence (DIVERGING, PLATEAU), swings and gradient growth.

    A single outlier is nobody's spike: two hot steps close together are needed. An unsafe regime is left when the
    level is back below `exit_fraction` of the limit that raised it, after `dwell_steps` at least, by way of RECOVERY.
    A signal that is nan neither raises nor holds an alarm.

    >>> rule, state = Hysteresis(warmup_steps=0), Hysteresis().init()
    >>> names = []
    >>> for z in [0.0, 9.0, 9.0, 0.0]:
    ...     state, assessment = rule.step(state, Signals(loss_z=z, loss_rise=0.0, nonfinite=0.0))
    ...     names.append(Regime(assessment.regime).name)
    >>> names
    ['STABLE', 'STABLE', 'SPIKE', 'SPIKE']
    """

    warmup_steps: int = param(20, low=0, high=10_000, unit="steps", doc="steps without a judgement")
    spike_sd: float = param(6.0, low=2.0, high=30.0, unit="sd", doc="z-score of a hot step", log=True)
    stress_sd: float = param(5.0, low=1.0, high=50.0, unit="sd", doc="rise of the level that is stress", log=True)
    diverge_sd: float = param(8.0, low=1.0, high=100.0, unit="sd", doc="rise of the level that is divergence", log=True)
    diverge_steps: int = param(12, low=1, high=1_000, unit="steps", doc="how long the level must stand high", log=True)
    oscillation_share: float = param(0.2, low=0.02, high=1.0, doc="share of swinging steps that is oscillation")
    grad_limit: float = param(
        4.0, low=1.1, high=100.0, doc="recent over long-run gradient norm that is divergence", log=True
    )
    exit_fraction: float = param(0.5, low=0.1, high=1.0, doc="part of the limit below which an alarm ends")
    dwell_steps: int = param(10, low=1, high=1_000, unit="steps", doc="least time in an unsafe regime", log=True)
    recovery_steps: int = param(20, low=0, high=1_000, unit="steps", doc="time from safe to stable")

    def init(self) -> HysteresisState:
        """Nothing seen."""
        return HysteresisState(0, int(Regime.WARMUP), 0, 0.0, 0)

    def step(self, state: HysteresisState, signals: Signals) -> tuple[HysteresisState, Assessment]:
        """One step's signals."""
        steps = min(state.steps + 1, self.warmup_steps + 1)
        hot = 0.8 * state.hot + (1.0 if signals.loss_z > self.spike_sd else 0.0)
        now = state.regime
        unsafe = now != Regime.WARMUP and now != Regime.STABLE and now != Regime.RECOVERY
        level_limit = self.stress_sd * self.exit_fraction if unsafe else self.stress_sd
        is_high = signals.loss_rise > level_limit
        high = min(state.high + 1, 10 * self.diverge_steps) if is_high else max(0, state.high - 2)

        regime, evidence = int(Regime.STABLE), signals.loss_rise
        if signals.nonfinite == 1.0:
            regime, evidence = int(Regime.NONFINITE), signals.nonfinite
        elif steps <= self.warmup_steps:
            regime, evidence, hot, high = int(Regime.WARMUP), nan, 0.0, 0
        elif hot > 1.5:
            regime, evidence = int(Regime.SPIKE), signals.loss_z
        elif signals.grad_ratio > self.grad_limit:
            regime, evidence = int(Regime.DIVERGING), signals.grad_ratio
        elif high >= self.diverge_steps and signals.loss_rise > self.diverge_sd:
            regime = int(Regime.DIVERGING) if signals.loss_trend > 0.0 else int(Regime.PLATEAU)
        elif signals.oscillation > self.oscillation_share:
            regime, evidence = int(Regime.OSCILLATION), signals.oscillation
        elif is_high:
            regime = int(Regime.STRESSED)

        if regime == Regime.STABLE and unsafe:
            # NONFINITE is a fact about one step: a policy that skips on it must not skip the healthy ones after
            stays = state.dwell < self.dwell_steps and now != Regime.NONFINITE
            regime = now if stays else int(Regime.RECOVERY)
        elif regime == Regime.STABLE and now == Regime.RECOVERY and state.dwell < self.recovery_steps:
            regime = now
        dwell = min(state.dwell + 1, 1_000_000) if regime == now else 1
        return HysteresisState(steps, regime, dwell, hot, high), Assessment(regime, evidence)
