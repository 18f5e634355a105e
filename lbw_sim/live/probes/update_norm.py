"""How far the last update moved the weights: it rises before the loss does. It limits nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsFloat

import torch
from torch import Tensor

from lbw_sim.live.probes.measuring import copies, every, norm_share, parameters_of
from lbw_sim.live.snapshots import local


class UpdateNorm:
    """Channel `update_norm`: Euclidean norm of the weights' change in one step, learning rate and decay included.

    The whole vector's norm comes from this rank's share as the root of summed squares, which `attach` forms. 0 for a
    step that was skipped. Cost: a second copy of the trained weights in memory, one copy and one subtraction of them.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> probe = UpdateNorm(torch.optim.SGD([weight], lr=1.0))
    >>> _ = probe.before_step(0, None)
    >>> _ = weight.data.copy_(torch.tensor([3.0, 4.0]))
    >>> float(probe.after_step(0)["update_norm"])
    5.0
    """

    channels: tuple[str, ...] = ("update_norm",)

    def __init__(self, optimizer: torch.optim.Optimizer, *, every_steps: int = 1) -> None:
        """Measure this optimizer's updates at every so many steps. Raises LiveError for a distance below 1."""
        self.every_steps = every(every_steps, "UpdateNorm")
        self._optimizer = optimizer
        self._before: dict[int, Tensor] = {}
        self._kept: list[Tensor] = []

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """Remember the weights."""
        if step % self.every_steps:
            return {}
        self._kept = parameters_of(self._optimizer)
        parts = [local(parameter.detach()) for parameter in self._kept]
        for parameter, part in zip(self._kept, parts, strict=True):
            buffer = self._before.get(id(parameter))
            if buffer is None or buffer.shape != part.shape or buffer.device != part.device:
                self._before[id(parameter)] = torch.empty_like(part)
        if parts:
            torch._foreach_copy_([self._before[id(parameter)] for parameter in self._kept], parts)
        return {}

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """The norm of what has changed since `before_step`."""
        if step % self.every_steps or not self._kept:
            return {}
        kept, self._kept = self._kept, []
        change = [self._before[id(parameter)] for parameter in kept]
        # in place: the copy is written anew before the next update
        torch._foreach_sub_(change, [local(parameter.detach()) for parameter in kept])
        return {"update_norm": norm_share(change, [copies(parameter) for parameter in kept])}
