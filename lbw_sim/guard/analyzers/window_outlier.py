"""The newest value against mean and standard deviation of a trailing window: the rule that most code bases have."""

from __future__ import annotations

import math
from typing import NamedTuple

from lbw_sim.guard.analyzers import LARGEST, LOSS, channel_param, watched
from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals


class WindowOutlierState(NamedTuple):
    """The last values, oldest first."""

    window: tuple[float, ...]
    """The last `filled` entries are values; those before them, 0."""
    filled: int


@analyzer(version=1, uses=("loss", "grad_norm", "update_norm", "nonfinite"))
class WindowOutlier:
    """SPIKE when value - mean > limit_sd · sd of the last `window_steps` values.

    The published rules differ in window, limit, whether the sd is unbiased, whether it has a floor, whether the value
    itself is in its window, and how they take nan; the defaults are those of OLMo-core's skip step. Evidence is the
    value over its limit (mean + limit_sd · sd).

    Known traps: an outlier stays in the window and hides the next ones; the trend of a falling loss inflates the sd; a
    constant window has sd 0 and then anything fires; with the value in its own window of n, z cannot exceed √(n - 1).
    The sources keep a nan in the window, which makes every comparison false until it has left; here it is not kept.

    >>> rule = WindowOutlier(window_steps=8, min_count=4)
    >>> state = rule.init()
    >>> for loss in [2.0, 2.1, 2.0, 2.1, 2.0, 2.1, 9.0]:
    ...     state, assessment = rule.step(state, Signals(loss=loss))
    >>> Regime(assessment.regime).name
    'SPIKE'
    """

    channel: int = channel_param(LOSS)
    window_steps: int = param(128, low=2, high=10_000, unit="steps", doc="length of the window", log=True)
    min_count: int = param(
        64, low=2, high=10_000, doc="values that the window must hold; at most a full window is asked for", log=True
    )
    limit_sd: float = param(
        6.0, low=1.0, high=20.0, unit="sd", doc="distance from the mean that is a spike", limit=True
    )
    unbiased: int = param(1, low=0, high=1, doc="1: sum of squares over n - 1; 0: over n")
    floor_sd: float = param(0.0, low=0.0, high=1.0, doc="least standard deviation, in units of the channel")
    include_current: int = param(0, low=0, high=1, doc="1: the value counts in its own window")
    two_sided: int = param(0, low=0, high=1, doc="1: a fall counts like a rise")
    nonfinite_fires: int = param(1, low=0, high=1, doc="1: a loss or gradient that is nan or infinite is an alarm")

    def init(self) -> WindowOutlierState:
        """An empty window."""
        return WindowOutlierState((0.0,) * self.window_steps, 0)

    def step(self, state: WindowOutlierState, signals: Signals) -> tuple[WindowOutlierState, Assessment]:
        """One value; a missing one leaves the window alone."""
        value = watched(signals, self.channel)
        if self.nonfinite_fires == 1 and signals.nonfinite == 1.0:
            return state, Assessment(int(Regime.NONFINITE), signals.nonfinite)
        if value != value:
            return state, Assessment(int(Regime.STABLE))
        joins = 1 if self.include_current == 1 and -LARGEST <= value <= LARGEST else 0
        # a value that joins pushes out the oldest of a full window
        kept = min(state.filled, self.window_steps - joins)
        count = kept + joins
        after = state
        if -LARGEST <= value <= LARGEST:
            window = state.window[1:] + (value,)  # noqa: RUF005 (the form that the compiled engine knows)
            after = WindowOutlierState(window, min(state.filled + 1, self.window_steps))
        if count < min(self.min_count, self.window_steps):
            return after, Assessment(int(Regime.WARMUP))
        total = 0.0
        for i in range(self.window_steps - kept, self.window_steps):
            total = total + state.window[i]
        mean = (total + value) / count if joins == 1 else total / count
        squares = 0.0
        for i in range(self.window_steps - kept, self.window_steps):
            squares = squares + (state.window[i] - mean) * (state.window[i] - mean)
        if joins == 1:
            squares = squares + (value - mean) * (value - mean)
        sd = max(math.sqrt(squares / (count - self.unbiased)), self.floor_sd)
        above = value - mean
        if self.two_sided == 1:
            above = abs(above)
        limit = mean + self.limit_sd * sd
        evidence = value / limit if limit > 0.0 else 0.0
        regime = int(Regime.SPIKE) if above > self.limit_sd * sd else int(Regime.STABLE)
        return after, Assessment(regime, evidence)
