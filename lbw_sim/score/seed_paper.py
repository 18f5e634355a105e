"""What the LBW-Guard paper (arXiv 2605.19008) published, as figures to stand beside a suite's own.

Its experiment needs the weights of Qwen2.5 and TinyLlama; where they cannot be had, a row says so. Nothing here was
measured by this project, and settings that the paper does not print are not guessed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lbw_sim.score.stress_results import Suite, SuiteRun, WorkloadFacts
from lbw_sim.values import nan

REFERENCE = "reference"
"""The paper's own learning rate for a system; the presets take a workload's `reference_lr`."""
MISSING = "needs weights that can't be had here"


class Published(NamedTuple):
    """One system at one learning rate, as published. nan: no figure is public."""

    system: str
    workload: str
    lr: str
    """`REFERENCE`, or a number."""
    adamw_perplexity: float = nan
    guard_perplexity: float = nan
    adamw_seconds: float = nan
    guard_seconds: float = nan


PUBLISHED = (
    Published("Qwen2.5-7B, LoRA", "qwen2.5-7b", REFERENCE, 13.21, 10.74, 392.54, 357.02),
    Published("Qwen2.5-7B, LoRA", "qwen2.5-7b", "1e-3", 659.76, 10.33),
    Published("Qwen2.5-7B, LoRA", "qwen2.5-7b", "3e-3", 1885.24, 11.57),
    *(
        Published(system, workload, lr)
        for system, workload in (
            ("Qwen2.5-3B, LoRA", "qwen2.5-3b"),
            ("Qwen2.5-14B, LoRA", "qwen2.5-14b"),
            ("TinyLlama-1.1B, full-parameter", "tinyllama-1.1b"),
        )
        for lr in (REFERENCE, "1e-3", "3e-3")
    ),
)
"""Every system and learning rate that the paper names; gradient clipping at 1.0, 0.5 and 0.1 has no public figure."""
METHODS = ("adamw", "clip:1.0", "clip:0.5", "clip:0.1")
"""Of the paper, besides the guard."""


def published_rows(suite: Suite, guard: str) -> list[dict[str, object]]:
    """A row per system and learning rate: published perplexities and seconds, and this suite's, mean over seeds.

    `guard`: the method that stands for the paper's. A row without a run here says why.
    """
    known = {facts.name: facts for facts in suite.facts.workloads}
    rows = []
    for published in PUBLISHED:
        facts = known.get(published.workload)
        row: dict[str, object] = {**published._asdict()}
        found = False
        for method in (*METHODS, guard):
            runs = _runs(suite, facts, published.lr, method)
            found = found or bool(runs)
            name = "guard" if method == guard else method
            row[f"here_{name}"] = _perplexity(runs)
            row[f"seconds_{name}"] = math.fsum(run.seconds for run in runs) / len(runs) if runs else nan
        row["state"] = MISSING if not found else "measured with random weights" if _random(facts) else "measured"
        rows.append(row)
    return rows


def _random(facts: WorkloadFacts | None) -> bool:
    return facts is not None and facts.random_weights


def _runs(suite: Suite, facts: WorkloadFacts | None, lr: str, method: str) -> list[SuiteRun]:
    if facts is None:
        return []
    rate = facts.reference_lr if lr == REFERENCE else float(lr)
    return [run for run in suite.of(facts.name, method) if math.isclose(run.lr, rate, rel_tol=1e-9)]


def _perplexity(runs: list[SuiteRun]) -> float:
    """exp of the mean loss; nan when a run has none."""
    return math.exp(min(700.0, math.fsum(run.final_loss for run in runs) / len(runs))) if runs else nan
