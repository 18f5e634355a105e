"""The stress suite: model × learning rate × method × seed as single runs, each flown once, whatever stops the suite.

It keeps a ledger, a line per finished run, and goes on where it was. A stored run whose guard, text or versions are not
today's is flown again. It judges nothing and draws nothing; what it measured stands in a `score.stress_results.Suite`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lbw_sim import __version__
from lbw_sim.errors import LbwError, StressError, unknown_name
from lbw_sim.guard import load_plugin
from lbw_sim.score.stress_judgement import TARGET_TOLERANCE, reference
from lbw_sim.score.stress_results import BASELINE, CONTROLS, Suite, SuiteFacts, SuiteRun, WorkloadFacts, write_suite
from lbw_sim.stress.corpus import corpus
from lbw_sim.stress.flown import Flown, fly
from lbw_sim.stress.methods import fitted, method
from lbw_sim.stress.plan import FlightPlan
from lbw_sim.stress.workloads import workload
from lbw_sim.trace.layout import local_path, run_folder_name

LEDGER = "ledger.jsonl"
TRACES = "traces"
UNTOUCHED = "untouched"
"""Method that trains nothing: flown once per workload and seed, for the loss before training."""
SMOOTHING_SHARE, SMOOTHING_LEAST = 0.05, 10
"""Trailing mean of the training loss: over this share of a run's steps, at least so many."""
CURVE_POINTS = 100
"""Points kept of the smoothed training loss, the last step among them."""

# what --dry-run reckons with, where nothing has been timed
STEP_OVERHEAD_S = 0.0035
CPU_FLOPS, GPU_FLOPS = 8.0e10, 1.0e14
TRACE_BYTES_PER_RUN, TRACE_BYTES_PER_STEP = 20_000, 60
LEDGER_BYTES_PER_RUN = 5_000
PROCESS_BYTES = 400_000_000
"""Python and torch, once per process."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Which grid a name stands for. Empty `lrs`: each workload's own seven, and those of `extra_lrs`."""

    name: str
    about: str
    workloads: tuple[str, ...]
    methods: tuple[str, ...]
    controlled: tuple[str, ...]
    """Guarded methods whose controls are flown."""
    seeds: tuple[int, ...]
    lrs: tuple[float, ...] = ()
    extra_lrs: tuple[float, ...] = ()


SEED_PAPER_LRS = (1e-3, 3e-3)
"""Beside the reference learning rate (arXiv 2605.19008)."""
CLIPS = ("clip:1.0", "clip:0.5", "clip:0.1")
PUBLISHED = (
    "zclip", "adagc", "spam", "stable_adamw", "skip_step", "plateau", "metaseq", "static_cap", "slow_start", "rewind",
    "restart",
)  # fmt: skip
"""Rules of others that are flown beside the guards."""
GUARDS = ("guard:default", "guard:canary_rollback", "guard:paired_rollback", "guard:adaptive_cap")
"""Loss only; with a canary and rollback; with a paired probe and rollback; with a cap learned from half steps."""
CONTROLLED = ("guard:adaptive_cap",)
TINY = tuple(
    f"{architecture}{tuning}"
    for tuning in ("", "_fine_tune")
    for architecture in ("post_ln", "pre_ln", "pre_ln_qk_norm")
)


def _large(name: str, about: str) -> Preset:
    return Preset(
        name=name,
        about=about,
        workloads=(name,),
        methods=(BASELINE, *CLIPS, *PUBLISHED, *GUARDS),
        controlled=CONTROLLED,
        seeds=(0, 1, 2),
        extra_lrs=SEED_PAPER_LRS,
    )


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="tiny",
            about="Two tiny byte GPTs, four learning rates, few methods: minutes on two cores",
            workloads=("post_ln", "pre_ln"),
            methods=(BASELINE, "clip:1.0", "static_cap", "guard:adaptive_cap"),
            controlled=CONTROLLED,
            seeds=(0, 1, 2),
            lrs=(3e-3, 1e-2, 1e-1, 1.0),
        ),
        Preset(
            name="tiny-full",
            about="Tiny byte GPTs of three architectures, from scratch and fine-tuned; every method, seven rates",
            workloads=TINY,
            methods=(BASELINE, *CLIPS, *PUBLISHED, *GUARDS),
            controlled=CONTROLLED,
            seeds=(0, 1, 2),
        ),
        Preset(
            name="small",
            about="A byte GPT of tens of millions of parameters: one GPU, minutes a run",
            workloads=("small_gpt",),
            methods=(BASELINE, *CLIPS, *PUBLISHED, *GUARDS),
            controlled=CONTROLLED,
            seeds=(0, 1, 2),
        ),
        _large("qwen2.5-3b", "Qwen2.5-3B with LoRA in bf16 on WikiText-103 raw, as in the seed paper"),
        _large("qwen2.5-7b", "Qwen2.5-7B with LoRA in bf16 on WikiText-103 raw, as in the seed paper"),
        _large("qwen2.5-14b", "Qwen2.5-14B with LoRA in bf16 on WikiText-103 raw, as in the seed paper"),
        _large("tinyllama-1.1b", "TinyLlama-1.1B, every parameter trained, on WikiText-103 raw, as in the seed paper"),
    )
}
"""By name."""


