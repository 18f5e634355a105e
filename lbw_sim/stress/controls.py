"""The controls of a doubting reader: was it the guard, or only a lower learning rate?

Each takes a guarded run and gives the plan of a run without feedback, with the same model, seed and fault. None of
them looks at the loss.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lbw_sim.stress.plan import RunPlan, RunResult


def same_mean_lr(guarded: RunResult, run_id: str) -> RunPlan:
    """AdamW whose schedule is scaled down as a whole, to the guarded run's mean effective learning rate."""
    lr = guarded.plan.lr * guarded.mean_effective_lr / guarded.mean_lr
    return dataclasses.replace(guarded.plan, run_id=run_id, method="adamw", lr=lr)


def same_scales(guarded: RunResult, run_id: str) -> RunPlan:
    """The guarded run's own scales played back; with another seed it is the schedule without the feedback."""
    return dataclasses.replace(guarded.plan, run_id=run_id, method="playback", scales=guarded.scales)


def same_energy_at_random_times(guarded: RunResult, run_id: str, seed: int) -> RunPlan:
    """The guarded run's scales, turned round the clock by a random number of steps: same episodes, same energy."""
    shift = int(np.random.default_rng(seed).integers(1, max(2, len(guarded.scales))))
    scales = guarded.scales[-shift:] + guarded.scales[:-shift]
    return dataclasses.replace(guarded.plan, run_id=run_id, method="playback", scales=scales)


def frozen_at_floor(guarded: RunResult, run_id: str) -> RunPlan:
    """AdamW at the lowest scale that the guard reached, from the first step to the last."""
    return dataclasses.replace(guarded.plan, run_id=run_id, method="adamw", lr=guarded.plan.lr * min(guarded.scales))
