"""Trust in a step: what an update did to the loss of its own batch, and what the gradient had promised. It limits
nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn

from lbw_sim.errors import LiveError
from lbw_sim.live.probes.measuring import copies, every, numbers_in, parameters_of, undisturbed


class StepTrust:
    """Channels `step_gain` and `step_slope`: what one update did to its own batch's loss, and what it was to do.

    `step_gain` is the loss of the batch after the update minus before it, both in evaluation mode; nats. `step_slope` is
    the inner product of gradient and update over the gradient's norm; times the norm of the unclipped gradient it is
    the change that the gradient promises, to first order. Divided like that, so that clipping and loss scaling, which
    have happened by then, cancel. Both are delivered with the step after.

    The first `dense_steps` steps of a run are all measured, for there the learning rate does its damage, later one in
    `every_steps`. The batch is the one that the loop passes to `observe(..., batch=batch)`; with gradient accumulation
    the last micro-batch stands for all. Going back in steps, as after a rollback, drops what is under way.

    Cost: of a measured step two forward passes of its batch, a copy of the trained weights and an inner product; and
    the memory of that copy throughout. A step that was skipped gives nothing.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> _ = torch.nn.init.constant_(model.weight, 2.0)
    >>> probe = StepTrust(model, lambda batch: 0.5 * model(batch).square().sum(), optimizer)
    >>> batch = torch.ones(1, 1)
    >>> (0.5 * model(batch).square().sum()).backward()
    >>> _ = probe.before_step(0, batch), optimizer.step(), probe.after_step(0)
    >>> {name: float(value) for name, value in probe.before_step(1, batch).items()}
    {'step_gain': -1.5, 'step_slope': -1.0}
    """

    channels: tuple[str, ...] = ("step_gain", "step_slope")

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any], Tensor | float],
        optimizer: torch.optim.Optimizer,
        *,
        dense_steps: int = 64,
        every_steps: int = 5,
    ) -> None:
        """`model`: what `loss` evaluates, so that its mode can be put back. Raises LiveError for a wrong number."""
        self.every_steps = every(every_steps, "StepTrust")
        if dense_steps < 0 or dense_steps != int(dense_steps):
            raise LiveError(f"StepTrust: dense_steps={dense_steps!r} is not a whole number of at least 0")
        self.dense_steps = int(dense_steps)
        self._model = model
        self._loss = loss
        self._optimizer = optimizer
        self._copies: dict[int, Tensor] = {}
        self._kept: list[Tensor] = []
        self._batch: Any = None
        self._before: Tensor | float = 0.0
        self._slope: Tensor | None = None
        self._step = -1

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """What the last update did, if it was measured; and remember what this one is to be measured by."""
        values: dict[str, Tensor | float] = {}
        if self._slope is not None and step == self._step + 1:
            with undisturbed(self._model):
                values = {"step_gain": self._loss(self._batch) - self._before, "step_slope": self._slope}
        self._slope, self._batch, self._kept = None, None, []
        self._step = step
        if batch is None or (step >= self.dense_steps and step % self.every_steps):
            return values
        with undisturbed(self._model):
            self._before = self._loss(batch)
        self._batch = batch
        self._kept = [parameter for parameter in parameters_of(self._optimizer) if parameter.grad is not None]
        parts = [numbers_in(parameter) for parameter in self._kept]
        for parameter, part in zip(self._kept, parts, strict=True):
            known = self._copies.get(id(parameter))
            if known is None or known.shape != part.shape or known.device != part.device:
                self._copies[id(parameter)] = torch.empty_like(part)
        if parts:
            torch._foreach_copy_([self._copies[id(parameter)] for parameter in self._kept], parts)
        return values

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Nothing yet: the gain is measured before the next decision."""
        kept, self._kept = self._kept, []
        # a dropped step has its gradients taken away
        if step != self._step or not kept or any(p.grad is None or p.grad.is_sparse for p in kept):
            return {}
        products, squares = [], []
        for parameter in kept:
            assert parameter.grad is not None
            gradient = numbers_in(parameter.grad).flatten().float()
            change = (numbers_in(parameter) - self._copies[id(parameter)]).flatten().float()
            shared = self._share(parameter)
            products.append(torch.dot(gradient, change) * shared)
            squares.append(torch.dot(gradient, gradient) * shared)
        first = products[0].device
        product = torch.stack([one.to(first, non_blocking=True) for one in products]).sum()
        square = torch.stack([one.to(first, non_blocking=True) for one in squares]).sum()
        self._slope = product / square.sqrt()
        return {}

    @staticmethod
    def _share(parameter: Tensor) -> float:
        """What this rank's part counts, so that the mean over ranks is that of the whole tensor."""
        if not hasattr(parameter, "placements"):
            return 1.0
        return torch.distributed.get_world_size() / copies(parameter)
