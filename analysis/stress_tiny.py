"""The stress suite on tiny models with seeds that chose nothing: flies what is missing and writes the page.

Writes docs/results/stress_tiny.md, its figures, and the rows behind it (docs/results/stress_tiny/, which `lbw report`
shows as a page). Run from the repository root; stopped, it goes on where it was:
python analysis/stress_tiny.py [--work FOLDER] [--processes 2]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path

from lbw_sim.plots import save
from lbw_sim.plots.suite import ranks_figure, sensitivity_figure
from lbw_sim.score.stress_judgement import judge
from lbw_sim.score.stress_page import markdown_page, page
from lbw_sim.score.stress_results import Suite, write_suite
from lbw_sim.stress.suite import PRESETS, SuitePlan, run_suite

SEEDS = (400, 401, 402)
"""Used for nothing else."""
GUARD = "guard:paired_rollback"
PRESET = dataclasses.replace(PRESETS["tiny-full"], seeds=SEEDS)
TARGET = Path("docs/results/stress_tiny.md")
FIGURES = Path("docs/figures")
ROWS = Path("docs/results/stress_tiny")


def lead(suite: Suite, cpu_minutes: float) -> list[str]:
    """What the reader must know first."""
    seeds = ", ".join(map(str, SEEDS))
    return [
        f"Made by `analysis/stress_tiny.py`: {len({run.run_id for run in suite.runs})} real runs, seeds {seeds}, which "
        f"chose nothing; {cpu_minutes:.0f} minutes of CPU time in the training loops, on two cores that others used as "
        "well: wall-clock times and speed-ups here say little. No run was recorded, so AdamW flew without any guard. "
        "The rows are in [stress_tiny/results.csv](stress_tiny/results.csv); `lbw report docs/results/stress_tiny` "
        "shows them as a page with every measure at every learning rate. How to read it: [stress.md](../stress.md).",
        "Tiny models, short runs, one text: this says what a method does to such a run, not what it is worth on a "
        "large model. A short run flatters a lower learning rate.",
    ]


def main() -> None:
    """Fly, judge, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/stress_tiny"), help="folder of the suite")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()

    def tell(done: int, total: int, seconds_left: float) -> None:
        left = "" if math.isnan(seconds_left) else f", about {seconds_left / 60:.0f} min left"
        print(f"\r{done} of {total}{left}   ", end="", file=sys.stderr)

    plan = SuitePlan(preset=PRESET, traces=False)
    suite = run_suite(plan, arguments.work, processes=arguments.processes, progress=tell)
    print(file=sys.stderr)
    judgement = judge(suite)
    save(sensitivity_figure(judgement), FIGURES / "stress_tiny_sensitivity.svg")
    save(ranks_figure(judgement.ranks), FIGURES / "stress_tiny_ranks.svg")
    ROWS.mkdir(parents=True, exist_ok=True)
    write_suite(suite, ROWS)
    seconds = math.fsum({run.run_id: run.cpu_seconds for run in suite.runs}.values())
    figures = {
        "sensitivity": "../figures/stress_tiny_sensitivity.svg",
        "ranks": "../figures/stress_tiny_ranks.svg",
    }
    text = markdown_page(
        page(judgement, every_rate=False), "Stress suite, tiny models", lead(suite, seconds / 60.0), figures
    )
    TARGET.write_text(text, encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
