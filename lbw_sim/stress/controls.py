"""The first control of a doubting reader: was it the guard, or only a lower learning rate?

It takes a guarded run, of the fleet or flown by itself, and gives the plan of one without feedback. The controls that
play scales back are methods: see `methods.open_loop`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol, TypeVar

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


def same_mean_lr(guarded: Guarded[Plan], run_id: str) -> Plan:
    """AdamW with the same workload, seed and fault, whose schedule is scaled down as a whole to the guarded run's mean
    effective learning rate."""
    lr = guarded.plan.lr * guarded.mean_effective_lr / guarded.mean_lr
    return dataclasses.replace(guarded.plan, run_id=run_id, method="adamw", lr=lr)
