"""Pictures as rows of patches, which is how models without convolution read them."""

from __future__ import annotations

from torch import Tensor

from lbw_sim.stress.shapes import SIDE

PATCH = 4
"""Pixels along each side of a patch."""
PATCHES = (SIDE // PATCH) ** 2
"""Of one picture."""


def patches_of(drawn: Tensor) -> Tensor:
    """Pictures [batch, SIDE, SIDE] as [batch, PATCHES, PATCH × PATCH], patches and pixels row by row.

    >>> import torch
    >>> patches_of(torch.arange(SIDE * SIDE).view(1, SIDE, SIDE))[0, 1].tolist()
    [4, 5, 6, 7, 20, 21, 22, 23, 36, 37, 38, 39, 52, 53, 54, 55]
    """
    rows = SIDE // PATCH
    grid = drawn.view(-1, rows, PATCH, rows, PATCH).transpose(2, 3)
    return grid.reshape(-1, PATCHES, PATCH * PATCH)
