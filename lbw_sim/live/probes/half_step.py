"""The half step: did a whole update bring twice what half of it would have brought? It limits nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn

from lbw_sim.errors import LiveError
from lbw_sim.live.probes.measuring import every, parameters_of, undisturbed
from lbw_sim.live.snapshots import local

logger = logging.getLogger("lbw_sim")

COARSE = 1e-3
"""Relative distance of neighbouring numbers from which a loss is too coarse: bfloat16 has 8e-3, float16 just below."""


class HalfStep:
    """Channels `step_gain` and `half_step_gain`: what one update did to its own batch's loss, and what half did; nats.

    The batch is evaluated before the update, after it, and with the weights half-way between, in evaluation mode: its
    loss after minus before, and half-way minus before. Were the loss a straight line along the update, the whole step
    would bring twice what its half does; it brings less by the curvature, and as much as the half or nothing when the
    learning rate is too high for it. Nothing in that ratio depends on model, optimizer, clipping, loss scaling or
    dropout, and the batch's difficulty cancels. Both are delivered with the step after.

    The first `dense_steps` steps of a run are all measured, for there a learning rate does its damage, later one in
    `every_steps`. The batch is the one that the loop passes to `observe(..., batch=batch)`; with gradient accumulation
    the last micro-batch stands for all, which is noisier. Going back in steps, as after a rollback, drops what is under
    way. Traps: batch normalisation in evaluation mode is another function than in training; and weights that another
    thread reads while they stand half-way.

    For the half-way evaluation the weights are moved and put back, to the bit, also when `loss` raises. Cost: of a
    measured step three forward passes of its batch and some copies of the trained weights, and memory for two of them.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 2.0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    >>> probe = HalfStep(model, lambda batch: 0.5 * model(batch).square().sum(), optimizer)
    >>> batch = torch.ones(1, 1)
    >>> (0.5 * model(batch).square().sum()).backward()
    >>> _ = probe.before_step(0, batch), optimizer.step()
    >>> {name: float(value) for name, value in probe.before_step(1, None).items()}
    {'step_gain': -1.5, 'half_step_gain': -0.875}
    """

    channels: tuple[str, ...] = ("step_gain", "half_step_gain")

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any], Tensor | float],
        optimizer: torch.optim.Optimizer,
        *,
        dense_steps: int = 64,
        every_steps: int = 10,
    ) -> None:
        """`model`: what `loss` evaluates, so that its mode can be put back. Raises LiveError for a wrong number."""
        self.every_steps = every(every_steps, "HalfStep")
        if dense_steps < 0 or dense_steps != int(dense_steps):
            raise LiveError(f"HalfStep: dense_steps={dense_steps!r} is not a whole number of at least 0")
        self.dense_steps = int(dense_steps)
        self._model = model
        self._loss = loss
        self._optimizer = optimizer
        self._kept: list[Tensor] = []
        self._old: list[Tensor] = []
        self._new: list[Tensor] = []
        self._batch: Any = None
        self._before: Tensor | float = 0.0
        self._step = -1
        self._coarse_told = False

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """What the last update did, if it was measured; and remember what this one is to be measured by."""
        values: dict[str, Tensor | float] = {}
        measured, self._batch = self._batch, None
        if measured is not None and step == self._step + 1:
            with undisturbed(self._model):
                values["step_gain"] = self._loss(measured) - self._before
                values["half_step_gain"] = self._half_way(measured) - self._before
        self._step = step
        if batch is None or (step >= self.dense_steps and step % self.every_steps):
            return values
        with undisturbed(self._model):
            self._before = self._loss(batch)
            self._tell_coarse(self._before)
            self._kept = parameters_of(self._optimizer)
            self._old = _copied(self._kept, self._old)
        self._batch = batch
        return values

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Nothing: a gain is measured before the next decision."""
        return {}

    def _tell_coarse(self, loss: Tensor | float) -> None:
        """Say once that what a step brings is rounded away."""
        if self._coarse_told or not isinstance(loss, Tensor) or not loss.is_floating_point():
            return
        if torch.finfo(loss.dtype).eps < COARSE:
            return
        self._coarse_told = True
        kind = str(loss.dtype).removeprefix("torch.")
        logger.warning(
            "lbw-sim: HalfStep: the loss comes in %s, where numbers between 2 and 4 lie %.3g apart, and many a step "
            "brings less: much of what the probe tells is rounding. Let it compute the loss in float32, "
            "functional.cross_entropy(logits.float(), labels) say", kind, 2.0 * torch.finfo(loss.dtype).eps,
        )  # fmt: skip

    def _half_way(self, batch: Any) -> Tensor | float:
        """The loss half-way between the weights of then and now."""
        weights = [local(parameter.detach()) for parameter in self._kept]
        self._new = _copied(self._kept, self._new)
        try:
            torch._foreach_lerp_(weights, self._old, 0.5)
            return self._loss(batch)
        finally:
            # copied and not computed back: that would be another number
            torch._foreach_copy_(weights, self._new)


def _copied(parameters: list[Tensor], buffers: list[Tensor]) -> list[Tensor]:
    """This rank's part of the weights, in `buffers` where they fit."""
    parts = [local(parameter.detach()) for parameter in parameters]
    if [(b.shape, b.dtype, b.device) for b in buffers] != [(p.shape, p.dtype, p.device) for p in parts]:
        buffers = [torch.empty_like(part) for part in parts]
    if parts:
        torch._foreach_copy_(buffers, parts)
    return buffers
