"""One analyzer per file; the registry scans this folder. What several of them share stands here."""

from __future__ import annotations

from typing import Any

from lbw_sim.params import param
from lbw_sim.values import Signals

LARGEST = 1e150
"""A value beyond this is not kept in any history: its square would leave float64."""

LOSS, GRAD_NORM, UPDATE_NORM = 0, 1, 2
"""What an analyzer with a parameter `channel` can watch; a parameter is a number, so that it can be searched."""


def channel_param(default: int) -> Any:  # Any: as of `param`
    """Declare which of them an analyzer watches. Another channel makes another rule, so a search leaves it alone."""
    doc = "what is watched: 0 the loss, 1 the gradient norm, 2 the update norm"
    return param(default, low=LOSS, high=UPDATE_NORM, doc=doc, choice=True)


def watched(signals: Signals, channel: int) -> float:
    """The value of the channel that the number names."""
    if channel == GRAD_NORM:
        return signals.grad_norm
    if channel == UPDATE_NORM:
        return signals.update_norm
    return signals.loss
