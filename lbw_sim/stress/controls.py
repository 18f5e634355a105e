"""The controls of a doubting reader: was it the guard, or only a lower learning rate?

Each takes a guarded run, of the fleet or flown by itself, and gives the plan of a run without feedback, with the same
workload, seed and fault. None of them looks at the loss.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from lbw_sim.stress.plan import FlightPlan, RunPlan

Plan = TypeVar("Plan", "RunPlan", "FlightPlan")
PlanOf = TypeVar("PlanOf", bound="RunPlan | FlightPlan", covariant=True)


class Guarded(Protocol[PlanOf]):
    """A `RunResult` or a `Flown`."""

    @property
    def plan(self) -> PlanOf: ...
    @property
    def mean_lr(self) -> float: ...
    @property
    def mean_effective_lr(self) -> float: ...
    @property
    def scales(self) -> tuple[float, ...]: ...


def same_mean_lr(guarded: Guarded[Plan], run_id: str) -> Plan:
    """AdamW whose schedule is scaled down as a whole, to the guarded run's mean effective learning rate."""
    lr = guarded.plan.lr * guarded.mean_effective_lr / guarded.mean_lr
    return _changed(guarded.plan, run_id, method="adamw", lr=lr)


def same_scales(guarded: Guarded[Plan], run_id: str) -> Plan:
    """The guarded run's own scales played back; with another seed it is the schedule without the feedback."""
    return _changed(guarded.plan, run_id, method="playback", scales=guarded.scales)


def same_energy_at_random_times(guarded: Guarded[Plan], run_id: str, seed: int) -> Plan:
    """The guarded run's scales, turned round the clock by a random number of steps: same episodes, same energy."""
    return _changed(guarded.plan, run_id, method="playback", scales=turned(guarded.scales, seed))


def frozen_at_floor(guarded: Guarded[Plan], run_id: str) -> Plan:
    """AdamW at the lowest scale that the guard reached, from the first step to the last."""
    return _changed(guarded.plan, run_id, method="adamw", lr=guarded.plan.lr * min(guarded.scales))


def turned(scales: tuple[float, ...], seed: int) -> tuple[float, ...]:
    """The scales, turned round the clock by a random number of steps, at least one.

    >>> turned((0.5, 0.6, 0.7), seed=0)
    (0.6, 0.7, 0.5)
    """
    shift = int(np.random.default_rng(seed).integers(1, max(2, len(scales))))
    return scales[-shift:] + scales[:-shift]


def _changed(plan: Plan, run_id: str, **more: Any) -> Plan:
    return dataclasses.replace(plan, run_id=run_id, **more)
