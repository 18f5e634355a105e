"""One plant per file: models of how the loss answers the learning rate; the registry scans this folder.

A plant's step takes one update and shows the next batch's loss. It uses + - * /, square root, min, max, abs and
comparisons only (powers come from `simulate.powers`, made of those and of floats split exactly), so a plant gives equal
bits in Python, compiled, and on another machine, as a guard does. Parameters are what calibration fits. What several
plants share stands here.
"""

from __future__ import annotations

import math

from lbw_sim.values import Action, Measured, nan

LARGEST_LR = 1e3
"""A learning rate is taken for at most this."""
LARGEST_LOSS = 1e6
"""A loss beyond this is shown as infinite: the run is out of bounds."""


def taken_lr(action: Action) -> float:
    """The learning rate of an update, made a number in [0, 1e3]; nan counts as 0."""
    lr = action.effective_lr
    return min(LARGEST_LR, lr) if lr > 0.0 else 0.0


def shown(expected_loss: float, noise: float, grad_norm: float = nan, dead: float = 0.0) -> Measured:
    """A measurement, out of bounds included. `noise` is in nats."""
    loss = expected_loss + noise
    if not (-LARGEST_LOSS <= loss <= LARGEST_LOSS):
        loss = math.inf
    if not (-LARGEST_LOSS <= expected_loss <= LARGEST_LOSS):
        loss = math.inf
        expected_loss = math.inf
    return Measured(loss, expected_loss, grad_norm, 0.0 if loss < math.inf else 1.0, dead)
