"""SPAM (arXiv 2501.06842): single elements whose square is far above Adam's memory are clipped; moments are reset.

Where g² > 5000 v the element becomes sign(g) √(5000 v), v being the second moment before this step; not in the first 20
steps of a memory, which is too young to be trusted, nor where it is 0. Every 500 steps the moments start again, and the
learning rate comes back over 150 steps from 1 % of itself, along a cosine. A run below 500 steps sees no reset unless
the argument asks for one; the way back is then 0.3 of it, as in the source.
"""

from __future__ import annotations

import math

import torch

from lbw_sim.stress.method import Ask, Fitting, Method, Workplace

THRESHOLD = 5000.0
RESET_STEPS, RETURN_SHARE, LEAST_SHARE = 500, 0.3, 0.01
GRACE_STEPS = 20


class _Spam:
    def __init__(self, place: Workplace, reset_steps: int) -> None:
        self._place, self._reset_steps = place, reset_steps
        self._return_steps = max(1, round(RETURN_SHARE * reset_steps))

    def act(self, step: int, loss: float) -> float:
        state = self._place.optimizer.state
        age = step % self._reset_steps
        if step and age == 0:
            for parameter in self._place.parameters:
                state.pop(parameter, None)
        if age >= GRACE_STEPS:
            for parameter in self._place.parameters:
                gradient, memory = parameter.grad, state[parameter].get("exp_avg_sq")
                if gradient is not None and memory is not None:
                    limit = (THRESHOLD * memory).sqrt_()
                    clipped = torch.minimum(gradient.abs(), limit).copysign_(gradient)
                    gradient.copy_(torch.where(memory > 0.0, clipped, gradient))
        if step < self._reset_steps or age >= self._return_steps:
            return 1.0
        return 1.0 - (1.0 - LEAST_SHARE) * 0.5 * (1.0 + math.cos(math.pi * age / self._return_steps))


def _fit(ask: Ask) -> Fitting:
    reset_steps = int(ask.number(RESET_STEPS, GRACE_STEPS + 1, 1e9, "steps from reset to reset"))
    return Fitting(hand=lambda place: _Spam(place, reset_steps))


METHOD = Method(
    name="spam",
    about="elements far above Adam's memory clipped, moments reset from time to time",
    argument="steps from reset to reset (500)",
    fit=_fit,
)
