"""The learning-rate schedule: linear warm-up, then a cosine down to a part of the peak."""

from __future__ import annotations

import math

WARMUP_STEPS = 20
FINAL_SHARE = 0.1
"""Learning rate at the end, as a part of the peak."""


def scheduled_lr(step: int, steps: int, peak: float, restart_step: int | None = None) -> float:
    """Learning rate of one step of `steps`; with `restart_step`, the cosine starts again there, without warm-up.

    >>> [round(scheduled_lr(step, 100, 1.0), 3) for step in (0, 19, 20, 99)]
    [0.05, 1.0, 1.0, 0.1]
    >>> scheduled_lr(70, 100, 1.0, restart_step=70)
    1.0
    """
    start = WARMUP_STEPS
    if restart_step is not None and step >= restart_step:
        start = restart_step
    elif step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    part = (step - start) / max(1, steps - 1 - start)
    return peak * (FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * part)))
