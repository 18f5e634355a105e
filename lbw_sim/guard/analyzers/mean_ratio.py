"""The loss against the mean of its last values, as a ratio."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.guard.analyzers import LARGEST
from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals


class MeanRatioState(NamedTuple):
    """The last losses, oldest first."""

    window: tuple[float, ...]
    """The last `filled` entries are losses; those before them, 0."""
    filled: int
    previous: float
    """The loss before this one, whether it is in the window or not."""


@analyzer(version=1, needs=("loss",), uses=("nonfinite",))
class MeanRatio:
    """SPIKE when loss - mean ≥ excess · mean of the last `window_steps` losses, the current one excluded.

    The defaults are those of Lightning's SpikeDetection, which asks for a rise as well. With a window of 1 it is the
    ratio to the previous loss (InternEvo), with `keep_alarmed` = 0 to the last accepted one (FlagScale). Evidence is
    the loss over its limit.

    Known traps: blind to any spike that is small beside the loss itself (+0.06 on a loss of 2); with `keep_alarmed` = 0
    a level shift alarms for ever. The ratio means nothing for a loss that can be 0 or negative: no alarm then.

    >>> rule, state = MeanRatio(window_steps=2, excess=0.5), MeanRatio(window_steps=2).init()
    >>> for loss in [2.0, 2.0, 3.5]:
    ...     state, assessment = rule.step(state, Signals(loss=loss))
    >>> Regime(assessment.regime).name
    'SPIKE'
    """

    window_steps: int = param(10, low=1, high=10_000, unit="steps", doc="length of the window", log=True)
    min_count: int = param(
        1, low=1, high=10_000, doc="losses that the window must hold; at most a full window is asked for", log=True
    )
    excess: float = param(2.0, low=0.01, high=100.0, doc="rise above the mean, as a part of it", log=True, limit=True)
    must_rise: int = param(1, low=0, high=1, doc="1: the loss must also be above the one before it")
    keep_alarmed: int = param(1, low=0, high=1, doc="1: a loss that raised the alarm enters the window too")
    nonfinite_fires: int = param(1, low=0, high=1, doc="1: a loss or gradient that is nan or infinite is an alarm")

    def init(self) -> MeanRatioState:
        """An empty window."""
        return MeanRatioState((0.0,) * self.window_steps, 0, 0.0)

    def step(self, state: MeanRatioState, signals: Signals) -> tuple[MeanRatioState, Assessment]:
        """One loss; a missing one leaves the window alone."""
        loss = signals.loss
        if self.nonfinite_fires == 1 and signals.nonfinite == 1.0:
            return state, Assessment(int(Regime.NONFINITE), signals.nonfinite)
        if loss != loss:
            return state, Assessment(int(Regime.STABLE))
        ready = state.filled >= min(self.min_count, self.window_steps)
        regime = int(Regime.STABLE) if ready else int(Regime.WARMUP)
        evidence = 0.0
        if ready:
            total = 0.0
            for i in range(self.window_steps - state.filled, self.window_steps):
                total = total + state.window[i]
            mean = total / state.filled
            if mean > 0.0:
                evidence = loss / (mean + self.excess * mean)
                if loss - mean >= self.excess * mean and (self.must_rise == 0 or loss > state.previous):
                    regime = int(Regime.SPIKE)
        if not (-LARGEST <= loss <= LARGEST):
            return state, Assessment(regime, evidence)
        if regime == Regime.SPIKE and self.keep_alarmed == 0:
            return MeanRatioState(state.window, state.filled, loss), Assessment(regime, evidence)
        filled = min(state.filled + 1, self.window_steps)
        window = state.window[1:] + (loss,)  # noqa: RUF005 (the form that the compiled engine knows)
        return MeanRatioState(window, filled, loss), Assessment(regime, evidence)
