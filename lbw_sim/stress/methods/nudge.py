"""AdamW at a learning rate a thousandth lower: how far two runs part that differ in nothing that matters.

A control for all others, and no help: what a method changes by less than this on one seed, it may have changed by
chance.
"""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.stress.method import Ask, Fitting, Method


class _Nudge(NamedTuple):
    factor: float

    def act(self, step: int, loss: float) -> float:
        return self.factor


def _fit(ask: Ask) -> Fitting:
    nudge = _Nudge(1.0 - ask.number(0.001, 1e-6, 0.1, "share of the learning rate"))
    return Fitting(hand=lambda place: nudge)


METHOD = Method(
    name="nudge",
    about="AdamW at a learning rate a thousandth lower: what chance alone changes",
    argument="share by which the learning rate is lower (0.001)",
    fit=_fit,
)
