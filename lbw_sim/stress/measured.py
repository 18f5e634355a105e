"""What is kept of one flown run: its figures, a smoothed curve of the training loss, and the scales, packed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lbw_sim.stress.flown import Flown

SMOOTHING_SHARE, SMOOTHING_LEAST = 0.05, 10
"""Trailing mean of the training loss: over this share of a run's steps, at least so many."""
CURVE_POINTS = 100
"""Points kept of the smoothed training loss, the last step among them."""


def measured(run: Flown) -> dict[str, Any]:
    """The figures, as JSON may hold them."""
    curve, last = smoothed(run.losses, run.tokens)
    # a skipped step is one at scale 0: that is what the controls have to match
    applied = [0.0 if skipped else scale for scale, skipped in zip(run.scales, run.skipped, strict=True)]
    return {
        "final_loss": run.validation_loss,
        "train_loss": last,
        "curve": curve,
        "steps": len(run.losses),
        "tokens": run.tokens,
        "unit": run.unit,
        "seconds": run.wall_s,
        "cpu_seconds": run.cpu_s,
        "mean_lr": run.mean_lr,
        "mean_effective_lr": run.mean_effective_lr,
        "control_energy": math.fsum((1.0 - scale) ** 2 for scale in applied),
        "control_active_steps": sum(scale < 1.0 for scale in applied),
        # a guard in shadow only records
        "regime_switches": run.regime_switches if run.plan.fitting().guard is not None else 0,
        "stress_mode_steps": run.stress_steps if run.plan.fitting().guard is not None else 0,
        "mean_scale": math.fsum(applied) / len(applied) if applied else math.nan,
        "min_scale": min(run.scales, default=math.nan),
        "skipped_steps": run.skipped_steps,
        "rollbacks": len(run.rolled_back_to),
        "retrained_steps": run.retrained_steps,
        "scales": packed_scales(applied),
    }


def smoothed(losses: Sequence[float], tokens: int) -> tuple[list[tuple[int, float]], float]:
    """Points (tokens, trailing mean of the training loss), and the mean at the end; nan where a loss is not finite.

    >>> smoothed([4.0] * 10 + [2.0] * 10, 200)[1]
    2.0
    """
    window = max(SMOOTHING_LEAST, round(SMOOTHING_SHARE * len(losses)))
    if len(losses) < window:
        return [], math.nan
    stride = max(1, len(losses) // CURVE_POINTS)
    ends = sorted({*range(window, len(losses) + 1, stride), len(losses)})
    points = [(tokens * end // len(losses), _mean_finite(losses[end - window : end])) for end in ends]
    return points, points[-1][1]


def _mean_finite(losses: Sequence[float]) -> float:
    total = math.fsum(losses) if all(map(math.isfinite, losses)) else math.nan
    return total / len(losses)


def packed_scales(scales: Iterable[float]) -> list[list[float]]:
    """Runs of equal scales as [scale, count]."""
    packed: list[list[float]] = []
    for scale in scales:
        if packed and packed[-1][0] == scale:
            packed[-1][1] += 1
        else:
            packed.append([scale, 1])
    return packed


def unpacked_scales(packed: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """The factor of every step, from `packed_scales`."""
    return tuple(scale for scale, count in packed for _ in range(int(count)))
