"""Plain AdamW on every workload that a CPU trains in seconds, over the workload's own learning rates.

Shows where the best rate lies and how long a run takes; `reference_lr` of a workload is the best of this page. Writes
docs/results/workload_rates.md. Run from the repository root, ten minutes on one core; it can be stopped and goes on
where it was: python analysis/workload_rates.py [--work FILE] [--workload pre_ln_deep]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
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


def collect(ledger: Path, chosen: list[str]) -> dict[str, Any]:
    """Fly what is not there yet; one line of JSON per run, written as it ends."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    done = {entry["run_id"]: entry for entry in map(json.loads, lines)}
    with ledger.open("a", encoding="utf-8") as file:
        for name in chosen:
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


def section(name: str, done: dict[str, Any]) -> list[str]:
    """One workload: heading, what it is, its table."""
    load = workload(name)
    found = {
        lr: [done[FlightPlan(workload=name, lr=lr, seed=seed).run_id]["loss"] for seed in SEEDS] for lr in load.rates
    }
    best = min(found, key=lambda lr: statistics.mean(found[lr]))
    took = [done[FlightPlan(workload=name, lr=lr, seed=s).run_id]["cpu_s"] for lr in load.rates for s in SEEDS]
    untouched = [done[FlightPlan(workload=name, method="untouched", seed=s).run_id]["loss"] for s in SEEDS]
    cells = [f"**{spread(losses)}**" if lr == best else spread(losses) for lr, losses in found.items()]
    return [
        f"## {name}",
        "",
        f"{load.about} {load.parameters:,} parameters, {load.steps} steps, {statistics.median(took):.1f} s of CPU "
        f"time a run.",
        "",
        "| untouched | " + " | ".join(f"{lr:g}" for lr in load.rates) + " |",
        "|---|" + "---|" * len(load.rates),
        f"| {spread(untouched)} | " + " | ".join(cells) + " |",
    ]


def kept_sections() -> dict[str, list[str]]:
    """The sections of the page as it is, by workload."""
    text = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
    if text and versions() not in text:
        raise SystemExit(f"{TARGET} is of another Python, text or torch than {versions()}: fly all workloads")
    parts = [part.strip().splitlines()[:7] for part in text.split("\n## ")[1:]]
    return {part[0]: [f"## {part[0]}", *part[1:]] for part in parts}


def best_of(lines: list[str]) -> float:
    """The learning rate whose cell is bold."""
    rates, cells = lines[-3].split("|"), lines[-1].split("|")
    return next(float(rate) for rate, cell in zip(rates, cells, strict=True) if "**" in cell)


def versions() -> str:
    """What the losses depend on besides the seeds."""
    text = f"Python {platform.python_version()} (corpus `{corpus('prose').digest}`)"
    return f"{text}, torch {torch.__version__}, {platform.machine()}"


def page(sections: dict[str, list[str]]) -> str:
    """The whole document."""
    seconds = [float(re.search(r"([\d.]+) s of CPU time a run", lines[2])[1]) for lines in sections.values()]
    rates = sum(len(workload(name).rates) for name in sections)
    lines = [
        "# Workloads: AdamW over learning rates",
        "",
        f"Made by `analysis/workload_rates.py`: {(rates + len(sections)) * len(SEEDS)} real runs, seeds "
        f"{', '.join(map(str, SEEDS))}, validation loss, mean ± standard deviation over seeds; nats per byte, of "
        f"`mixer` and `vit` per picture. The best rate of each workload is bold. {versions()}, {os.cpu_count()} cores "
        f"shared with other work, one thread: about "
        f"{statistics.mean(seconds) * rates * len(SEEDS) / 60:.0f} minutes of CPU time.",
        "",
        "These runs chose rates and lengths. They are no result about any method.",
    ]
    for name in sorted(sections):
        lines += ["", *sections[name]]
    wrong = [
        f"{name}: {workload(name).reference_lr:g} is declared, {best_of(found):g} is best"
        for name, found in sorted(sections.items())
        if best_of(found) != workload(name).reference_lr
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
    parser.add_argument("--workload", action="append", choices=names(), help="fly it, and keep the others' sections")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = arguments.workload or names()
    done = collect(arguments.work, chosen)
    kept = kept_sections() if arguments.workload else {}
    sections = {name: found for name, found in kept.items() if name in names()}
    TARGET.write_text(page(sections | {name: section(name, done) for name in chosen}), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
