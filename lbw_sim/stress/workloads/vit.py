"""A small vision transformer (Dosovitskiy et al., arXiv 2010.11929) on the mixer's pictures: attention without text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lbw_sim.stress.patches import PATCH, PATCHES, patches_of
from lbw_sim.stress.picture_session import BATCH, Pair, PictureSession
from lbw_sim.stress.shapes import SHAPES
from lbw_sim.stress.workload import Setting, Workload

WIDTH, LAYERS, HEADS = 32, 2, 4


class _Vit(nn.Module):
    """Gives the mean cross-entropy of (pictures, classes); pre-LN, the mean over patches in place of a class token.

    Torch's own initial weights, from the seed; positions begin small, as in the paper.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        # torch's layers draw from the global generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = nn.Linear(PATCH * PATCH, WIDTH)
            self.positions = nn.Parameter(0.02 * torch.randn(PATCHES, WIDTH))
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    WIDTH, HEADS, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                for _ in range(LAYERS)
            )
            self.norm = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, len(SHAPES))

    def forward(self, batch: Pair) -> Tensor:
        drawn, classes = batch
        x = self.patches(patches_of(drawn)) + self.positions
        for layer in self.layers:
            x = layer(x)
        return functional.cross_entropy(self.head(self.norm(x).mean(dim=1)), classes)


def _build(setting: Setting) -> PictureSession:
    return PictureSession(_Vit(setting.seed), "vit", setting)


_PARAMETERS = sum(parameter.numel() for parameter in _Vit(0).parameters())

VIT = Workload(
    name="vit",
    about="Vision transformer, 2 pre-LN layers of 32, on noisy drawn shapes.",
    build=_build,
    reference_lr=1e-2,
    rates=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    steps=250,
    tokens_per_step=BATCH,
    parameters=_PARAMETERS,
    trained_parameters=_PARAMETERS,
)
