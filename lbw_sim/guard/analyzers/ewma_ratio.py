"""The loss as a multiple of its own exponential mean."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.guard.analyzers import LARGEST
from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals, nan


class EwmaRatioState(NamedTuple):
    """The exponential mean."""

    seen: int
    """0 before the first loss, then 1."""
    mean: float


@analyzer(version=1, needs=("loss",))
class EwmaRatio:
    """SPIKE when loss / exponential mean exceeds a limit; the mean is frozen while it does (metaseq, OPT-175B).

    Evidence is that ratio, at every step: metaseq scales the learning rate by 1/ratio⁴ whenever it is above 1, alarm
    or not, which on a noisy loss is about every second step. The limit is the user's to choose there; 1.25 here.

    Known traps: frozen, the mean never accepts a level shift and the alarm stays for ever; nan never fires.

    >>> rule, state = EwmaRatio(), EwmaRatio().init()
    >>> for loss in [2.0, 2.0, 3.0]:
    ...     state, assessment = rule.step(state, Signals(loss=loss))
    >>> Regime(assessment.regime).name, assessment.evidence
    ('SPIKE', 1.5)
    """

    span_steps: int = param(
        9, low=1, high=10_000, unit="steps", doc="span of the mean: it gains 2/(span + 1)", log=True
    )
    limit: float = param(
        1.25, low=1.001, high=10.0, doc="ratio above which it alarms and the mean is frozen", limit=True
    )

    def init(self) -> EwmaRatioState:
        """Nothing seen."""
        return EwmaRatioState(0, 0.0)

    def step(self, state: EwmaRatioState, signals: Signals) -> tuple[EwmaRatioState, Assessment]:
        """One loss; a missing one changes nothing."""
        loss = signals.loss
        ratio = loss / state.mean if state.seen > 0 and state.mean > 0.0 else nan
        regime = int(Regime.SPIKE) if ratio > self.limit else int(Regime.STABLE)
        if not (-LARGEST <= loss <= LARGEST) or regime == Regime.SPIKE:
            return state, Assessment(regime, ratio)
        mean = state.mean + 2.0 / (self.span_steps + 1.0) * (loss - state.mean) if state.seen > 0 else loss
        return EwmaRatioState(1, mean), Assessment(regime, ratio)
