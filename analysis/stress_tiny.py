"""The stress suite on tiny models with seeds that chose nothing: flies what is missing and writes the page.

Writes docs/results/stress_tiny.md, its figures, and the rows behind it (docs/results/stress_tiny/PART, which
`lbw report` shows as a page). Run from the repository root; stopped, it goes on where it was:
python analysis/stress_tiny.py [--work FOLDER] [--processes 2] [--part cap]
Parts that are not asked for are written from the rows that they have.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import NamedTuple

from lbw_sim.guard import GuardSpec
from lbw_sim.plots import save
from lbw_sim.plots.suite import ranks_figure, sensitivity_figure
from lbw_sim.score.stress_judgement import judge
from lbw_sim.score.stress_page import markdown_page, page
from lbw_sim.score.stress_results import Suite, read_suite, write_suite
from lbw_sim.stress.presets import ALL, PRESETS
from lbw_sim.stress.suite import SuitePlan, run_suite

SEEDS = (700, 701, 702)
MORE_SEEDS = tuple(range(700, 706))
"""For the two models whose runs part furthest by chance."""
GUARD = "guard:adaptive_cap"
FLOWN = "7883fc5eb9c8b278"
"""Fingerprint that the stored rows of `GUARD` were flown with: trust_cap 3. Fly all parts anew, then change it."""
TARGET = Path("docs/results/stress_tiny.md")
FIGURES = Path("docs/figures")
ROWS = Path("docs/results/stress_tiny")


class Part(NamedTuple):
    """A suite of its own: what is judged together was flown whole."""

    name: str
    title: str
    workloads: tuple[str, ...]
    methods: tuple[str, ...]
    controlled: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    """Beginnings of the anchors of sections that another part has already, or that would be long."""
    seeds: tuple[int, ...] = SEEDS
    lrs: tuple[float, ...] = ()
    """Empty: each workload's own seven."""


PARTS = (
    Part("scratch", "From scratch, post-LN and pre-LN: every method", ("post_ln", "pre_ln"), ALL, (GUARD,)),
    Part(
        "others",
        "QK-norm, and fine-tuning: trained on code, then on prose",
        ("pre_ln_qk_norm", "post_ln_fine_tune", "pre_ln_fine_tune", "pre_ln_qk_norm_fine_tune"),
        ("adamw", "nudge", "static_cap", GUARD),
        leave_out=("seed-paper", "ranks", "rows-"),
    ),
    Part(
        "models",
        "Larger GPTs and an LSTM",
        ("post_ln_wide", "post_ln_deep", "pre_ln_deep", "lstm"),
        ("adamw", "nudge", GUARD),
        leave_out=("seed-paper", "ranks", "rows-"),
    ),
    Part(
        "pictures",
        "Vision transformer and MLP-mixer",
        ("vit", "mixer"),
        ("adamw", "nudge", "nudge:0.1", GUARD),
        leave_out=("seed-paper", "ranks", "rows-"),
        seeds=MORE_SEEDS,
        lrs=(3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ),
)


def lead(suites: list[Suite]) -> list[str]:
    """What the reader must know first."""
    flown = {(place, run.run_id): run.cpu_seconds for place, suite in enumerate(suites) for run in suite.runs}
    return [
        f"Made by `analysis/stress_tiny.py`: {len(flown)} real runs, seeds from {SEEDS[0]} on, which chose nothing and "
        "had been flown by nobody; nothing was changed after a look at them; "
        f"{math.fsum(flown.values()) / 60.0:.0f} minutes of CPU time in the training loops, on two cores that others "
        "used as well: wall-clock times and speed-ups say little here, CPU times more. No run was recorded, so AdamW "
        "flew without any guard. All rows are in `stress_tiny/`; `lbw report docs/results/stress_tiny/scratch` shows "
        "them as a page, with every measure at every learning rate. How to read this: [stress.md](../stress.md). "
        f"`{GUARD}` flew with the fingerprint `{FLOWN}`, which is trust_cap 3. Version 4 "
        f"(`{GuardSpec.load(GUARD.partition(':')[2]).fingerprint}`) leaves a peak alone that is above the first cap by "
        "less than a third: [stress_again.md](stress_again.md).",
        "Tiny models, short runs, one text: this says what a method does to such a run, not what it is worth on a "
        "large model. A short run flatters a lower learning rate.",
    ]


def flown(part: Part, work: Path, processes: int) -> Suite:
    """Fly what is missing of one part."""

    def tell(done: int, total: int, seconds_left: float) -> None:
        left = "" if math.isnan(seconds_left) else f", about {seconds_left / 60:.0f} min left"
        print(f"\r{part.name}: {done} of {total}{left}   ", end="", file=sys.stderr)

    preset = dataclasses.replace(
        PRESETS["tiny-full"], about=part.title, workloads=part.workloads, methods=part.methods,
        controlled=part.controlled, seeds=part.seeds, lrs=part.lrs,
    )  # fmt: skip
    suite = run_suite(SuitePlan(preset=preset, traces=False), work, processes=processes, progress=tell)
    print(file=sys.stderr)
    return suite


def written(part: Part, suite: Suite) -> str:
    """Rows and figures of a part, and its text."""
    judgement = judge(suite)
    (ROWS / part.name).mkdir(parents=True, exist_ok=True)
    write_suite(suite, ROWS / part.name)
    figures = {}
    for name, figure in (("sensitivity", sensitivity_figure(judgement)), ("ranks", ranks_figure(judgement.ranks))):
        if name not in part.leave_out:
            path = save(figure, FIGURES / f"stress_tiny_{part.name}_{name}.svg")
            figures[name] = f"../figures/{path.name}"
    sections = [s for s in page(judgement, every_rate=False) if not s.anchor.startswith(part.leave_out or ("-",))]
    return markdown_page(sections, part.title, [], figures, level=2)


def main() -> None:
    """Fly, judge, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/stress_tiny"), help="folder of the suite")
    parser.add_argument("--processes", type=int, default=2)
    names = [part.name for part in PARTS]
    parser.add_argument("--part", action="append", choices=names, help="fly this part; repeat; without: all")
    arguments = parser.parse_args()
    suites = [
        flown(part, arguments.work, arguments.processes)
        if part.name in (arguments.part or names)
        else read_suite(ROWS / part.name)
        for part in PARTS
    ]
    head = "\n".join(["# Stress suite on tiny models", "", *(line for text in lead(suites) for line in (text, ""))])
    texts = [written(part, suite) for part, suite in zip(PARTS, suites, strict=True)]
    TARGET.write_text(head + "\n" + "\n".join(texts), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
