"""How large a learning rate the initial weights can take: a unit for caps that is the model's own. It caps nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import SupportsFloat

from torch import Tensor, nn

from lbw_sim.live.probes.measuring import median_size, root_mean_square


class FullStepLr:
    """Channel `full_step_lr`: the learning rate at which one step of Adam can be as large as a weight matrix.

    Adam moves every element by at most about the learning rate. When all of them pull one way, that change of a matrix
    of m rows and n columns has the spectral norm lr · √(m·n); random weights with root mean square r have
    r · (√m + √n). The two are equal at lr = r · (1/√m + 1/√n), and the channel is the median of that over the trained
    matrices, taken when the probe is made, so make it before training; the same number at every step. It falls with the
    width as the learning rates that people use do, which a share of r alone does not.

    Matrices are trained parameters of two dimensions and more that are not all zero; the kernel of a convolution counts
    as one row per output channel. The median, because the extremes are special: an `nn.Embedding` begins at r = 1.

    A resumed run must pass on the first run's number, which stands in its trace: `lr=...`. Cost: one pass over the
    weights, once. Of sharded weights each rank takes its own part, which `attach` averages.

    >>> model = nn.Linear(4, 4)
    >>> _ = nn.init.constant_(model.weight, 0.5)
    >>> float(FullStepLr(model).before_step(0, None)["full_step_lr"])
    0.5
    """

    channels: tuple[str, ...] = ("full_step_lr",)

    def __init__(self, model: nn.Module, *, lr: float | None = None) -> None:
        """Measure `model`, or keep the `lr` of an earlier start. Raises LiveError when no matrix is trained."""
        self._lr = median_size(model, _full_step_lr, lr, who="FullStepLr", argument="lr")

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """The number."""
        return {"full_step_lr": self._lr}

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Nothing."""
        return {}


def _full_step_lr(matrix: Tensor) -> Tensor:
    """Of one matrix; its shape is the whole one's, also where this rank holds a shard."""
    rows = matrix.shape[0]
    columns = matrix.numel() // rows
    return root_mean_square(matrix) * (1.0 / math.sqrt(rows) + 1.0 / math.sqrt(columns))