def preset(name: str) -> Preset:
    """A preset by name. Raises StressError.

    >>> preset("tiny").seeds
    (0, 1, 2)
    """
    if name not in PRESETS:
        raise StressError(unknown_name("stress preset", name, PRESETS))
    return PRESETS[name]


def short(spec: str) -> str:
    """A method as results and run ids call it: of a guard's file only the name, for paths are nobody's business.

    >>> short("guard:/home/me/mine.toml"), short("clip:0.5")
    ('guard:mine.toml', 'clip:0.5')
    """
    name, colon, argument = spec.partition(":")
    return f"{name}{colon}{Path(argument).name}"


class Job(NamedTuple):
    """One place in the grid."""

    workload: str
    method: str
    """A method of `stress.methods`, or a control of `CONTROLS`."""
    control_of: str
    lr: float
    seed: int

    @property
    def key(self) -> str:
        """What the ledger calls it."""
        return "|".join((self.workload, self.method, self.control_of, repr(self.lr), str(self.seed)))

    @property
    def run_id(self) -> str:
        """Name of its trace."""
        who = f"{self.method}-of-{short(self.control_of)}" if self.control_of else short(self.method)
        plain = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in who)
        return f"{self.workload}-{plain}-lr{self.lr:.4g}-seed{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """A preset with what the user wants otherwise. Raises StressError, all problems at once."""

    preset: Preset
    steps: int = 0
    """0: each workload's own."""
    device: str = "auto"
    data: Path | None = None
    random_weights: bool = False
    traces: bool = True
    """Whether every run is recorded."""
    plugins: tuple[Path, ...] = ()
    """Files or folders with components that guards need; loaded in every process."""

    def __post_init__(self) -> None:
        chosen = self.preset
        problems = [
            f"no {name} are named; give at least one"
            for name in ("workloads", "methods", "seeds")
            if not getattr(chosen, name)
        ]
        for values, what in ((chosen.workloads, "workload"), (chosen.methods, "method"), (chosen.seeds, "seed"),
                             (chosen.lrs, "learning rate")):  # fmt: skip
            twice = sorted({str(value) for value in values if values.count(value) > 1})
            problems += [f"{what} {value} is named twice" for value in twice]
        problems += [f"lr={lr} is not a positive number" for lr in chosen.lrs if not 0.0 < lr < math.inf]
        problems += [f"seed={seed} is below 0" for seed in chosen.seeds if seed < 0]
        if self.steps < 0:
            problems.append(f"steps={self.steps} is below 0")
        for name in chosen.workloads:
            problems += _complaint(workload, name)
        for spec in chosen.methods:
            if not _complaint(method, spec) and method(spec).control:
                problems.append(f"{spec} is a control, which is made from a guard's run; name the guard instead")
            else:
                problems += _complaint(fitted, spec, steps=1)
        shown = [short(spec) for spec in chosen.methods]
        problems += [f"two methods would be called {name}" for name in sorted(set(shown)) if shown.count(name) > 1]
        strangers = [guard for guard in chosen.controlled if guard not in chosen.methods]
        if strangers:
            problems.append(f"controls of {', '.join(strangers)}, which {'is' if len(strangers) == 1 else 'are'} not "
                            "among the methods")  # fmt: skip
        if chosen.controlled and BASELINE not in chosen.methods:
            problems.append(f"controls need {BASELINE} among the methods")
        if self.data is not None and not self.data.is_file():
            problems.append(f"no such file: {self.data}")
        if problems:
            raise StressError(f"stress suite {chosen.name!r}: {'; '.join(problems)}")

    def rates(self, name: str) -> tuple[float, ...]:
        """Learning rates of one workload, rising."""
        return tuple(sorted({*(self.preset.lrs or workload(name).rates), *self.preset.extra_lrs}))

    def steps_of(self, name: str) -> int:
        """Steps of a run of one workload."""
        return self.steps or workload(name).steps

    def jobs(self) -> list[Job]:
        """Every run that looks at no other run; seed by seed, so that a suite that is stopped has whole grids."""
        chosen = self.preset
        made = [Job(name, UNTOUCHED, "", workload(name).reference_lr, seed)
                for seed in chosen.seeds for name in chosen.workloads]  # fmt: skip
        return made + [
            Job(name, spec, "", lr, seed)
            for seed in chosen.seeds
            for name in chosen.workloads
            for lr in self.rates(name)
            for spec in chosen.methods
        ]

    def control_jobs(self) -> list[Job]:
        """Every control; what it does follows from guarded runs."""
        chosen = self.preset
        return [
            Job(name, control, guard, lr, seed)
            for seed in chosen.seeds
            for name in chosen.workloads
            for lr in self.rates(name)
            for guard in chosen.controlled
            for control in CONTROLS
        ]

    def flight(self, job: Job, lr: float | None = None, spec: str = "", scales: tuple[float, ...] = ()) -> FlightPlan:
        """The run of a job."""
        return FlightPlan(
            workload=job.workload, method=spec or job.method, lr=job.lr if lr is None else lr, seed=job.seed,
            steps=self.steps_of(job.workload), run_id=job.run_id, scales=scales, device=self.device, data=self.data,
            random_weights=self.random_weights and workload(job.workload).loads_weights,
        )  # fmt: skip


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


