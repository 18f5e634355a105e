"""What a training run is to be, and what came of it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lbw_sim.errors import LbwError, StressError, unknown_name
from lbw_sim.guard import GuardSpec
from lbw_sim.stress.excitation import Excitation
from lbw_sim.stress.faults import Fault
from lbw_sim.stress.method import Fitting
from lbw_sim.stress.methods import fitted
from lbw_sim.stress.schedule import scheduled_lr
from lbw_sim.stress.tiny_gpt import ARCHITECTURES
from lbw_sim.stress.workloads import workload

METHODS: dict[str, str] = {
    "adamw": "AdamW as it is",
    "clip": "gradient clipped to `clip_norm`, over all weights of the run",
    "static_cap": "learning rate of each weight matrix at most `cap_ratio` × RMS of its initial weights",
    "playback": "learning rate times `scales`, decided beforehand: an open-loop control",
    "guard": "the guard of `spec`, active: it scales the learning rate and skips updates",
}
"""Every method and what it does; one that is not `guard` carries its guard in shadow."""

TELEMETRY_CHANNELS = ("loss", "lr", "grad_norm", "update_norm", "tokens", "nonfinite")
"""What every run measures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlan:
    """One run: model, learning rate, data order, method, fault and guard. Raises StressError when it makes no sense."""

    run_id: str
    architecture: str = "post_ln"
    lr: float = 1e-2
    """Peak of the schedule."""
    seed: int = 0
    """Decides initial weights and data order, whatever else differs."""
    steps: int = 300
    method: str = "adamw"
    fault: Fault | None = None
    spec: GuardSpec = dataclasses.field(default_factory=lambda: GuardSpec.load("default"))
    clip_norm: float = 1.0
    """With `clip`: the largest gradient norm."""
    cap_ratio: float = 0.1
    """With `static_cap`."""
    scales: tuple[float, ...] = ()
    """With `playback`: one factor on the learning rate per step."""
    excitation: Excitation | None = None
    """Program on top of the schedule, whatever the method."""

    @property
    def mode(self) -> Literal["active", "shadow"]:
        """Whether the guard acts or only watches; only method `guard` acts."""
        return "active" if self.method == "guard" else "shadow"

    def lr_at(self, step: int) -> float:
        """Scheduled learning rate, excitation and a fault's bump included."""
        return _lr_at(step, self.steps, self.lr, self.fault, self.excitation, self.seed)

    def corpus_at(self, step: int) -> str:
        """Name of the text of this step's batch."""
        fault = self.fault
        return "prose" if fault is None or fault.corpus is None or step < fault.onset_step else fault.corpus

    def data_step(self, step: int) -> int:
        """Step whose batch this step trains on."""
        fault = self.fault
        return fault.onset_step if fault is not None and fault.repeats_batch and fault.active(step) else step

    def __post_init__(self) -> None:
        problems = []
        if self.architecture not in ARCHITECTURES:
            problems.append(unknown_name("architecture", self.architecture, ARCHITECTURES))
        if self.method not in METHODS:
            problems.append(unknown_name("method", self.method, METHODS))
        positive = {"lr": self.lr, "clip_norm": self.clip_norm, "cap_ratio": self.cap_ratio}
        problems += [
            f"{name}={value} is not a positive number" for name, value in positive.items() if not 0 < value < math.inf
        ]
        if not (0 <= self.seed < 2**63):
            problems.append(f"seed={self.seed} is outside [0, 2^63)")
        if self.steps < 1:
            problems.append(f"steps={self.steps} is below 1")
        if self.fault is not None and not (0 <= self.fault.onset_step < self.steps):
            problems.append(
                f"{self.fault.name} at step {self.fault.onset_step} is outside the run's {self.steps} steps"
            )
        if self.method == "playback" and len(self.scales) != self.steps:
            problems.append(f"playback has {len(self.scales)} scales for {self.steps} steps; give one per step")
        if self.method != "playback" and self.scales:
            problems.append(f"scales are for method playback, not {self.method}")
        try:
            guard = self.spec.build()
            guard.require(TELEMETRY_CHANNELS, "a stress run")
            if self.mode == "active" and (allowed := guard.envelope.max_rollbacks) > 0:
                problems.append(
                    f"guard {self.spec.name!r} may roll back (envelope.max_rollbacks={allowed}), and a stress run "
                    f"keeps no snapshots; set it to 0"
                )
        except LbwError as error:
            problems.append(str(error))
        if problems:
            raise StressError(f"run {self.run_id!r}: {'; '.join(problems)}")


