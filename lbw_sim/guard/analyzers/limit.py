"""A fixed limit on one channel."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.guard.analyzers import GRAD_NORM, channel_param, watched
from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals


class LimitState(NamedTuple):
    """Nothing to remember."""


@analyzer(version=1, uses=("loss", "grad_norm", "update_norm"))
class Limit:
    """SPIKE while a channel is above a fixed limit; by default the gradient norm above 1, as in clipping.

    Evidence is the value over the limit. Known trap: many healthy runs are above it at every step.

    >>> Limit(limit=0.5).step(Limit().init(), Signals(grad_norm=2.0))[1].evidence
    4.0
    """

    channel: int = channel_param(GRAD_NORM)
    limit: float = param(
        1.0, low=1e-6, high=1e6, doc="largest value that is in order, in the channel's unit", log=True, limit=True
    )

    def init(self) -> LimitState:
        """Empty."""
        return LimitState()

    def step(self, state: LimitState, signals: Signals) -> tuple[LimitState, Assessment]:
        """One value; a missing one is no alarm."""
        value = watched(signals, self.channel)
        regime = int(Regime.SPIKE) if value > self.limit else int(Regime.STABLE)
        return state, Assessment(regime, value / self.limit)
