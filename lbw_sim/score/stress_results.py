"""What a stress suite measured, one row per run, as a CSV file that anything can read, and the facts beside it.

A row is a run that really happened. What it means, against which control, is judged elsewhere from these rows alone.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from lbw_sim.errors import ScoreError
from lbw_sim.whole_file import write_whole

RESULTS = "results.csv"
FACTS = "suite.json"
FORMAT = 1
BASELINE = "adamw"
NUDGE = "nudge"
"""AdamW with next to nothing changed: how far runs part by chance."""
CONTROLS = {
    "same_mean_lr": "AdamW at the guard's mean effective learning rate",
    "playback": "the guard's scales of another seed, played back without looking at the loss",
    "frozen_floor": "the learning rate held at the lowest scale that the guard reached",
    "random_damping": "the guard's scales shifted to a random time: equal control energy",
}
"""Runs derived from a guarded run, and what each of them is."""


class SuiteRun(NamedTuple):
    """One run of a suite. nan: not known or not defined."""

    workload: str
    method: str
    """As the suite was asked for it, `clip:0.5`, or a name of `CONTROLS`."""
    control_of: str
    """The guarded method that a control belongs to; empty for any other run."""
    lr: float
    """Nominal peak learning rate; of a control that of the guarded run."""
    seed: int
    run_id: str
    steps: int
    tokens: int
    """Trained on, re-trained ones included."""
    initial_loss: float
    """Validation loss before the first step, nats per token (or byte, or image)."""
    final_loss: float
    """Validation loss after the last step; nan when it is not finite."""
    train_loss: float
    """Mean training loss of the last steps; nan when it is not finite."""
    tokens_to_target: float
    """Tokens until the smoothed training loss reaches that of AdamW at its best learning rate; inf: never, nan: no such
    loss is known."""
    seconds: float
    """Wall-clock time of training, probes and snapshots included, validation not."""
    cpu_seconds: float
    """Of the same part: what to compare on a machine that others use as well."""
    mean_lr: float
    """Mean over steps of the scheduled learning rate."""
    mean_effective_lr: float
    """Mean over steps of the learning rate applied; 0 on a skipped step."""
    control_energy: float
    control_active_steps: int
    regime_switches: int
    stress_mode_steps: int
    mean_scale: float
    min_scale: float
    skipped_steps: int
    rollbacks: int
    retrained_steps: int
    """Steps whose progress a rollback or a restart threw away."""

    @property
    def counted_loss(self) -> float:
        """The loss that comparisons count: at most that before training, which also stands for nan."""
        return self.initial_loss if math.isnan(self.final_loss) else min(self.final_loss, self.initial_loss)

    @property
    def label(self) -> str:
        """Method, and what it is the control of."""
        return f"{self.method} of {self.control_of}" if self.control_of else self.method


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkloadFacts:
    """What a reader must know of a workload."""

    name: str
    about: str
    reference_lr: float
    unit: str
    """What the loss is per: byte, token or image."""
    parameters: int
    fine_tuning: bool
    random_weights: bool = False
    """Whether weights that the name promises were replaced by random ones."""
    text: str = ""
    """What it trained on, where that is not its own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteFacts:
    """What a suite was, beside its rows."""

    preset: str
    about: str
    workloads: tuple[WorkloadFacts, ...]
    methods: dict[str, str]
    """Every method that was asked for, and what it does; the order of tables."""
    controlled: tuple[str, ...]
    """Guarded methods that have their controls."""
    machine: str
    """Versions, processor, cores; no names."""
    processes: int
    planned_runs: int
    finished_runs: int

    @property
    def complete(self) -> bool:
        """Whether every planned run is among the rows."""
        return self.finished_runs >= self.planned_runs


class Suite(NamedTuple):
    """All that there is of one suite."""

    facts: SuiteFacts
    runs: tuple[SuiteRun, ...]

    def of(self, workload: str, label: str) -> list[SuiteRun]:
        """The runs of one method, or control, on one workload."""
        return [run for run in self.runs if run.workload == workload and run.label == label]

    def labels(self, *, controls: bool) -> list[str]:
        """Methods in the order of the facts; with `controls`, each guard's behind it."""
        present = {run.label for run in self.runs}
        found = []
        for method in self.facts.methods:
            found.append(method)
            if controls:
                found += [f"{control} of {method}" for control in CONTROLS]
        return [label for label in found if label in present]


def csv_text(runs: Iterable[SuiteRun]) -> str:
    """The rows as CSV with a header; nan and inf as such, floats to their last bit.

    >>> csv_text([]).split(",")[:3]
    ['workload', 'method', 'control_of']
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SuiteRun._fields)
    writer.writerows(runs)
    return text.getvalue()


def write_suite(suite: Suite, folder: Path) -> None:
    """Write rows and facts into a folder, each file at once. Raises ScoreError."""
    facts = {"format": FORMAT, **dataclasses.asdict(suite.facts)}
    try:
        for name, text in ((RESULTS, csv_text(suite.runs)), (FACTS, json.dumps(facts, indent=1, ensure_ascii=False))):
            write_whole(folder / name, text)
    except OSError as error:
        raise ScoreError(f"cannot write the results of a stress suite to {folder}: {error}") from None


def is_suite(folder: Path) -> bool:
    """Whether a folder holds the results of a stress suite."""
    return (folder / RESULTS).is_file() and (folder / FACTS).is_file()


def read_suite(folder: Path) -> Suite:
    """The results in a folder, as `lbw stress` wrote them. Raises ScoreError."""
    try:
        stored = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        rows = list(csv.DictReader((folder / RESULTS).read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ScoreError(f"{folder} holds no readable results of a stress suite: {error}") from None
    try:
        if stored.pop("format") != FORMAT:
            raise ValueError(f"{FACTS} is not of format {FORMAT}")
        workloads = tuple(WorkloadFacts(**found) for found in stored.pop("workloads"))
        controlled = tuple(stored.pop("controlled"))
        facts = SuiteFacts(workloads=workloads, controlled=controlled, **stored)
        runs = tuple(_run(row) for row in rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ScoreError(f"{folder} holds damaged results of a stress suite: {error}") from None
    known = {workload.name for workload in facts.workloads}
    strangers = sorted({run.workload for run in runs} - known)
    if strangers:
        raise ScoreError(f"{folder / RESULTS} has runs of {', '.join(strangers)}, which {FACTS} does not know")
    return Suite(facts, runs)


def seeds_of(runs: Sequence[SuiteRun]) -> list[int]:
    """Seeds, rising."""
    return sorted({run.seed for run in runs})


def rates_of(runs: Sequence[SuiteRun]) -> list[float]:
    """Nominal learning rates, rising."""
    return sorted({run.lr for run in runs})


_KINDS: dict[str, Any] = get_type_hints(SuiteRun)


def _run(row: dict[str, str]) -> SuiteRun:
    return SuiteRun(**{name: kind(row[name]) for name, kind in _KINDS.items()})
