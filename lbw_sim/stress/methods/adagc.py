"""AdaGC (arXiv 2502.11034): each tensor's gradient is clipped to just above the memory of its own clipped norms.

In the first steps the whole gradient is clipped to norm 1 and each tensor remembers the least of its norms. From then
on its norm is at most 1.05 × memory, and memory ← 0.98 × memory + 0.02 × clipped norm. The source's 100 first steps are
a third of the run where that is shorter.
"""

from __future__ import annotations

import torch
from torch import nn

from lbw_sim.stress.method import Ask, Fitting, Method, Workplace

KEEP = 0.98
FIRST_STEPS, FIRST_NORM = 100, 1.0


class _AdaGc:
    def __init__(self, place: Workplace, relative: float, first_steps: int) -> None:
        self._place, self._relative, self._first_steps = place, relative, first_steps
        self._memory: torch.Tensor | None = None

    def act(self, step: int, loss: float) -> float:
        gradients = [p.grad for p in self._place.parameters if p.grad is not None]
        if step < self._first_steps:
            nn.utils.clip_grad_norm_(self._place.parameters, FIRST_NORM)
        norms = torch.stack(torch._foreach_norm(gradients))
        if not bool(norms.isfinite().all()):
            # no memory survives a nan; the step itself is the source's affair as well
            return 1.0
        if self._memory is None:
            self._memory = norms
        if step < self._first_steps:
            self._memory = torch.minimum(self._memory, norms)
            return 1.0
        factors = (self._relative * self._memory / norms).clamp(max=1.0).nan_to_num(1.0)
        torch._foreach_mul_(gradients, list(factors))
        self._memory = KEEP * self._memory + (1.0 - KEEP) * norms * factors
        return 1.0


def _fit(ask: Ask) -> Fitting:
    relative = ask.number(1.05, 1.0, 100.0, "clip above so many times the memory")
    first_steps = max(1, min(FIRST_STEPS, ask.steps // 3))
    return Fitting(hand=lambda place: _AdaGc(place, relative, first_steps))


METHOD = Method(
    name="adagc",
    about="each tensor's gradient clipped to the memory of its own norms",
    argument="times the memory from which to clip (1.05)",
    fit=_fit,
)
