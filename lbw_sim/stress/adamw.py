"""AdamW over a leading run axis: each run has its own learning rate, step count and skips.

Equal to `torch.optim.AdamW` on each run alone, to float error. It holds no schedule and clips nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8
WEIGHT_DECAY = 0.01
"""Betas, epsilon and weight decay are torch's defaults."""


class BatchedAdamW:
    """Decoupled weight decay Adam (Loshchilov & Hutter, arXiv 1711.05101) on `weights` [runs, parameters], in place."""

    def __init__(self, weights: Tensor, weight_decay: float = WEIGHT_DECAY) -> None:
        self.weights = weights
        self.weight_decay = weight_decay
        self.mean = torch.zeros_like(weights)
        self.square = torch.zeros_like(weights)
        self.counts = torch.zeros(len(weights), 1, dtype=torch.float64)

    def step(self, gradient: Tensor, lr: Tensor, skip: Tensor) -> Tensor:
        """Update every run that is not skipped; returns the Euclidean norm of each run's update, [runs].

        `gradient` [runs, parameters] (may be nan), `lr` [runs, 1] or [runs, parameters], `skip` [runs] of bool. A
        skipped run keeps its weights, moments and step count to the bit, whatever its gradient, and its norm is 0.
        """
        state = (self.weights, self.mean, self.square, self.counts)
        # put back what was, rather than multiply by a mask: 0 × nan is nan
        kept = [tensor[skip] for tensor in state] if bool(skip.any()) else None
        self.counts += 1.0
        beta1, beta2 = BETAS
        mean_bias = (1.0 - beta1**self.counts).to(gradient.dtype)
        square_bias = (1.0 - beta2**self.counts).sqrt().to(gradient.dtype)
        self.mean.lerp_(gradient, 1.0 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        update = (self.mean / mean_bias).div_((self.square.sqrt().div_(square_bias)).add_(EPSILON))
        update.add_(self.weights, alpha=self.weight_decay).mul_(lr)
        self.weights -= update
        norms: Tensor = torch.linalg.vector_norm(update, dim=1)
        if kept is not None:
            for tensor, before in zip(state, kept, strict=True):
                tensor[skip] = before
            norms[skip] = 0.0
        return norms
