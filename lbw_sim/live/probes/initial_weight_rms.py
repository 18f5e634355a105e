"""The size of the weights before training, for a cap on the learning rate. It caps nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsFloat

from torch import nn

from lbw_sim.live.probes.measuring import median_size, root_mean_square


class InitialWeightRms:
    """Channel `initial_weight_rms`: the median over weight matrices of the root mean square of their elements.

    Taken when the probe is made, so make it before training; the same number at every step. Matrices are trained
    parameters of two dimensions and more that are not all zero. The median, because the extremes are special: LoRA's
    second factor and zero-initialised output layers begin at 0 and would forbid every step, an `nn.Embedding` begins
    at 1, thirty times the others, and would allow what breaks them. One learning rate serves all of them, so there is
    one number.

    A resumed run must pass on the first run's number, which stands in its trace: `rms=...`. Cost: one pass over the
    weights, once. Of sharded weights each rank takes its own part, which `attach` averages.

    >>> model = nn.Linear(2, 2)
    >>> _ = nn.init.constant_(model.weight, 0.5)
    >>> float(InitialWeightRms(model).before_step(0, None)["initial_weight_rms"])
    0.5
    """

    channels: tuple[str, ...] = ("initial_weight_rms",)

    def __init__(self, model: nn.Module, *, rms: float | None = None) -> None:
        """Measure `model`, or keep the `rms` of an earlier start. Raises LiveError when no matrix is trained."""
        self._rms = median_size(model, root_mean_square, rms, who="InitialWeightRms", argument="rms")

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """The number."""
        return {"initial_weight_rms": self._rms}

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Nothing."""
        return {}
