"""Validation loss of the tiny GPT over learning rates: architectures, methods, three seeds that chose nothing.

Writes docs/results/tiny_lr_grid.md. Run from the repository root: python analysis/tiny_lr_grid.py
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

from lbw_sim.stress import RunPlan, RunResult, train
from lbw_sim.stress.corpus import VOCABULARY, corpus
from lbw_sim.wording import counted

RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
SEEDS = (10, 11, 12)
"""Seeds 0 and 1 chose initialisation and schedule; these chose nothing."""
STEPS = 300
ROWS = [
    *((architecture, "adamw") for architecture in ("post_ln", "pre_ln", "pre_ln_qk_norm")),
    *((architecture, method) for architecture in ("post_ln", "pre_ln") for method in ("clip", "static_cap", "guard")),
]
WORST = math.log(VOCABULARY)
"""Loss of a run that knows nothing; stands for nan in the sensitivity."""


def mean(losses: list[float]) -> float:
    """Mean over seeds, each at most WORST."""
    return statistics.mean(WORST if math.isnan(loss) else min(loss, WORST) for loss in losses)


def cell(results: list[RunResult]) -> str:
    """Mean ± standard deviation over seeds."""
    losses = [result.validation_loss for result in results]
    if any(math.isnan(loss) for loss in losses):
        return f"nan in {sum(map(math.isnan, losses))} of {len(losses)}"
    return f"{statistics.mean(losses):.3f} ± {statistics.stdev(losses):.3f}"


def main() -> None:
    """Train the grid and write the table."""
    keys = {}
    for architecture, method in ROWS:
        for lr in RATES:
            for seed in SEEDS:
                name = f"{architecture}-{method}-{lr:g}-{seed}"
                keys[architecture, method, lr, seed] = RunPlan(
                    run_id=name, architecture=architecture, lr=lr, seed=seed, steps=STEPS, method=method
                )
    started, cpu_started = time.perf_counter(), time.process_time()

    def show(done: int, total: int) -> None:
        print(f"\r{done:>7} of {total} steps, {time.perf_counter() - started:.0f} s", end="", file=sys.stderr)

    results = dict(zip(keys, train(list(keys.values()), progress=show), strict=True))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started

    lines = [
        "# Tiny GPT: validation loss over learning rates",
        "",
        f"Made by `analysis/tiny_lr_grid.py`: {len(keys)} runs of {STEPS} steps, seeds {', '.join(map(str, SEEDS))} "
        f"(seeds 0 and 1 chose initialisation and schedule), nats per byte on held-out prose, mean ± standard "
        f"deviation over seeds. Python {platform.python_version()} (corpus `{corpus('prose').digest}`), "
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{counted(torch.get_num_threads(), 'thread')}: {seconds:.0f} s, "
        f"{1000 * cpu_seconds / (len(keys) * STEPS):.2f} ms of CPU time per step and run.",
        "",
        "Sensitivity: mean over the learning rates of min(loss, ln 128) − the best mean loss of plain AdamW with that "
        "architecture. `guard` is the preset `default`, active. Energy: mean control energy at the three highest "
        "learning rates.",
        "",
        "| architecture | method | " + " | ".join(f"{lr:g}" for lr in RATES) + " | sensitivity | energy |",
        "|---|---|" + "---|" * (len(RATES) + 2),
    ]
    for architecture, method in ROWS:
        best = min(mean([results[architecture, "adamw", lr, seed].validation_loss for seed in SEEDS]) for lr in RATES)
        rows = [[results[architecture, method, lr, seed] for seed in SEEDS] for lr in RATES]
        excess = statistics.mean(mean([result.validation_loss for result in row]) - best for row in rows)
        energy = statistics.mean(result.energy for row in rows[3:] for result in row)
        cells = " | ".join(cell(row) for row in rows)
        lines.append(f"| {architecture} | {method} | {cells} | {excess:+.3f} | {energy:.1f} |")
    target = Path("docs/results/tiny_lr_grid.md")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{target}")


if __name__ == "__main__":
    main()
