"""A small MLP-mixer (Tolstikhin et al., arXiv 2105.01601) that tells noisy shapes apart: no text, no attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lbw_sim.stress.patches import PATCH, PATCHES, patches_of
from lbw_sim.stress.picture_session import BATCH, Pair, PictureSession
from lbw_sim.stress.shapes import SHAPES
from lbw_sim.stress.workload import Setting, Workload

WIDTH, LAYERS = 32, 2


class _Mlp(nn.Sequential):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_norm, self.patch_mlp = nn.LayerNorm(WIDTH), _Mlp(PATCHES, 2 * PATCHES)
        self.width_norm, self.width_mlp = nn.LayerNorm(WIDTH), _Mlp(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.patch_mlp(self.patch_norm(x).transpose(1, 2)).transpose(1, 2)
        mixed: Tensor = x + self.width_mlp(self.width_norm(x))
        return mixed


class _Mixer(nn.Module):
    """Gives the mean cross-entropy of (pictures, classes); torch's own initial weights, from the seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        # torch's layers draw from the global generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patches = nn.Linear(PATCH * PATCH, WIDTH)
            self.layers = nn.Sequential(*(_Layer() for _ in range(LAYERS)))
            self.norm = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, len(SHAPES))

    def forward(self, batch: Pair) -> Tensor:
        drawn, classes = batch
        x = self.layers(self.patches(patches_of(drawn)))
        return functional.cross_entropy(self.head(self.norm(x).mean(dim=1)), classes)


def _build(setting: Setting) -> PictureSession:
    return PictureSession(_Mixer(setting.seed), "mixer", setting)


_PARAMETERS = sum(parameter.numel() for parameter in _Mixer(0).parameters())

MIXER = Workload(
    name="mixer",
    about="MLP-mixer, 2 layers of 32, on noisy drawn shapes.",
    build=_build,
    reference_lr=3e-2,
    rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    steps=250,
    tokens_per_step=BATCH,
    parameters=_PARAMETERS,
    trained_parameters=_PARAMETERS,
)
