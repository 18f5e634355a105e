"""Plain AdamW on every workload that a CPU trains in seconds, over the workload's own learning rates.

Shows where the best rate lies and how long a run takes; `reference_lr` of a workload is the best of this page. Writes
docs/results/workload_rates.md. Run from the repository root, ten minutes on one core; it can be stopped and goes on
where it was: python analysis/workload_rates.py [--work FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from lbw_sim.stress.corpus import corpus
from lbw_sim.stress.flown import fly
from lbw_sim.stress.plan import FlightPlan
from lbw_sim.stress.workloads import WORKLOADS, workload

SEEDS = (0, 1, 2)
"""Development seeds: the page chose rates and lengths, and judges nothing."""
LARGEST = 1_000_000
TARGET = Path("docs/results/workload_rates.md")


def names() -> list[str]:
    """Workloads that a CPU trains in seconds."""
    return [name for name, load in WORKLOADS.items() if load.parameters < LARGEST and not name.endswith("-toy")]


def collect(ledger: Path) -> dict[str, Any]:
    """Fly what is not there yet; one line of JSON per run, written as it ends."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    done = {entry["run_id"]: entry for entry in map(json.loads, lines)}
    with ledger.open("a", encoding="utf-8") as file:
        for name in names():
            plans = [FlightPlan(workload=name, lr=lr, seed=seed) for lr in workload(name).rates for seed in SEEDS]
            plans += [FlightPlan(workload=name, method="untouched", seed=seed) for seed in SEEDS]
            for plan in plans:
                if plan.run_id not in done:
                    flown = fly(plan)
                    entry = {"run_id": plan.run_id, "loss": flown.validation_loss, "cpu_s": flown.cpu_s}
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                    done[plan.run_id] = entry
                    print(plan.run_id, f"{flown.validation_loss:.3f}", flush=True)
    return done


def spread(losses: list[float]) -> str:
    """Mean ± standard deviation over seeds."""
    return (
        f"{statistics.mean(losses):.3f} ± {statistics.stdev(losses):.3f}" if all(map(math.isfinite, losses)) else "nan"
    )


def page(done: dict[str, Any]) -> str:
    """The whole document."""
    seconds = sum(entry["cpu_s"] for entry in done.values())
    lines = [
        "# Workloads: AdamW over learning rates",
        "",
        f"Made by `analysis/workload_rates.py`: {len(done)} real runs, seeds {', '.join(map(str, SEEDS))}, validation "
        f"loss, mean ± standard deviation over seeds; nats per byte, of `mixer` and `vit` per picture. The best rate "
        f"of each workload is bold. Python {platform.python_version()} (corpus `{corpus('prose').digest}`), torch "
        f"{torch.__version__}, {platform.machine()}, {os.cpu_count()} cores shared with other work, one thread: "
        f"{seconds / 60:.1f} minutes of CPU time.",
        "",
        "These runs chose rates and lengths. They are no result about any method.",
    ]
    wrong = []
    for name in names():
        load = workload(name)
        found = {
            lr: [done[FlightPlan(workload=name, lr=lr, seed=seed).run_id]["loss"] for seed in SEEDS]
            for lr in load.rates
        }
        best = min(found, key=lambda lr: statistics.mean(found[lr]))
        if best != load.reference_lr:
            wrong.append(f"{name}: {load.reference_lr:g} is declared, {best:g} is best")
        took = [done[FlightPlan(workload=name, lr=lr, seed=s).run_id]["cpu_s"] for lr in load.rates for s in SEEDS]
        untouched = [done[FlightPlan(workload=name, method="untouched", seed=s).run_id]["loss"] for s in SEEDS]
        cells = [f"**{spread(losses)}**" if lr == best else spread(losses) for lr, losses in found.items()]
        lines += [
            "",
            f"## {name}",
            "",
            f"{load.about} {load.parameters:,} parameters, {load.steps} steps, {statistics.median(took):.1f} s of CPU "
            f"time a run.",
            "",
            "| untouched | " + " | ".join(f"{lr:g}" for lr in load.rates) + " |",
            "|---|" + "---|" * len(load.rates),
            f"| {spread(untouched)} | " + " | ".join(cells) + " |",
        ]
    lines += [
        "",
        f"Declared otherwise than found: {'; '.join(wrong)}." if wrong else "Every declared reference is the best.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fly, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/workload_rates.jsonl"), help="ledger of finished runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    TARGET.write_text(page(collect(arguments.work)), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
