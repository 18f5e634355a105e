"""The gradient's reach: how much of it arrives at a typical weight matrix. It limits nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsFloat

import torch

from lbw_sim.live.probes.measuring import every, numbers_in, parameters_of


class GradientReach:
    """Channel `gradient_reach`: gradient norm of the median weight matrix over that of all matrices; in [0, 1].

    A network that no longer looks at its input hands its gradient to the last layer alone: the reach falls to a
    hundredth of what it was and less, while the loss only looks flat. It does so within some fifteen steps, before the
    loss says anything, and the further the longer the steps were that led there.

    Matrices are the optimizer's parameters of two dimensions and more; the median is the lower one of two. Its level
    depends on the model, so compare it with itself only. Clipping and loss scaling cancel. Gradients that are nan give
    nan. Cost: one pass over the gradients. Of sharded weights each rank takes its own part, which `attach` averages.

    >>> layers = [torch.nn.Parameter(torch.zeros(1, 1)) for _ in range(3)]
    >>> for layer, gradient in zip(layers, (3.0, 4.0, 12.0)):
    ...     layer.grad = torch.full((1, 1), gradient)
    >>> round(float(GradientReach(torch.optim.AdamW(layers)).before_step(0, None)["gradient_reach"]), 3)
    0.308
    """

    channels: tuple[str, ...] = ("gradient_reach",)

    def __init__(self, optimizer: torch.optim.Optimizer, *, every_steps: int = 1) -> None:
        """Measure this optimizer's gradients at every so many steps. Raises LiveError for a distance below 1."""
        self.every_steps = every(every_steps, "GradientReach")
        self._optimizer = optimizer

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """The reach; nothing when no matrix has a gradient."""
        if step % self.every_steps:
            return {}
        found = [p.grad for p in parameters_of(self._optimizer) if p.grad is not None and p.dim() >= 2]
        if not found:
            return {}
        each = torch._foreach_norm([numbers_in(gradient) for gradient in found])
        norms = torch.stack([norm.double().to(found[0].device, non_blocking=True) for norm in each])
        return {"gradient_reach": norms.median() / torch.linalg.vector_norm(norms)}

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Nothing: the gradient was there before."""
        return {}
