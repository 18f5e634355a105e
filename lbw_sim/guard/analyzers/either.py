"""A wrapper: the alarm of whichever of two analyzers raises one."""

from __future__ import annotations

from typing import Any, NamedTuple

from lbw_sim.guard.analyzers import GRAD_NORM
from lbw_sim.guard.analyzers.window_outlier import WindowOutlier
from lbw_sim.guard.guard import Analyzer
from lbw_sim.params import analyzer, part
from lbw_sim.values import Assessment, Regime, Signals, is_unsafe


class EitherState(NamedTuple):
    """Both inner states."""

    first: Any
    second: Any


@analyzer(version=1)
class Either:
    """The first analyzer's regime when it is unsafe, else the second's when that is, else the first's.

    NONFINITE from either wins. While the first is warming up, what the second says counts. By default OLMo-core's skip
    step: the loss or the gradient norm stands out of its window. A channel that is not measured raises no alarm, so a
    run without gradient norms is judged by its loss alone.

    >>> rule = Either()
    >>> state = rule.init()
    >>> for norm in [1.0, 1.1] * 40 + [30.0]:
    ...     state, assessment = rule.step(state, Signals(loss=2.0, grad_norm=norm))
    >>> Regime(assessment.regime).name
    'SPIKE'
    """

    first: Analyzer = part(WindowOutlier, doc="the analyzer that is asked first")
    second: Analyzer = part(lambda: WindowOutlier(channel=GRAD_NORM), doc="the other one")

    def init(self) -> EitherState:
        """Both starts."""
        return EitherState(self.first.init(), self.second.init())

    def step(self, state: EitherState, signals: Signals) -> tuple[EitherState, Assessment]:
        """Ask both: each has a memory to keep."""
        first, one = self.first.step(state.first, signals)
        second, other = self.second.step(state.second, signals)
        regime, evidence = one.regime, one.evidence
        overruled = not is_unsafe(regime) and is_unsafe(other.regime)
        if other.regime == Regime.NONFINITE or overruled or regime == Regime.WARMUP:
            regime, evidence = other.regime, other.evidence
        return EitherState(first, second), Assessment(regime, evidence)
