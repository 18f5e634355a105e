"""What a workload is: a model, its data and the learning rates worth trying, declared in one file.

It knows no method, no guard and no schedule; it draws everything random from the seed and the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lbw_sim.errors import StressError
from lbw_sim.stress.faults import Fault
from lbw_sim.trace.provenance import Provenance


class Setting(NamedTuple):
    """What one run asks of its workload."""

    seed: int
    """Decides initial weights and data order."""
    device: str = "cpu"
    data: Path | None = None
    """A text in UTF-8 that takes the place of the workload's own; None: its own."""
    random_weights: bool = False
    """Build from the published configuration instead of loading weights; for workloads that load any."""


class Session(Protocol):
    """One run's model and data. Two sessions of equal setting are equal to the bit on one machine."""

    model: nn.Module
    """Parameters that `requires_grad` are trained; the weights are those of the seed."""
    tokens_per_step: int
    unit: str
    """What is counted: `byte`, `token` or `image`."""
    facts: Provenance
    """For the provenance of a trace: text and its digest, where the weights come from."""

    def batch(self, step: int, fault: Fault | None = None) -> Any:
        """The training batch of a step, from seed and step alone; with what the run's fault does to data or labels.

        Raises StressError for a fault of data that this workload does not know.
        """
        ...

    def canary_batch(self) -> Any:
        """A batch of the training data for a canary, the same whenever it is asked for; training hardly meets it."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """Mean loss of a batch as the model now is, a scalar with a gradient; nats per unit."""
        ...

    def validation_loss(self) -> float:
        """Mean loss on data that no training batch touches; nats per unit. Before the first step: the untouched
        model."""
        ...


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One model with its data. Raises StressError when the learning rates make no sense."""

    name: str
    about: str
    """A sentence."""
    build: Callable[[Setting], Session]
    reference_lr: float
    """What a user of such a model would take: the best of `rates` for plain AdamW, or the published one."""
    rates: tuple[float, ...]
    """Seven peak learning rates, about evenly spaced in their logarithm, up to 10 to 100 times the best."""
    steps: int
    tokens_per_step: int
    parameters: int
    trained_parameters: int
    fine_tuning: bool = False
    """It starts from a trained model, so that the loss of the untouched one is a control."""
    on_gpu: bool = False
    """It can run on a GPU, and does where there is one; the others are too small to gain by it."""
    loads_weights: bool = False
    """Weights come from a hub unless `random_weights` is set."""
    memory_bytes: int = 0
    """Weights, gradients, AdamW's moments and activations of one run, by arithmetic; about 0 for the tiny ones."""
    snapshots_every: int = 10
    snapshots_kept: int = 8
    """For guards that roll back: a ring of so many copies of trained weights and moments, one every so many steps."""

    def __post_init__(self) -> None:
        if len(self.rates) != 7 or list(self.rates) != sorted(self.rates) or self.reference_lr not in self.rates:
            raise StressError(
                f"workload {self.name!r}: rates has to be seven rising learning rates, reference_lr={self.reference_lr}"
                f" one of them; got {self.rates}"
            )

    @property
    def flops_per_step(self) -> float:
        """Arithmetic of a training step, in multiply-adds times two: 2 per parameter and token forward, 2 backward
        through it, 2 more for the gradient of a trained one. Attention's own part is left out."""
        return self.tokens_per_step * (4.0 * self.parameters + 2.0 * self.trained_parameters)

    def session(
        self, seed: int, device: str | torch.device = "cpu", *, data: Path | None = None, random_weights: bool = False
    ) -> Session:
        """Build model and data of one run. Raises StressError when they cannot be had."""
        device = str(device)
        if device != "cpu" and not self.on_gpu:
            raise StressError(f"workload {self.name!r} runs on cpu, not on {device}: it is too small for anything else")
        if random_weights and not self.loads_weights:
            raise StressError(f"workload {self.name!r} loads no weights: random_weights says nothing about it")
        return self.build(Setting(seed, device, data, random_weights))
