"""A small MLP-mixer (Tolstikhin et al., arXiv 2105.01601) that tells noisy shapes apart: no text, no attention."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lbw_sim.errors import StressError
from lbw_sim.stress.faults import Fault
from lbw_sim.stress.shapes import SHAPES, SIDE, Classes, Pictures, pictures
from lbw_sim.stress.text import CANARY_SEED
from lbw_sim.stress.workload import Facts, Setting, Workload

PATCH, WIDTH, LAYERS, BATCH = 4, 32, 2, 64
PATCHES = (SIDE // PATCH) ** 2
VALIDATION_BATCHES, VALIDATION_BATCH = 4, 256

_TRAIN, _LABELS, _VALIDATION = 21, 22, 23
"""First numbers of the keys of random draws: no two of them meet."""

Pair = tuple[Tensor, Tensor]
"""Pictures [batch, SIDE, SIDE] and classes [batch]."""


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
        rows = SIDE // PATCH
        grid = drawn.view(-1, rows, PATCH, rows, PATCH).transpose(2, 3)
        x = self.layers(self.patches(grid.reshape(-1, PATCHES, PATCH * PATCH)))
        return functional.cross_entropy(self.head(self.norm(x).mean(dim=1)), classes)


class _Session:
    unit = "image"
    tokens_per_step = BATCH

    def __init__(self, seed: int) -> None:
        self.model: nn.Module = _Mixer(seed)
        self.facts: Facts = {"text": None, "images": "eight noisy shapes"}
        self._seed = seed

    def batch(self, step: int, fault: Fault | None = None) -> Pair:
        drawn_step = step
        if fault is not None:
            if fault.corpus is not None:
                raise StressError(f"fault {fault.name!r} switches the text, and workload 'mixer' has none")
            if fault.repeats_batch and fault.active(step):
                drawn_step = fault.onset_step
        drawn, classes = _tensors(*pictures(BATCH, _TRAIN, self._seed, drawn_step))
        if fault is not None and fault.random_labels and fault.active(step):
            generator = np.random.default_rng((_LABELS, self._seed, step))
            classes = torch.from_numpy(generator.integers(0, len(SHAPES), BATCH))
        return drawn, classes

    def canary_batch(self) -> Pair:
        return _tensors(*pictures(BATCH, _TRAIN, CANARY_SEED + self._seed, 0))

    def loss(self, batch: Pair) -> Tensor:
        loss: Tensor = self.model(batch)
        return loss

    def validation_loss(self) -> float:
        with torch.no_grad():
            found = [
                self.loss(_tensors(*pictures(VALIDATION_BATCH, _VALIDATION, part)))
                for part in range(VALIDATION_BATCHES)
            ]
        return torch.stack(found).mean().item()


def _tensors(drawn: Pictures, classes: Classes) -> Pair:
    return torch.from_numpy(drawn), torch.from_numpy(classes)


def _build(setting: Setting) -> _Session:
    if setting.device != "cpu" or setting.data is not None:
        raise StressError("mixer draws its own pictures and runs on cpu: it takes no other device and no data")
    return _Session(setting.seed)


_PARAMETERS = sum(parameter.numel() for parameter in _Mixer(0).parameters())

MIXER = Workload(
    name="mixer",
    about="MLP-mixer, 2 layers of 32, on noisy drawn shapes.",
    build=_build,
    reference_lr=1e-2,
    rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    steps=250,
    tokens_per_step=BATCH,
    parameters=_PARAMETERS,
    trained_parameters=_PARAMETERS,
)
