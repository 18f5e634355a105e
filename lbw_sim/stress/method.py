"""What a method is: what it brings into a run besides AdamW - a guard, a hand on gradients or learning rate, or both.

A method sees the gradient and the loss of its own run, never the validation data; it does not choose the batches, but
for those that an operator would pass over after going back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import nn

from lbw_sim.errors import StressError
from lbw_sim.guard import GuardSpec


class Ask(NamedTuple):
    """What a method may know of the run that it is to be fitted to."""

    argument: str
    """What stands after the colon: `0.5` in `clip:0.5`; empty: the default."""
    steps: int
    seed: int
    scales: tuple[float, ...]
    """A guarded run's scales, for the open-loop controls; empty for any other method."""

    def number(self, default: float, low: float, high: float, what: str) -> float:
        """The argument as a number in [low, high]. Raises StressError."""
        try:
            value = float(self.argument) if self.argument else default
        except ValueError:
            value = math.nan
        if not (low <= value <= high):
            raise StressError(f"{what}={self.argument!r} is not a number in [{low:g}, {high:g}]")
        return value


class Hand(Protocol):
    """Acts once per step, between backward and the optimizer's step."""

    def act(self, step: int, loss: float) -> float | Sequence[float]:
        """Change gradients in place; give the factor on the learning rate, one for each parameter if they differ."""
        ...


class Workplace(NamedTuple):
    """What a hand works on."""

    parameters: list[nn.Parameter]
    """All that are trained; the optimizer has one group for each when the method is `per_tensor`, else one for all."""
    optimizer: torch.optim.Optimizer


class Fitting(NamedTuple):
    """A method, fitted to one run."""

    guard: GuardSpec | None = None
    """Flies active."""
    hand: Callable[[Workplace], Hand] | None = None
    per_tensor: bool = False
    """The hand gives a factor for each parameter."""
    pass_over_batches: int = 0
    """After a rollback the operator passes over so many batches, which are never trained on."""
    lr_factor: float = 1.0
    """After each rollback the operator multiplies the learning rate by this, for good."""
    trains: bool = True
    """False: no step at all."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method; `fit` raises StressError for an argument that it cannot take."""

    name: str
    about: str
    """A sentence, as for a table."""
    argument: str = ""
    """What may stand after the colon, with its default; empty: nothing."""
    control: bool = False
    """It answers a doubt about another run rather than claim to help."""
    fit: Callable[[Ask], Fitting]