Progress = Callable[[int, int, float], None]
"""Called with runs done, runs in all, and seconds left (nan before anything was timed)."""


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
        with ledger.held(), _pool(processes, plan.plugins) as pool:
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
            f"{len(work.failures)} of {work.planned} runs failed ({first}); the same command tries them again"
        )
    return suite


class Ledger:
    """Finished runs, a line of JSON each, added as they finish."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, dict[str, Any]]:
        """Key -> what is stored. A line that a kill cut short, or that was damaged, counts as no run."""
        found: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return found
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise StressError(f"cannot read the ledger {self.path}: {error}") from None
        for line in lines:
            try:
                entry = json.loads(line)
                found[entry["key"]] = {"stamp": dict(entry["stamp"]), "run": dict(entry["run"])}
            except (ValueError, TypeError, KeyError):
                continue
        return found

    def add(self, key: str, stamp: dict[str, str], run: dict[str, Any]) -> None:
        """Append one run; it is on disk when this returns."""
        line = json.dumps({"key": key, "stamp": stamp, "run": run}, separators=(",", ":")) + "\n"
        try:
            with self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    # a line that was cut short ends here, not in the middle of this one
                    line = line if file.read(1) == b"\n" else f"\n{line}"
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StressError(f"cannot write the ledger {self.path}: {error}") from None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep a second suite out of the folder. Raises StressError."""
        try:
            file = self.path.open("ab")
        except OSError as error:
            raise StressError(f"cannot write the ledger {self.path}: {error}") from None
        with file:
            _lock(file.fileno(), self.path.parent)
            yield


def _lock(number: int, folder: Path) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # not on this system: nothing keeps two apart
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StressError(f"another lbw stress is at work in {folder}; give this one another folder") from None


Asked = tuple[FlightPlan, Path | None]
"""A run, and the folder that its trace goes to."""
Outcome = dict[str, Any] | Exception
Pool = Callable[[Sequence[Asked]], Iterator[tuple[int, Outcome]]]
"""Flies runs; gives the place of each, and what came of it, as they end."""


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
        scales = _unpacked((self._other_seed(job, own) if job.method == "playback" else own)["scales"])
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


def _flown(flight: FlightPlan, folder: Path | None) -> dict[str, Any]:
    """Fly one run; what the ledger keeps of it."""
    return _measured(fly(flight, folder=folder))


