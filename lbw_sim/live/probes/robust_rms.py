"""RMS(g²/v): how much larger the gradient is than Adam's memory of it. It corrects nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsFloat

import torch
from torch import Tensor

from lbw_sim.errors import LiveError
from lbw_sim.live.probes.measuring import every, gradient_scale
from lbw_sim.live.snapshots import local


class RobustRms:
    """Channel `robust_rms`: the median over weight tensors of √mean(g² / v), v being Adam's second moment with g in it.

    About 1 while nothing changes; it rises some steps before the loss when v is too old for what the gradient has
    become (Wortsman et al., arXiv 2304.13013, who divide the learning rate by it, tensor by tensor). The mean over
    elements is theirs and spoils one tensor in particular: in an embedding most rows have no gradient and the rare ones
    have a v near 0, so that it reads 10⁴ on a healthy run. So v is floored at ε² and at the tensor's own mean of v
    times `floor_share`, elements without gradient or memory count for nothing, and the median over tensors leaves out
    what only a few of them do.

    Cost: about 8 operations an element on each measured step, temporary memory for the largest tensor. Sharded tensors
    are measured by their local part and the median by rank, which `attach` averages.

    >>> weight = torch.nn.Parameter(torch.zeros(4))
    >>> optimizer = torch.optim.AdamW([weight])
    >>> probe = RobustRms(optimizer, every_steps=1)
    >>> for size in (1.0, 1.0, 10.0):
    ...     weight.grad = torch.full((4,), size)
    ...     values = probe.before_step(0, None)
    ...     optimizer.step()
    >>> round(float(values["robust_rms"]), 2)
    1.71
    """

    channels: tuple[str, ...] = ("robust_rms",)

    def __init__(self, optimizer: torch.optim.Optimizer, *, every_steps: int = 10, floor_share: float = 0.01) -> None:
        """Measure an Adam-like optimizer, one with `betas` and `eps`. Raises LiveError for any other."""
        self.every_steps = every(every_steps, "RobustRms")
        if not {"betas", "eps"} <= set(optimizer.defaults):
            raise LiveError(
                f"RobustRms: {type(optimizer).__name__} keeps no second moment of the gradient; use it with Adam, "
                "AdamW or their like"
            )
        if not (0.0 <= floor_share <= 1.0):
            raise LiveError(f"RobustRms: floor_share={floor_share} is outside [0, 1]")
        self.floor_share = floor_share
        self._optimizer = optimizer

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """The median; nothing before the optimizer's first step."""
        if step % self.every_steps:
            return {}
        found: list[Tensor] = []
        scale = gradient_scale(self._optimizer)
        for group in self._optimizer.param_groups:
            beta, epsilon = group["betas"][1], group["eps"]
            for parameter in group["params"]:
                state = self._optimizer.state.get(parameter, {})
                if parameter.grad is None or parameter.grad.is_sparse or "exp_avg_sq" not in state:
                    continue
                gradient = local(parameter.grad.detach()).float()
                if scale is not None:
                    gradient = gradient / scale.to(gradient.device, non_blocking=True)
                square = gradient.square()
                if square.numel() == 0:
                    continue
                memory = local(state["exp_avg_sq"]).float().mul(beta).add_(square, alpha=1.0 - beta)
                # v's bias towards its start at 0; the count lies on the host unless the step is captured or fused
                memory = memory / (1.0 - beta ** (state["step"] + 1))
                floor = (self.floor_share * memory.mean()).clamp_min(epsilon * epsilon)
                seen = memory > floor
                ratio = square / torch.maximum(memory, floor)
                # a mean over those seen: sums, because a selection would have to wait for its size
                found.append(((ratio * seen).sum() / seen.sum().clamp_min(1)).sqrt())
        if not found:
            return {}
        first = found[0].device
        return {"robust_rms": torch.stack([one.to(first, non_blocking=True) for one in found]).median()}

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Nothing: gradient and memory were there before."""
        return {}
