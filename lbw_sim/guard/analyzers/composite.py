"""The default analyzer: five simple detectors side by side, one alarm.

Each looks for what the others miss. An alarm is held for a few rows, so that one event is one alarm; what goes on for
long is tolerated, so that no alarm latches on it. It does not judge its own strength: docs/results does.
"""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals, nan

LARGEST = 1e12
"""Most that is tolerated: the state stays finite."""


class CompositeState(NamedTuple):
    """What is remembered from row to row."""

    regime: int
    hot: float
    """Steps for which the residual has lately been above the spike limit."""
    hold: int
    """Rows for which the alarm is still held."""
    alarm_rows: int
    """Rows since the alarm began, or since it was last tolerated."""
    spiked: int
    """1: this alarm has held a spike."""
    tolerated_rise: float
    """Rise of the level that has lasted and is accepted; falls with the rise."""
    tolerated_ratio: float
    """The same for the gradient norm."""
    tolerated_oscillation: float
    """The same for the share of swinging rows."""
    recovery: int
    """Rows left before a recovery counts as stable."""


@analyzer(
    version=1,
    needs=("loss_z", "loss_rise"),
    uses=("loss_trend", "loss_rebound", "cadence_steps", "oscillation", "grad_ratio", "nonfinite"),
)
class Composite:
    """Names the regime from the first of these that holds:

    - NONFINITE: the step's loss or gradient is not finite. STRESSED while that alarm is held.
    - SPIKE: `loss_z` above `spike_sd` for `spike_steps` steps, fewer when it is far above. Steps, not rows: one row of
      a sparse log is enough.
    - DIVERGING: the gradient norm has grown to `grad_limit` times its long-run mean; or at the start of the run the
      loss gives back `rebound_share` of its fall.
    - DIVERGING, STRESSED or PLATEAU: the slow level has risen by `rise_sd`; it still rises, it does not, or it is what
      a spike of more than `plateau_rows` rows ago has left.
    - OSCILLATION: `oscillation_share` of recent rows swing from one side to the other.

    While an alarm is held, and none of these is the case, the last regime stands. After `tolerate_rows` the present
    rise, gradient norm and share of swings are accepted: only more of it is a new alarm. Spikes are not: a loss that
    goes on leaping stays in alarm, and it is the envelope that ends the damping. A signal that is nan is no evidence.

    >>> rule, state = Composite(), Composite().init()
    >>> names = []
    >>> for z in [0.0, 5.0, 5.0, 5.0, 0.0]:
    ...     state, assessment = rule.step(state, Signals(loss_z=z, loss_rise=0.0, cadence_steps=1.0, nonfinite=0.0))
    ...     names.append(Regime(assessment.regime).name)
    >>> names
    ['STABLE', 'STABLE', 'STABLE', 'SPIKE', 'SPIKE']
    """

    spike_sd: float = param(4.8, low=2.0, high=30.0, unit="sd", doc="residual that is hot", log=True, limit=True)
    spike_steps: float = param(3.0, low=1.0, high=100.0, unit="steps", doc="hot steps that are a spike", log=True)
    rise_sd: float = param(
        2.3, low=0.5, high=50.0, unit="sd", doc="rise of the slow level that is an alarm", log=True, limit=True
    )
    plateau_rows: int = param(
        40, low=1, high=10_000, unit="rows", doc="age at which what a spike left is a plateau", log=True
    )
    grad_limit: float = param(
        2.0, low=1.05, high=100.0, doc="recent over long-run gradient norm that is an alarm", log=True, limit=True
    )
    rebound_share: float = param(
        0.25, low=0.01, high=10.0, doc="share of the first fall given back that is an alarm", log=True, limit=True
    )
    oscillation_share: float = param(0.2, low=0.02, high=1.0, doc="share of swinging rows that is an alarm", limit=True)
    hold_rows: int = param(5, low=1, high=1_000, unit="rows", doc="how long an alarm is held", log=True)
    tolerate_rows: int = param(
        80, low=2, high=100_000, unit="rows", doc="age at which an alarm's cause is accepted", log=True
    )
    recovery_rows: int = param(20, low=0, high=10_000, unit="rows", doc="from the end of an alarm to stable")

    def init(self) -> CompositeState:
        """Nothing seen."""
        return CompositeState(int(Regime.WARMUP), 0.0, 0, 0, 0, 0.0, 0.0, 0.0, 0)

    def step(self, state: CompositeState, signals: Signals) -> tuple[CompositeState, Assessment]:
        """One row of signals."""
        rise, ratio = signals.loss_rise, signals.grad_ratio
        hot = 0.5 * state.hot
        if signals.loss_z > self.spike_sd:
            cadence = signals.cadence_steps if signals.cadence_steps >= 1.0 else 1.0
            # a residual of twice the limit is worth two steps of waiting
            weight = min(cadence, self.spike_steps) * (signals.loss_z / self.spike_sd)
            hot = min(state.hot + weight, 2.0 * self.spike_steps)
        tolerated_rise = max(0.0, rise) if rise < state.tolerated_rise else state.tolerated_rise
        tolerated_ratio = max(0.0, ratio) if ratio < state.tolerated_ratio else state.tolerated_ratio
        swings = signals.oscillation
        tolerated_oscillation = (
            max(0.0, swings) if swings < state.tolerated_oscillation else state.tolerated_oscillation
        )
        starting = signals.loss_rebound >= 0.0
        spiked = state.spiked

        sign, evidence = -1, nan
        if signals.nonfinite == 1.0:
            # shown as NONFINITE on this step only: a policy that skips on it must not skip the healthy ones after
            sign, evidence = int(Regime.STRESSED), signals.nonfinite
        elif starting:
            if signals.loss_rebound > self.rebound_share:
                sign, evidence = int(Regime.DIVERGING), signals.loss_rebound
        elif hot >= self.spike_steps:
            sign, evidence, spiked = int(Regime.SPIKE), signals.loss_z, 1
        elif ratio > self.grad_limit * max(1.0, tolerated_ratio):
            sign, evidence = int(Regime.DIVERGING), ratio
        elif rise > self.rise_sd + tolerated_rise:
            evidence = rise
            if signals.loss_trend > 0.0:
                sign = int(Regime.DIVERGING)
            elif spiked == 1 and state.alarm_rows >= self.plateau_rows:
                sign = int(Regime.PLATEAU)
            else:
                sign = int(Regime.STRESSED)
        elif swings > self.oscillation_share + tolerated_oscillation:
            sign, evidence = int(Regime.OSCILLATION), swings

        hold = self.hold_rows if sign >= 0 else max(0, state.hold - 1)
        alarm_rows = 0
        if hold > 0:
            alarm_rows = state.alarm_rows + 1
            if alarm_rows >= self.tolerate_rows:
                # it has lasted: from here on only more of it is news
                tolerated_rise = min(rise, LARGEST) if rise > tolerated_rise else tolerated_rise
                tolerated_ratio = min(ratio, LARGEST) if ratio > tolerated_ratio else tolerated_ratio
                tolerated_oscillation = (
                    min(swings, LARGEST) if swings > tolerated_oscillation else tolerated_oscillation
                )
                alarm_rows = 0
                hold = hold if sign == Regime.SPIKE else 0

        recovery = max(0, state.recovery - 1)
        if hold > 0:
            regime = sign if sign >= 0 else state.regime
            recovery = self.recovery_rows
        else:
            spiked = 0
            calm = int(Regime.WARMUP) if starting else int(Regime.STABLE)
            regime = int(Regime.RECOVERY) if state.recovery > 0 else calm
        shown = int(Regime.NONFINITE) if signals.nonfinite == 1.0 else regime
        return (
            CompositeState(
                regime, hot, hold, alarm_rows, spiked, tolerated_rise, tolerated_ratio, tolerated_oscillation, recovery
            ),
            Assessment(shown, evidence),
        )
