"""The controls of a doubting reader: was it the guard's feedback, or only a lower learning rate at some time?

Each takes a guarded run's scales, or a number, and looks at no loss. AdamW at the guarded run's mean effective learning
rate needs no method: `controls.same_mean_lr` gives the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lbw_sim.errors import StressError
from lbw_sim.stress.method import Ask, Fitting, Method


class _Playback(NamedTuple):
    scales: tuple[float, ...]

    def act(self, step: int, loss: float) -> float:
        return self.scales[step]


def _played(change: Callable[[Ask], tuple[float, ...]]) -> Callable[[Ask], Fitting]:
    def fit(ask: Ask) -> Fitting:
        scales = change(ask)
        return Fitting(hand=lambda place: _Playback(scales))

    return fit


def _scales(ask: Ask) -> tuple[float, ...]:
    if not ask.scales:
        raise StressError("an open-loop control needs the scales of a guarded run: give the plan scales=flown.scales")
    return ask.scales


def _frozen(ask: Ask) -> tuple[float, ...]:
    if not ask.argument:
        return (min(_scales(ask)),) * ask.steps
    return (ask.number(1.0, 1e-6, 1.0, "scale"),) * ask.steps


def turned(scales: tuple[float, ...], seed: int) -> tuple[float, ...]:
    """The scales, turned round the clock by a random number of steps, at least one: same episodes, same energy.

    >>> turned((0.5, 0.6, 0.7), seed=0)
    (0.6, 0.7, 0.5)
    """
    shift = int(np.random.default_rng(seed).integers(1, max(2, len(scales))))
    return scales[-shift:] + scales[:-shift]


PLAYBACK = Method(
    name="playback", about="the guarded run's own scales, without the feedback", control=True, fit=_played(_scales)
)
FROZEN_FLOOR = Method(
    name="frozen_floor",
    about="the guarded run's lowest scale, from the first step to the last",
    argument="the scale (the lowest of the plan's scales)",
    control=True,
    fit=_played(_frozen),
)
RANDOM_DAMPING = Method(
    name="random_damping",
    about="the guarded run's scales at random times: the same control energy",
    control=True,
    fit=_played(lambda ask: turned(_scales(ask), ask.seed)),
)
UNTOUCHED = Method(
    name="untouched", about="the model as it came, without a step", control=True, fit=lambda ask: Fitting(trains=False)
)
