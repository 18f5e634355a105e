"""The size of the weights before training, for a cap on the learning rate. It caps nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsFloat

import torch
from torch import nn

from lbw_sim.errors import LiveError
from lbw_sim.live.snapshots import local


class InitialWeightRms:
    """Channel `initial_weight_rms`: the median over weight matrices of the root mean square of their elements.

    Taken when the probe is made, so make it before training; the same number at every step. Matrices are trained
    parameters of two dimensions and more that are not all zero. The median, because the extremes are special: LoRA's
    second factor and zero-initialised output layers begin at 0 and would forbid every step, an `nn.Embedding` begins
    at 1, thirty times the others, and would allow what breaks them. One learning rate serves all of them, so there is
    one number.

    A resumed run must pass on the first run's number, which stands in its trace: `rms=...`. Cost: one pass over the
    weights, once. Of sharded weights each rank takes its own part, which `attach` averages.

    >>> model = torch.nn.Linear(2, 2)
    >>> _ = torch.nn.init.constant_(model.weight, 0.5)
    >>> float(InitialWeightRms(model).before_step(0, None)["initial_weight_rms"])
    0.5
    """

    channels: tuple[str, ...] = ("initial_weight_rms",)

    def __init__(self, model: nn.Module, *, rms: float | None = None) -> None:
        """Measure `model`, or keep the `rms` of an earlier start. Raises LiveError when no matrix is trained."""
        if rms is not None:
            if not (0.0 < rms < float("inf")):
                raise LiveError(f"InitialWeightRms: rms={rms} is not a positive number")
            self._rms = torch.tensor(rms, dtype=torch.float64)
            return
        parts = [local(p.detach()) for p in model.parameters() if p.requires_grad and p.dim() >= 2]
        found = [part.double().square().mean().sqrt() for part in parts if part.numel() > 0]
        if not found:
            raise LiveError("InitialWeightRms: the model trains no weight matrix; give rms=... yourself")
        sizes = torch.stack([one.to(found[0].device) for one in found])
        # zeros become nan, which the median leaves out
        self._rms = torch.where(sizes > 0.0, sizes, torch.nan).nanmedian()

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """The number."""
        return {"initial_weight_rms": self._rms}

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Nothing."""
        return {}