def _measured(run: Flown) -> dict[str, Any]:
    curve, last = smoothed(run.losses, run.tokens)
    # a skipped step is one at scale 0: that is what the controls have to match
    applied = [0.0 if skipped else scale for scale, skipped in zip(run.scales, run.skipped, strict=True)]
    return {
        "final_loss": run.validation_loss,
        "train_loss": last,
        "curve": curve,
        "steps": len(run.losses),
        "tokens": run.tokens,
        "unit": run.unit,
        "seconds": run.wall_s,
        "cpu_seconds": run.cpu_s,
        "mean_lr": run.mean_lr,
        "mean_effective_lr": run.mean_effective_lr,
        "control_energy": math.fsum((1.0 - scale) ** 2 for scale in applied),
        "control_active_steps": sum(scale < 1.0 for scale in applied),
        # a guard in shadow only records
        "regime_switches": run.regime_switches if run.plan.fitting().guard is not None else 0,
        "stress_mode_steps": run.stress_steps if run.plan.fitting().guard is not None else 0,
        "mean_scale": math.fsum(applied) / len(applied) if applied else math.nan,
        "min_scale": min(run.scales, default=math.nan),
        "skipped_steps": run.skipped_steps,
        "rollbacks": len(run.rolled_back_to),
        "retrained_steps": run.retrained_steps,
        "scales": _packed(applied),
    }


def smoothed(losses: Sequence[float], tokens: int) -> tuple[list[tuple[int, float]], float]:
    """Points (tokens, trailing mean of the training loss), and the mean at the end; nan where a loss is not finite.

    >>> smoothed([4.0] * 10 + [2.0] * 10, 200)[1]
    2.0
    """
    window = max(SMOOTHING_LEAST, round(SMOOTHING_SHARE * len(losses)))
    if len(losses) < window:
        return [], math.nan
    stride = max(1, len(losses) // CURVE_POINTS)
    ends = sorted({*range(window, len(losses) + 1, stride), len(losses)})
    points = [(tokens * end // len(losses), _mean_finite(losses[end - window : end])) for end in ends]
    return points, points[-1][1]


def _mean_finite(losses: Sequence[float]) -> float:
    total = math.fsum(losses) if all(map(math.isfinite, losses)) else math.nan
    return total / len(losses)


def _packed(scales: Iterable[float]) -> list[list[float]]:
    """Runs of equal scales as [scale, count]."""
    packed: list[list[float]] = []
    for scale in scales:
        if packed and packed[-1][0] == scale:
            packed[-1][1] += 1
        else:
            packed.append([scale, 1])
    return packed


def _unpacked(packed: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(scale for scale, count in packed for _ in range(int(count)))


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


def _any_rollback(specs: Iterable[str]) -> bool:
    guards = [fitted(spec, steps=1).guard for spec in specs]
    return any(guard is not None and guard.tables["envelope"]["max_rollbacks"] > 0 for guard in guards)


def _complaint(function: Callable[..., object], *arguments: object, **named: object) -> list[str]:
    try:
        function(*arguments, **named)
    except LbwError as error:
        return [str(error)]
    return []


@contextlib.contextmanager
def _pool(processes: int, plugins: tuple[Path, ...]) -> Iterator[Pool]:
    """What flies runs: this process, or several others."""
    if processes == 1:
        with _one_thread():
            yield _here
        return
    # spawned: a forked child of a process with torch's threads may hang
    executor = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start, initargs=(os.getpid(), plugins)
    )  # fmt: skip
    try:
        yield functools.partial(_elsewhere, executor)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _here(asked: Sequence[Asked]) -> Iterator[tuple[int, Outcome]]:
    for place, (flight, folder) in enumerate(asked):
        try:
            yield place, _flown(flight, folder)
        except Exception as error:
            yield place, error


def _elsewhere(executor: ProcessPoolExecutor, asked: Sequence[Asked]) -> Iterator[tuple[int, Outcome]]:
    futures = {executor.submit(_flown, *ask): place for place, ask in enumerate(asked)}
    for future in as_completed(futures):
        try:
            yield futures[future], future.result()
        except BrokenProcessPool:
            raise StressError(
                f"a process died while flying {asked[futures[future]][0].run_id} or a run beside it (out of memory?); "
                "finished runs are kept, and the same command goes on from there"
            ) from None
        except Exception as error:
            yield futures[future], error


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Runs are too small for more, and equal to the bit whatever the number of processes."""
    usual = torch.get_num_threads()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _start(parent: int, plugins: tuple[Path, ...]) -> None:
    """In a new process: one thread on a CPU, Ctrl-C left to the parent, and no life after the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    for plugin in plugins:
        load_plugin(plugin)
