"""The session of any model that tells the drawn shapes apart. It trains nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lbw_sim.errors import StressError
from lbw_sim.stress.faults import Fault
from lbw_sim.stress.shapes import SHAPES, Classes, Pictures, pictures
from lbw_sim.stress.text import CANARY_SEED
from lbw_sim.stress.workload import Setting
from lbw_sim.trace.provenance import Provenance

BATCH = 64
VALIDATION_BATCHES, VALIDATION_BATCH = 4, 256

_TRAIN, _LABELS, _VALIDATION = 21, 22, 23
"""First numbers of the keys of random draws: no two of them meet."""

Pair = tuple[Tensor, Tensor]
"""Pictures [batch, SIDE, SIDE] and classes [batch]."""


class PictureSession:
    """A model that gives the loss of a pair, and its pictures. Raises StressError when it is to train on a text."""

    unit = "image"
    tokens_per_step = BATCH

    def __init__(self, model: nn.Module, name: str, setting: Setting) -> None:
        if setting.data is not None:
            raise StressError(f"{name} draws its own pictures: it cannot train on {setting.data}")
        self.model = model
        self.facts: Provenance = {"text": None, "images": "eight noisy shapes"}
        self._name, self._seed = name, setting.seed

    def batch(self, step: int, fault: Fault | None = None) -> Pair:
        """See `Session`."""
        drawn_step = step
        if fault is not None:
            if fault.corpus is not None:
                raise StressError(f"fault {fault.name!r} switches the text, and workload {self._name!r} has none")
            if fault.repeats_batch and fault.active(step):
                drawn_step = fault.onset_step
        drawn, classes = _tensors(*pictures(BATCH, _TRAIN, self._seed, drawn_step))
        if fault is not None and fault.random_labels and fault.active(step):
            generator = np.random.default_rng((_LABELS, self._seed, step))
            classes = torch.from_numpy(generator.integers(0, len(SHAPES), BATCH))
        return drawn, classes

    def canary_batch(self) -> Pair:
        """See `Session`."""
        return _tensors(*pictures(BATCH, _TRAIN, CANARY_SEED + self._seed, 0))

    def loss(self, batch: Pair) -> Tensor:
        """See `Session`."""
        loss: Tensor = self.model(batch)
        return loss

    def validation_loss(self) -> float:
        """See `Session`."""
        with torch.no_grad():
            found = [
                self.loss(_tensors(*pictures(VALIDATION_BATCH, _VALIDATION, part)))
                for part in range(VALIDATION_BATCHES)
            ]
        return torch.stack(found).mean().item()


def _tensors(drawn: Pictures, classes: Classes) -> Pair:
    return torch.from_numpy(drawn), torch.from_numpy(classes)
