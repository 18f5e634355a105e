"""The canary: the loss of a batch that never changes, so that what rises is the weights' doing. It chooses no batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import SupportsFloat

from torch import nn

from lbw_sim.live.probes.measuring import every, undisturbed


class Canary:
    """Channel `canary_loss`: what `loss()` gives, in evaluation mode and without gradients, every `every_steps` steps.

    `loss` takes no argument and returns the mean loss of a batch that training does not see, in nats, always the same
    one. Under DDP let it call the wrapped module (`model.module`), so that no rank waits for another; under FSDP every
    rank calls it at the same steps by construction. Known trap: after a change of data it tells of the old ones.

    Cost: one forward pass of that batch per `every_steps` steps: with a batch as large as the training batch and every
    5 steps about 7 % of the training arithmetic.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> canary = Canary(model, lambda: (model(torch.ones(1, 1)) - model.weight).abs().sum(), every_steps=5)
    >>> [sorted(canary.before_step(step, None)) for step in (4, 5)], float(canary.before_step(0, None)["canary_loss"])
    ([[], ['canary_loss']], 0.0)
    """

    channels: tuple[str, ...] = ("canary_loss",)

    def __init__(self, model: nn.Module, loss: Callable[[], SupportsFloat], *, every_steps: int = 5) -> None:
        """`model`: what `loss` evaluates, so that its mode can be put back. Raises LiveError for a distance below 1."""
        self.every_steps = every(every_steps, "Canary")
        self._model = model
        self._loss = loss

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """The loss of the canary batch with the weights as they now are."""
        if step % self.every_steps:
            return {}
        with undisturbed(self._model):
            return {"canary_loss": self._loss()}

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Nothing: it is measured before the next decision."""
        return {}
