"""What a suite will take, before anything is built: runs, time, memory, disk; from arithmetic and from stored runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from lbw_sim.stress.grid import UNTOUCHED, SuitePlan
from lbw_sim.stress.methods import fitted
from lbw_sim.stress.run_ledger import LEDGER, Ledger
from lbw_sim.stress.workloads import workload

# what --dry-run reckons with, where nothing has been timed
STEP_OVERHEAD_S = 0.0035
CPU_FLOPS, GPU_FLOPS = 8.0e10, 1.0e14
TRACE_BYTES_PER_RUN, TRACE_BYTES_PER_STEP = 20_000, 60
LEDGER_BYTES_PER_RUN = 5_000
PROCESS_BYTES = 400_000_000
"""Python and torch, once per process."""


class Estimate(NamedTuple):
    """What `--dry-run` says of one workload."""

    workload: str
    runs: int
    """Controls included; those of a guard that never acts are AdamW's own runs, and are not flown."""
    stored: int
    """Of these, already in the ledger."""
    steps: int
    memory_bytes: int
    """Of one process."""
    disk_bytes: int
    seconds: float
    """Of one process, for the runs that are not stored."""
    timed: bool
    """Whether the time is that of stored runs; otherwise it is reckoned from arithmetic."""


def estimates(plan: SuitePlan, folder: Path) -> list[Estimate]:
    """What a suite will take, workload by workload, without building anything."""
    stored = Ledger(folder / LEDGER).read()
    all_jobs = [*plan.jobs(), *plan.control_jobs()]
    made = []
    for name in plan.preset.workloads:
        load, steps = workload(name), plan.steps_of(name)
        gpu = load.on_gpu and plan.device != "cpu" and torch.cuda.is_available()
        jobs = [job for job in all_jobs if job.workload == name]
        known = [stored[job.key] for job in jobs if job.key in stored and job.method != UNTOUCHED]
        seconds = [entry["run"]["seconds"] for entry in known]
        reckoned = steps * (STEP_OVERHEAD_S + load.flops_per_step / (GPU_FLOPS if gpu else CPU_FLOPS))
        each = math.fsum(seconds) / len(seconds) if seconds else reckoned
        flown = [job for job in jobs if job.method != UNTOUCHED]
        ring = load.snapshots_kept * load.trained_parameters * 12 if _any_rollback(plan.preset.methods) else 0
        made.append(
            Estimate(
                workload=name, runs=len(flown), stored=len(known), steps=steps * len(flown),
                memory_bytes=PROCESS_BYTES + load.memory_bytes + ring,
                disk_bytes=len(flown) * (LEDGER_BYTES_PER_RUN + plan.traces
                                         * (TRACE_BYTES_PER_RUN + TRACE_BYTES_PER_STEP * steps)),
                seconds=each * (len(flown) - len(known)), timed=bool(seconds),
            )
        )  # fmt: skip
    return made


def _any_rollback(specs: Iterable[str]) -> bool:
    guards = [fitted(spec, steps=1).guard for spec in specs]
    return any(guard is not None and guard.tables["envelope"]["max_rollbacks"] > 0 for guard in guards)
