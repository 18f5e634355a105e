"""The norm of the whole gradient, for loops that do not compute it anyway. It clips nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from lbw_sim.live.probes.measuring import copies, every, gradient_scale, norm_share, numbers_in, parameters_of


class GradNorm:
    """Channel `grad_norm`: Euclidean norm of the gradients that the optimizer is about to use, all shards together.

    A loop that clips has this number before clipping, for nothing: `observe(loss, grad_norm=clip_grad_norm_(...))`;
    after it this probe sees the clipped ones. What a gradient scaler has multiplied them by is taken out. Cost: one
    pass over the gradients, two operations an element, and with DTensors one all-reduce of one number for each axis of
    their mesh.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> float(GradNorm(torch.optim.AdamW([weight])).before_step(0, None)["grad_norm"])
    5.0
    """

    channels: tuple[str, ...] = ("grad_norm",)

    def __init__(self, optimizer: torch.optim.Optimizer, *, every_steps: int = 1) -> None:
        """Measure this optimizer's gradients at every so many steps. Raises LiveError for a distance below 1."""
        self.every_steps = every(every_steps, "GradNorm")
        self._optimizer = optimizer

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """The norm; nothing when there is no gradient."""
        if step % self.every_steps:
            return {}
        gradients = [p.grad for p in parameters_of(self._optimizer) if p.grad is not None]
        if not gradients:
            return {}
        plain = [gradient for gradient in gradients if not hasattr(gradient, "placements")]
        totals = [norm_share([numbers_in(gradient) for gradient in plain], [1] * len(plain))] if plain else []
        by_mesh: dict[Any, list[Tensor]] = {}
        for gradient in gradients:
            if hasattr(gradient, "placements"):
                by_mesh.setdefault(getattr(gradient, "device_mesh"), []).append(gradient)  # noqa: B009
        for mesh, sharded in by_mesh.items():
            totals.append(self._over(mesh, norm_share([numbers_in(g) for g in sharded], [copies(g) for g in sharded])))
        first = totals[0].device
        norm = torch.linalg.vector_norm(torch.stack([total.to(first) for total in totals]))
        scale = gradient_scale(self._optimizer)
        return {"grad_norm": norm if scale is None else norm / scale.to(first, non_blocking=True)}

    @staticmethod
    def _over(mesh: Any, share: Tensor) -> Tensor:
        """The whole norm from the ranks' shares; `mesh` is a DeviceMesh, which not every build of torch has."""
        square = share.square()
        for axis in range(mesh.ndim):
            torch.distributed.all_reduce(square, group=mesh.get_group(axis))
        return square.sqrt()

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Nothing: the gradient was there before."""
        return {}
