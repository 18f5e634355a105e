"""The stress suite: model × learning rate × method × seed as single runs, each flown once, whatever stops the suite.

It keeps a ledger, a line per finished run, and goes on where it was. A stored run whose guard, text or versions are not
today's is flown again. It judges nothing and draws nothing; what it measured stands in a `score.stress_results.Suite`.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from lbw_sim import __version__
from lbw_sim.errors import StressError
from lbw_sim.score.stress_judgement import TARGET_TOLERANCE, reference
from lbw_sim.score.stress_results import BASELINE, Suite, SuiteFacts, SuiteRun, WorkloadFacts, write_suite
from lbw_sim.stress.corpus import corpus
from lbw_sim.stress.estimate import Estimate, estimates
from lbw_sim.stress.grid import UNTOUCHED, Job, SuitePlan, short
from lbw_sim.stress.measured import smoothed, unpacked_scales
from lbw_sim.stress.methods import method
from lbw_sim.stress.plan import FlightPlan
from lbw_sim.stress.pool import Pool, flying
from lbw_sim.stress.presets import CLIPS, GUARDS, PRESETS, PUBLISHED, Preset, preset
from lbw_sim.stress.run_ledger import LEDGER, Ledger
from lbw_sim.stress.workloads import workload
from lbw_sim.trace.layout import local_path, run_folder_name
from lbw_sim.wording import counted

__all__ = [
    "CLIPS", "GUARDS", "LEDGER", "PRESETS", "PUBLISHED", "TRACES", "UNTOUCHED", "Estimate", "Job", "Ledger", "Preset",
    "Progress", "SuitePlan", "estimates", "preset", "run_suite", "short", "smoothed",
]  # fmt: skip
"""What a suite is made of lies in modules of its own, and is found here."""

TRACES = "traces"

Progress = Callable[[int, int, float], None]
"""Called with runs done, runs in all, and seconds left (nan before anything was timed)."""


def run_suite(plan: SuitePlan, folder: Path, *, processes: int = 1, progress: Progress | None = None) -> Suite:
    """Fly what the folder's ledger does not hold yet; write and return the results.

    A run that fails does not stop the others: results of those are written, then StressError names what failed. Ctrl-C
    and any death of this process lose only the runs in flight.
    """
    try:
        local_path(folder, "suites are flown").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StressError(f"cannot make the folder {folder}: {error}") from None
    ledger = Ledger(folder / LEDGER)
    work = _Work(plan, folder, ledger, progress or (lambda *_: None))
    try:
        with ledger.held(), flying(processes, plan.plugins) as pool:
            work.fly(pool, [(job, plan.flight(job)) for job in plan.jobs()])
            work.fly(pool, work.controls())
    finally:
        # also after Ctrl-C: what was flown is shown
        suite = work.suite(processes)
        if suite.runs:
            write_suite(suite, folder)
    if work.failures:
        first = "; ".join(f"{key}: {why}" for key, why in list(work.failures.items())[:3])
        raise StressError(
            f"{len(work.failures)} of {counted(work.planned, 'run')} failed ({first}); the same command tries them "
            "again"
        )
    return suite


class _Work:
    """What is known of a suite as it goes."""

    def __init__(self, plan: SuitePlan, folder: Path, ledger: Ledger, progress: Progress) -> None:
        self.plan, self.folder, self.ledger, self.progress = plan, folder, ledger, progress
        self.stored = ledger.read()
        self.common = _common_stamp(plan)
        self.runs: dict[str, dict[str, Any]] = {}
        self.aliases: dict[str, str] = {}
        """Control -> AdamW's run that it is, bit for bit."""
        self.failures: dict[str, str] = {}
        self.planned = sum(job.method != UNTOUCHED for job in plan.jobs()) + len(plan.control_jobs())
        self.flown_runs = 0
        self.started = time.monotonic()

    def fly(self, pool: Pool, wanted: Sequence[tuple[Job, FlightPlan]]) -> None:
        """Fly those that are not stored, and remember all."""
        waiting: list[tuple[Job, FlightPlan, dict[str, str]]] = []
        for job, flight in wanted:
            stamp = self._stamp(job, flight)
            known = self.stored.get(job.key)
            if known is not None and known["stamp"] == stamp:
                self.runs[job.key] = known["run"]
            else:
                waiting.append((job, flight, stamp))
        self._tell()
        for job, _, _ in waiting:
            # left by a run that was killed, or by one that no longer counts
            shutil.rmtree(self.folder / TRACES / run_folder_name(job.run_id), ignore_errors=True)
        traces = self.folder / TRACES if self.plan.traces else None
        asked = [(flight, None if job.method == UNTOUCHED else traces) for job, flight, _ in waiting]
        for place, outcome in pool(asked):
            job, _, stamp = waiting[place]
            if isinstance(outcome, Exception):
                self.failures[job.key] = f"{type(outcome).__name__}: {outcome}"
                continue
            self.ledger.add(job.key, stamp, outcome)
            self.runs[job.key] = outcome
            self.flown_runs += 1
            self._tell()

    def controls(self) -> list[tuple[Job, FlightPlan]]:
        """The flights of all controls whose guarded runs are there."""
        made = []
        for job in self.plan.control_jobs():
            own = self.runs.get(Job(job.workload, job.control_of, "", job.lr, job.seed).key)
            plain = Job(job.workload, BASELINE, "", job.lr, job.seed).key
            if own is None or plain not in self.runs:
                continue
            flight = self._control(job, own)
            if flight is None:
                self.aliases[job.key] = plain
            else:
                made.append((job, flight))
        return made

    def _control(self, job: Job, own: dict[str, Any]) -> FlightPlan | None:
        """The flight of one control; None where it is AdamW at that learning rate, because nothing was scaled."""
        if job.method == "same_mean_lr":
            lr = job.lr * own["mean_effective_lr"] / own["mean_lr"]
            # no step at all is AdamW at no learning rate; the smallest number stands for it
            return None if lr == job.lr else self.plan.flight(job, lr=max(lr, 1e-12), spec=BASELINE)
        scales = unpacked_scales((self._other_seed(job, own) if job.method == "playback" else own)["scales"])
        if job.method == "frozen_floor":
            # a skipped step is no scale that could be held
            scales = (own["min_scale"],) * len(scales)
        return None if set(scales) == {1.0} else self.plan.flight(job, scales=scales)

    def _other_seed(self, job: Job, own: dict[str, Any]) -> dict[str, Any]:
        """The guarded run of the next seed; its own where there is one seed only: then what differs is rollback."""
        seeds = self.plan.preset.seeds
        following = seeds[(seeds.index(job.seed) + 1) % len(seeds)]
        return self.runs.get(Job(job.workload, job.control_of, "", job.lr, following).key, own)

    def _stamp(self, job: Job, flight: FlightPlan) -> dict[str, str]:
        """What a stored run must have been flown with to count."""
        guard = flight.fitting().guard if job.method != UNTOUCHED else None
        return {
            **self.common,
            "steps": str(flight.steps),
            "lr": repr(flight.lr),
            "method": flight.method,
            "guard": guard.fingerprint if guard is not None else "",
            "scales": hashlib.sha256(repr(flight.scales).encode()).hexdigest()[:16] if flight.scales else "",
        }

    def _tell(self) -> None:
        done = len(self.runs) + len(self.aliases)
        total = self.planned + len(self.plan.preset.workloads) * len(self.plan.preset.seeds)
        elapsed = time.monotonic() - self.started
        left = math.nan if not self.flown_runs else elapsed / self.flown_runs * (total - done)
        self.progress(done, total, left)

    def suite(self, processes: int) -> Suite:
        """Everything that is known so far."""
        rows = []
        curves: dict[tuple[str, str, float, int], list[tuple[int, float]]] = {}
        initial = {
            (job.workload, job.seed): self.runs[job.key]["final_loss"]
            for job in self.plan.jobs()
            if job.method == UNTOUCHED and job.key in self.runs
        }
        jobs = [*(job for job in self.plan.jobs() if job.method != UNTOUCHED), *self.plan.control_jobs()]
        for job in jobs:
            run = self.runs.get(self.aliases.get(job.key, job.key))
            if run is not None:
                row = _row(job, run, initial.get((job.workload, job.seed), math.nan))
                if job.key in self.aliases:
                    row = row._replace(run_id=job._replace(method=BASELINE, control_of="").run_id)
                rows.append(row)
                curves[row.workload, row.label, row.lr, row.seed] = run["curve"]
        return Suite(self._facts(len(rows), processes), tuple(self._with_targets(rows, curves)))

    def _with_targets(
        self, rows: list[SuiteRun], curves: dict[tuple[str, str, float, int], list[tuple[int, float]]]
    ) -> Iterable[SuiteRun]:
        """Rows with the tokens to the smoothed training loss that AdamW ends with at its best learning rate."""
        plain = {}
        for name in self.plan.preset.workloads:
            found = reference([row for row in rows if row.workload == name and row.label == BASELINE])
            for seed, run in (found.at_best if found else {}).items():
                plain[name, seed] = run.train_loss
        for row in rows:
            target = plain.get((row.workload, row.seed), math.nan) * (1.0 + TARGET_TOLERANCE)
            curve = curves[row.workload, row.label, row.lr, row.seed]
            reached = next((tokens for tokens, loss in curve if loss <= target), math.inf)
            yield row._replace(tokens_to_target=math.nan if math.isnan(target) else float(reached))

    def _facts(self, finished: int, processes: int) -> SuiteFacts:
        chosen = self.plan.preset
        loads = [workload(name) for name in chosen.workloads]
        return SuiteFacts(
            preset=chosen.name,
            about=chosen.about,
            workloads=tuple(
                WorkloadFacts(
                    name=load.name, about=load.about, reference_lr=load.reference_lr, unit=self._unit(load.name),
                    parameters=load.parameters, fine_tuning=load.fine_tuning,
                    random_weights=self.plan.random_weights and load.loads_weights,
                    text=f"on a text of the user's ({self.common['data']})" if self.plan.data is not None else "",
                )
                for load in loads
            ),
            methods={short(spec): method(spec).about for spec in chosen.methods},
            controlled=tuple(short(spec) for spec in chosen.controlled),
            machine=f"lbw-sim {__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
            f"{platform.machine()}, {os.cpu_count()} cores",
            processes=processes,
            planned_runs=self.planned,
            finished_runs=finished,
        )  # fmt: skip

    def _unit(self, name: str) -> str:
        found = (self.runs.get(Job(name, UNTOUCHED, "", workload(name).reference_lr, seed).key)
                 for seed in self.plan.preset.seeds)  # fmt: skip
        return next((str(run["unit"]) for run in found if run is not None), "token")


def _row(job: Job, run: dict[str, Any], initial_loss: float) -> SuiteRun:
    names = set(SuiteRun._fields) & set(run)
    values = {name: run[name] for name in names}
    final = values.pop("final_loss")
    named = job._replace(method=short(job.method), control_of=short(job.control_of))
    return SuiteRun(
        **named._asdict(), run_id=job.run_id, initial_loss=initial_loss, tokens_to_target=math.nan,
        final_loss=final if math.isfinite(final) else math.nan, **values,
    )  # fmt: skip


def _common_stamp(plan: SuitePlan) -> dict[str, str]:
    """Versions and texts: runs of others say nothing about these."""
    data = hashlib.sha256(plan.data.read_bytes()).hexdigest()[:16] if plan.data is not None else ""
    return {
        "lbw_sim": __version__,
        "torch": str(torch.__version__),
        "prose": corpus("prose").digest,
        "code": corpus("code").digest,
        "data": data,
        "random_weights": str(plan.random_weights),
        "device": plan.device,
    }