def _lr_at(step: int, steps: int, peak: float, fault: Fault | None, excitation: Excitation | None, seed: int) -> float:
    restart = fault.onset_step if fault is not None and fault.restarts_schedule else None
    lr = scheduled_lr(step, steps, peak, restart)
    if excitation is not None:
        lr *= excitation.factor_at(step, seed)[0]
    return lr * fault.lr_factor if fault is not None and fault.active(step) else lr


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlightPlan:
    """One run of any workload with any method, flown by itself. Raises StressError when it makes no sense.

    What is left at its default is filled in from the workload; `dataclasses.replace` keeps what was filled in, the run
    id too.

    >>> FlightPlan(workload="pre_ln", method="clip:0.5").run_id
    'pre_ln-clip_0.5-lr0.01-seed0'
    """

    workload: str = "post_ln"
    method: str = "adamw"
    """A name of `stress.methods`, with its argument: `clip:0.5`, `guard:paired_rollback`."""
    lr: float = 0.0
    """Peak of the schedule; 0: the workload's reference."""
    seed: int = 0
    """Decides initial weights and data order, whatever else differs."""
    steps: int = 0
    """Batches trained on; 0: the workload's."""
    run_id: str = ""
    """Empty: made from what the plan says."""
    fault: Fault | None = None
    excitation: Excitation | None = None
    scales: tuple[float, ...] = ()
    """A guarded run's scales, one per step, for the open-loop controls."""
    validate_every: int = 0
    """Steps from one validation to the next, besides the one at the end; 0: none. Each costs a forward pass over the
    validation data."""
    device: str = "auto"
    """`auto`: a GPU where there is one, except for workloads that are too small for it."""
    data: Path | None = None
    """A text in UTF-8 in place of the workload's own."""
    random_weights: bool = False
    """The published architecture with random weights, for workloads that load any."""

    def __post_init__(self) -> None:
        load = workload(self.workload)
        for name, value in (("lr", load.reference_lr), ("steps", load.steps)):
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        if not self.run_id:
            method = re.sub(r"[^A-Za-z0-9._]+", "_", self.method)
            object.__setattr__(self, "run_id", f"{self.workload}-{method}-lr{self.lr:.4g}-seed{self.seed}")
        problems = []
        if not (0 < self.lr < math.inf):
            problems.append(f"lr={self.lr} is not a positive number")
        if not (0 <= self.seed < 2**63):
            problems.append(f"seed={self.seed} is outside [0, 2^63)")
        if self.steps < 1:
            problems.append(f"steps={self.steps} is below 1")
        if self.validate_every < 0:
            problems.append(f"validate_every={self.validate_every} is below 0")
        if self.fault is not None and not (0 <= self.fault.onset_step < self.steps):
            problems.append(
                f"{self.fault.name} at step {self.fault.onset_step} is outside the run's {self.steps} steps"
            )
        if self.scales and len(self.scales) != self.steps:
            problems.append(f"there are {len(self.scales)} scales for {self.steps} steps; give one per step")
        if self.random_weights and not load.loads_weights:
            problems.append(f"workload {self.workload!r} loads no weights: random_weights says nothing about it")
        try:
            self.fitting()
        except LbwError as error:
            problems.append(str(error))
        if problems:
            raise StressError(f"run {self.run_id!r}: {'; '.join(problems)}")

    def fitting(self) -> Fitting:
        """The method, fitted to this run. Raises StressError or SpecError."""
        return fitted(self.method, steps=self.steps, seed=self.seed, scales=self.scales)

    def lr_at(self, step: int) -> float:
        """Scheduled learning rate, excitation and a fault's bump included."""
        return _lr_at(step, self.steps, self.lr, self.fault, self.excitation, self.seed)

    @classmethod
    def of(cls, plan: RunPlan) -> FlightPlan:
        """A fleet's plan, flown by itself: its guard and its static cap stay behind."""
        return cls(
            workload=plan.architecture,
            method={"clip": f"clip:{plan.clip_norm!r}", "playback": "playback"}.get(plan.method, "adamw"),
            lr=plan.lr,
            seed=plan.seed,
            steps=plan.steps,
            run_id=plan.run_id,
            fault=plan.fault,
            excitation=plan.excitation,
            scales=plan.scales,
        )


class RunResult(NamedTuple):
    """What came of one run."""

    run_id: str
    plan: RunPlan
    validation_loss: float
    """Of the last weights, on the text that the run ended on; nats per byte. nan when the weights are not finite."""
    mean_lr: float
    """Mean over steps of the scheduled learning rate, a fault's bump included."""
    mean_effective_lr: float
    """Mean over steps of the learning rate applied; 0 on a skipped step."""
    energy: float
    """Control energy applied, Σ (1 − scale)²; 0 in shadow mode, whatever the guard would have done."""
    skipped_steps: int
    """Updates that the active guard dropped."""
    scales: tuple[float, ...]
    """Factor applied to the learning rate at each step."""
    seconds: float
    """This run's equal share of the wall-clock time of its graph."""
    lost_rows: int
    """Trace rows that could not be written; 0 when nothing was to be recorded."""


def check_run_ids(plans: Sequence[RunPlan]) -> None:
    """Refuse two plans with one run id: they would write one trace. Raises StressError."""
    double = [name for name, count in Counter(plan.run_id for plan in plans).items() if count > 1]
    if double:
        raise StressError(f"more than one plan is called {', '.join(sorted(double))}; a run id names one run")
