"""How long it takes to tune ten thousand guards on every run of a folder and on a hundred simulated runs.

    python benchmarks/tune.py TRACES [CANDIDATES] [HELD_OUT_FAMILY]

Start to end, as `lbw tune` does it: reading, search, simplification, judgement; the family that is held out is a small
one, so that the rest is nearly all of the folder. Two threads. Kernels are compiled, or loaded, first and timed apart.
Prints wall and CPU seconds: where others share the cores, half of the CPU seconds is what two quiet cores would take at
best.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from lbw_sim.guard import GuardSpec
from lbw_sim.simulate import PlantSpec
from lbw_sim.tune import executor, search_space, tune
from lbw_sim.tune.measure import Flights
from lbw_sim.tune.tuning import prepare

STEPS, SEEDS = 1_000, 20
RATES = (3e-3, 1e-2, 2e-2, 3e-2, 1e-1)
"""Peaks of the simulated schedules: 5 of them × 20 seeds are 100 runs."""


def seconds() -> tuple[float, float]:
    """Wall and CPU."""
    used = os.times()
    return time.perf_counter(), used.user + used.system


def main() -> None:
    """One search."""
    folder, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    family = sys.argv[3] if len(sys.argv) > 3 else "nmt"
    plant, start = PlantSpec.load("lasting_damage"), GuardSpec.load("default")
    schedules = {f"{rate:g}": rate * (1.0 - 0.9 * np.linspace(0.0, 1.0, STEPS)) for rate in RATES}
    began = seconds()
    prepare(
        search_space(start, flown=True).start,
        Flights((plant.to_toml(),), tuple((n, tuple(lr)) for n, lr in schedules.items()), 0, SEEDS),
    )
    wall, cpu = (now - then for now, then in zip(seconds(), began, strict=True))
    print(f"kernels: {wall:.1f} s, {cpu:.1f} CPU seconds (nearly nothing when they were compiled before)")
    began, at = seconds(), {}

    def progress(stage: str, done: int, total: int) -> None:
        at[stage] = seconds()[0]

    found = tune(
        [Path(folder)], start, candidates=count, plants=[plant], schedules=schedules, seeds=SEEDS, split_by="family",
        held_out=[family], workers=executor("local", 2), progress=progress,
    )  # fmt: skip
    wall, cpu = (now - then for now, then in zip(seconds(), began, strict=True))
    rows = sum(run.rows for run in found.split.tuning)
    flown, runs = len(RATES) * SEEDS * STEPS, len(found.split.tuning)
    print(f"{found.tried:,} candidates on {runs} runs of {rows:,} rows and 100 simulated of {STEPS:,}:")
    print(f"{wall:.1f} s of wall clock, {cpu:.1f} CPU seconds, so {cpu / 2:.1f} s on two quiet cores at best (bar 120)")
    print(f"{cpu / found.tried / (rows + flown) * 1e9:.1f} ns of CPU per candidate-step, everything included")
    last = began[0]
    for stage, then in at.items():
        print(f"  {stage}: {then - last:.1f} s")
        last = then


if __name__ == "__main__":
    main()
