"""The only hands of the guard: scale the learning rate for one step, or let one step pass without an update.

Nothing here outlives a step: the optimizer's learning rate, gradients and state dict are what their owner left there.
It adds no key to `param_groups` and keeps no copy of weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from lbw_sim.values import nan


class Restored(NamedTuple):
    """What the optimizer and others did meanwhile."""

    overtaken: bool = False
    """Somebody has set another learning rate, which stays."""
    made_up: bool = False
    """The optimizer gave gradients of its own to parameters that had none."""


class Actuator:
    """Scales and restores; skips by hiding the gradients.

    A scale of 0.5 gives, bit for bit, the step that half the learning rate gives: plain, foreach and fused, float and
    tensor lr. A hidden gradient leaves weights, moments and step counts alone, also when it is nan (a learning rate of
    0 would not: AdamW's moments move, and 0·nan is nan). The learning rate is 0 beside it, for optimizers that take a
    parameter without gradient for one with a gradient of zeros, as some Muons do: their weights stay as well.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._scaled_floats: list[tuple[dict[str, Any], float, float]] = []
        self._scaled_tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._hidden: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group; nan where the optimizer finds one by itself.

        Waits for the device when that lr is a tensor on one.
        """
        lr = self._optimizer.param_groups[0].get("lr")
        return nan if lr is None else float(lr)

    @property
    def can_scale(self) -> bool:
        """Whether every group has a learning rate."""
        return all(group.get("lr") is not None for group in self._optimizer.param_groups)

    def scale(self, factor: float) -> None:
        """Multiply the learning rate of every group until `restore`. A factor of 1 touches nothing."""
        if factor == 1.0:
            return
        seen: set[int] = set()
        for group in self._optimizer.param_groups:
            lr = group["lr"]
            if isinstance(lr, torch.Tensor):
                # one tensor may serve all groups and belong to the user: write in place, once, and never rebind
                if id(lr) not in seen:
                    seen.add(id(lr))
                    before = lr.clone()
                    self._scaled_tensors.append((lr, before))
                    # multiplied in float64 and rounded once, as for a plain float
                    lr.copy_(before.double().mul_(factor))
            else:
                scaled = lr * factor
                self._scaled_floats.append((group, lr, scaled))
                group["lr"] = scaled

    def skip(self) -> None:
        """Let the coming step change no weight, until `restore`."""
        self.hide_gradients()
        self.scale(0.0)

    def hide_gradients(self) -> None:
        """Let the step find no gradient, until `restore`. Called again it hides those that came since, instead."""
        self._hidden.clear()
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._hidden.append((parameter, parameter.grad))
                    parameter.grad = None

    def restore(self, *, gradients: bool = True) -> Restored:
        """Put back what was changed. Safe to call at any time, any number of times.

        `gradients=False` forgets hidden gradients: after an exception inside the step a new backward may have run.
        """
        if not (self._scaled_floats or self._scaled_tensors or self._hidden):
            return Restored()
        overtaken = made_up = False
        for group, lr, scaled in self._scaled_floats:
            # somebody who set another lr meanwhile meant it; nan is not equal to itself
            if group["lr"] is scaled or group["lr"] == scaled:
                group["lr"] = lr
            else:
                overtaken = True
        for tensor, before in self._scaled_tensors:
            tensor.copy_(before)
        if gradients:
            for parameter, gradient in self._hidden:
                made_up = made_up or parameter.grad is not None
                parameter.grad = gradient
        self._scaled_floats.clear()
        self._scaled_tensors.clear()
        self._hidden.clear()
        return Restored(overtaken, made_up)
