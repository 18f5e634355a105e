"""Gradient clipping by the total norm (Pascanu et al., arXiv 1211.5063): nearly everybody's first measure."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from lbw_sim.stress.method import Ask, Fitting, Method, Workplace


class _Clip(NamedTuple):
    place: Workplace
    norm: float

    def act(self, step: int, loss: float) -> float:
        nn.utils.clip_grad_norm_(self.place.parameters, self.norm)
        return 1.0


def _fit(ask: Ask) -> Fitting:
    norm = ask.number(1.0, 1e-6, 1e6, "largest gradient norm")
    return Fitting(hand=lambda place: _Clip(place, norm))


METHOD = Method(
    name="clip", about="gradient scaled to a total norm at most", argument="the largest norm (1.0)", fit=_fit
)
