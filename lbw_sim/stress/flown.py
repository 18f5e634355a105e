"""One run at a time, for real: any workload and method, torch's own AdamW, `attach`, probes, snapshots and rollback.

Slower than the fleet, which knows one model, no probes and cannot go back. What it gives is what really happened in one
run, not an estimate of what a method is worth. It chooses no learning rate and compares nothing.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsFloat

import numpy as np
import torch
from torch import Tensor, nn

from lbw_sim.errors import StressError
from lbw_sim.guard import GuardSpec
from lbw_sim.live import LiveGuard, Probe, Snapshots, attach
from lbw_sim.live.probes import Canary, FullStepLr, GradientReach, HalfStep, InitialWeightRms, PairedProbe, UpdateNorm
from lbw_sim.stress.faults import Fault
from lbw_sim.stress.fleet import add_noise
from lbw_sim.stress.leg import Leg, refuse_grounded
from lbw_sim.stress.method import Fitting, Workplace
from lbw_sim.stress.plan import FlightPlan, RunPlan
from lbw_sim.stress.workload import Session, Workload
from lbw_sim.stress.workloads import workload
from lbw_sim.trace.labels import write_labels
from lbw_sim.trace.layout import run_folder_name
from lbw_sim.trace.provenance import Provenance
from lbw_sim.values import UNSAFE_REGIMES, Decision

MEASURE_EVERY, SPAN = 5, 10
"""Steps from one measurement of canary and paired probe to the next, and steps that the pair lies apart."""
MOST_WEIGHTS = 1_000_000
"""More weights than these are not handed back."""


class Flown(NamedTuple):
    """What came of one flown run."""

    plan: FlightPlan
    validation_loss: float
    """Of the last weights, on the text that the run ended on; nats per unit."""
    losses: tuple[float, ...]
    """Training loss of every step, in the order of time; nats per unit."""
    validation_curve: tuple[tuple[int, float], ...]
    """(steps taken, validation loss), every `plan.validate_every` steps; the last weights are not in it."""
    decisions: tuple[Decision, ...]
    """One per step taken, in the order of time; empty without a guard. In shadow mode none was carried out."""
    scales: tuple[float, ...]
    """Factor on the scheduled learning rate that was applied at each step, by guard, hand or operator; where it differs
    between parameters, their mean weighted by size. A skipped step keeps the factor that it would have had."""
    skipped: tuple[bool, ...]
    """Steps that brought no update: skipped, or spent on a rollback."""
    rolled_back_to: tuple[int, ...]
    """Steps that the run went back to, in the order of time."""
    retrained_steps: int
    """Steps whose updates were given up by rollbacks."""
    mean_lr: float
    """Mean over steps of the scheduled learning rate, a fault's bump included."""
    mean_effective_lr: float
    """Mean over steps of the learning rate applied; 0 on a skipped step."""
    tokens: int
    """Trained on, those included whose updates were skipped or given up."""
    unit: str
    """What `tokens` counts: `byte`, `token` or `image`."""
    wall_s: float
    """Of the training loop, guard and probes included; building the model and validating are not in it."""
    cpu_s: float
    """Of this process, over the same part."""
    facts: Provenance
    """What the workload says of its data and weights."""
    weights: Tensor
    """The last ones that were trained; [1, trained parameters], or [1, 0] when there are more than a million."""

    @property
    def perplexity(self) -> float:
        """e to the validation loss; of bytes, tokens or images, as `unit` says."""
        return math.exp(self.validation_loss) if self.validation_loss < 700.0 else self.validation_loss * math.inf

    @property
    def energy(self) -> float:
        """Control energy applied, Σ (1 − scale)²."""
        return math.fsum((1.0 - scale) ** 2 for scale in self.scales)

    @property
    def active_steps(self) -> int:
        """Steps whose scale was below 1."""
        return sum(scale < 1.0 for scale in self.scales)

    @property
    def regime_switches(self) -> int:
        """Steps whose regime is not that of the step before; 0 without a guard."""
        regimes = [decision.regime for decision in self.decisions]
        return sum(now != before for before, now in itertools.pairwise(regimes))

    @property
    def stress_steps(self) -> int:
        """Steps in an unsafe regime; 0 without a guard."""
        return sum(decision.regime in UNSAFE_REGIMES for decision in self.decisions)

    @property
    def skipped_steps(self) -> int:
        """Updates that did not happen."""
        return sum(self.skipped)

    @property
    def nonfinite(self) -> bool:
        """The run ended with a loss that is no number."""
        return not math.isfinite(self.validation_loss)


ProbeMaker = Callable[[Any, torch.optim.Optimizer], Sequence[Probe]]
"""Probes for a model, which the workload's session made, and its optimizer."""


def every_probe(session: Session, optimizer: torch.optim.Optimizer) -> list[Probe]:
    """Every probe that a preset reads, and the update norm. The canary batch comes from the training text."""
    canary = session.canary_batch()
    return [
        Canary(session.model, lambda: session.loss(canary), every_steps=MEASURE_EVERY),
        PairedProbe(session.model, session.loss, every_steps=MEASURE_EVERY, span_steps=SPAN),
        InitialWeightRms(session.model),
        FullStepLr(session.model),
        HalfStep(session.model, session.loss, optimizer),
        GradientReach(optimizer),
        UpdateNorm(optimizer),
    ]


class _AppliedScale:
    """Channel `method_scale`: the factor that a hand put on the learning rate, which no guard knows of."""

    channels: tuple[str, ...] = ("method_scale",)

    def __init__(self) -> None:
        self.scale = 1.0

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        return {"method_scale": self.scale}

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        return {}


def fly(
    plan: FlightPlan | RunPlan,
    guard: GuardSpec | str | None = None,
    *,
    mode: Literal["active", "shadow"] = "active",
    probes: ProbeMaker | None = None,
    folder: Path | None = None,
    leg: Leg | None = None,
) -> Flown:
    """Train `plan` for real; under `guard`, which acts unless `mode` is `shadow`, or under its method's own.

    Of a `RunPlan` count architecture, learning rate, seed, steps, fault, and methods `clip` and `playback`. `probes`
    makes the probes; by default those of `every_probe` that the guard reads: the others would cost time for nothing.
    With `folder` the run is recorded there; without a guard of its own it carries `default` in shadow then.
    With `leg` the run is that leg of a fork, under the leg's guard and recorded in the leg's folder.

    A rollback takes back weights and moments; data and schedule go on, so that every method gets the same number of
    batches. Raises StressError when the workload cannot be had, or when a guard that acts was grounded, by a full disk
    say, for then what follows is not its run; and what `attach` raises.
    """
    if isinstance(plan, RunPlan):
        plan = FlightPlan.of(plan)
    fitting = plan.fitting()
    if leg is not None:
        guard, mode = leg.spec, leg.mode
    if guard is not None:
        spec = guard if isinstance(guard, GuardSpec) else GuardSpec.load(guard)
        fitting = fitting._replace(guard=spec)
    load = workload(plan.workload)
    session = load.session(plan.seed, _device(plan.device, load), data=plan.data, random_weights=plan.random_weights)
    flight = _Flight(plan, fitting, session, "active" if fitting.guard is not None and mode == "active" else "shadow")
    flight.attach(probes, folder, load.snapshots_every, load.snapshots_kept, leg)
    try:
        for step in range(0 if leg is None else leg.first_step, plan.steps if fitting.trains else 0):
            if leg is not None:
                leg.keep(step, model=flight.model, optimizer=flight.optimizer)
            flight.take(step)
            # of a fork also one that watches a trunk on whose branches it will act
            if leg is not None or flight.mode == "active":
                refuse_grounded(flight.live, plan.run_id)
    finally:
        flight.end()
    return flight.flown()


class _Flight:
    """One run as it goes."""

    def __init__(self, plan: FlightPlan, fitting: Fitting, session: Session, mode: Literal["active", "shadow"]) -> None:
        self.plan, self.fitting, self.session, self.mode = plan, fitting, session, mode
        self.model = session.model
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups: list[Any] = [{"params": [p]} for p in self.parameters] if fitting.per_tensor else self.parameters
        self.optimizer = torch.optim.AdamW(groups, lr=plan.lr)
        self.hand = None if fitting.hand is None else fitting.hand(Workplace(self.parameters, self.optimizer))
        self.on_gpu = self.parameters[0].device.type == "cuda"
        sizes = np.array([parameter.numel() for parameter in self.parameters], dtype=float)
        self.shares = sizes / sizes.sum()
        self.live: LiveGuard | None = None
        self.folder: Path | None = None
        self.told = _AppliedScale()
        self.passed_over = 0
        self.operator_factor = 1.0
        self.losses: list[Tensor | float] = []
        self.curve: list[tuple[int, float]] = []
        self.decisions: list[Decision] = []
        self.scales: list[float] = []
        self.skipped: list[bool] = []
        self.went_back: list[int] = []
        self.retrained = 0
        self.lr_sum = self.effective_lr_sum = 0.0
        self.wall_s = self.cpu_s = 0.0

    def attach(self, probes: ProbeMaker | None, folder: Path | None, every: int, keep: int, leg: Leg | None) -> None:
        """Put the guard on, and the recorder; on a leg of a fork, go back to its checkpoint."""
        plan = self.plan
        spec = self.fitting.guard
        if spec is None and folder is None:
            return
        if folder is not None and (folder / run_folder_name(plan.run_id)).exists():
            # a second recording under one run id would read as the first one, resumed
            raise StressError(f"{folder} holds {plan.run_id} already; record into another folder, or remove that run")
        chosen: list[Probe] = []
        if spec is None:
            spec = GuardSpec.load("default")
        else:
            wanted = set(spec.build().extra_channels) | (set() if leg is None else leg.channels)
            needs_update_norm = "update_norm" in spec.build().needs
            if probes is not None:
                chosen = list(probes(self.model, self.optimizer))
            elif wanted or needs_update_norm:
                wanted |= {"update_norm"} if needs_update_norm else set()
                chosen = [p for p in every_probe(self.session, self.optimizer) if wanted & set(p.channels)]
        if self.hand is not None and folder is not None:
            chosen.append(self.told)
        # the ring has to reach as far as a rollback asks, and a trunk's serves all guards of the fork
        among = [spec] if leg is None else leg.guards
        deepest = max((one.tables["policy"].get("rollback_steps", 0) for one in among), default=0)
        every = max(every, math.ceil(deepest / max(1, keep - 1)))
        asking = leg.guards if leg is not None and leg.trunk else [spec]
        back = any(one.tables["envelope"]["max_rollbacks"] > 0 for one in asking)
        snapshots = Snapshots(every_steps=every, keep=keep, on_rollback=self._went_back) if back else None
        what: dict[str, Any] = {"probes": chosen, "snapshots": snapshots, "provenance": self._provenance()}
        if leg is not None:
            # after the probes are made: one of them measures the initial weights
            leg.restore(model=self.model, optimizer=self.optimizer)
            self.live = leg.attach(self.optimizer, **what)
            return
        self.live = attach(
            self.optimizer, spec, trace=folder, run_id=plan.run_id, mode=self.mode, unproven=True, **what
        )
        self.folder = folder

    def _provenance(self) -> Provenance:
        plan = self.plan
        facts: Provenance = {
            "host": None,
            "workload": plan.workload,
            # the name under which reports group runs over learning rates
            "architecture": plan.workload,
            "method": plan.method if self.mode == "shadow" else f"guard:{self.fitting.guard.name}",  # type: ignore[union-attr]
            "peak_lr": plan.lr,
            "seed": plan.seed,
            "steps": plan.steps,
            "fault": None if plan.fault is None else plan.fault.name,
        }
        return facts | self.session.facts

    def take(self, step: int) -> None:
        """One step of the training loop."""
        plan, live, session, optimizer = self.plan, self.live, self.session, self.optimizer
        if plan.validate_every and step and step % plan.validate_every == 0:
            self.curve.append((step, session.validation_loss()))
        wall, cpu = self._clock()
        fault = plan.fault if plan.fault is not None and plan.fault.active(step) else None
        lr = plan.lr_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = session.batch(step + self.passed_over, plan.fault)
        optimizer.zero_grad()
        loss = session.loss(batch)
        if fault is not None and fault.loss_factor != 1.0:
            loss = loss * fault.loss_factor
        loss.backward()  # type: ignore[no-untyped-call]
        if fault is not None:
            disturb(self.parameters, fault, plan.seed, step)
        # waiting for the number costs nothing on a CPU and a stall on a GPU
        seen = loss.detach() if self.on_gpu and self.hand is None else float(loss.detach())
        self.losses.append(seen)
        norm = None
        if live is not None:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        factor: float | Sequence[float] = 1.0
        if self.hand is not None:
            factor = self.hand.act(step, float(seen))
        scale = self._scaled(lr, factor)
        if live is not None:
            if fault is not None:
                live.mark(fault.name)
            self.told.scale = scale
            live.observe(loss, tokens=session.tokens_per_step, grad_norm=norm, batch=batch)
        rollbacks = len(self.went_back)
        optimizer.step()
        skipped = False
        if live is not None:
            self.decisions.append(live.decision)
            if self.mode == "active":
                applied = live.applied_scale
                skipped = applied == 0.0
                scale *= live.decision.scale
                if len(self.went_back) > rollbacks:
                    self._operate()
        self.scales.append(scale)
        self.skipped.append(skipped)
        self.lr_sum += lr
        self.effective_lr_sum += 0.0 if skipped else lr * scale
        ended_wall, ended_cpu = self._clock()
        self.wall_s += ended_wall - wall
        self.cpu_s += ended_cpu - cpu

    def _scaled(self, lr: float, factor: float | Sequence[float]) -> float:
        """Put a hand's and the operator's factor on the learning rate; returns their mean over weights."""
        groups = self.optimizer.param_groups
        if isinstance(factor, (int, float)):
            whole = self.operator_factor * factor
            if whole != 1.0:
                for group in groups:
                    group["lr"] = lr * whole
            return whole
        for group, one in zip(groups, factor, strict=True):
            group["lr"] = lr * (self.operator_factor * one)
        return self.operator_factor * float(np.dot(self.shares, np.array(factor)))

    def _went_back(self, step: int) -> None:
        assert self.live is not None
        self.retrained += self.live.step - step
        self.went_back.append(step)

    def _operate(self) -> None:
        """What an operator does after going back: pass over batches, lower the learning rate."""
        self.passed_over += self.fitting.pass_over_batches
        self.operator_factor *= self.fitting.lr_factor

    def _clock(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Whatever happened: finish the trace, take the guard off."""
        if self.on_gpu:
            wall, cpu = self._clock()
            torch.cuda.synchronize()
            ended_wall, ended_cpu = self._clock()
            self.wall_s += ended_wall - wall
            self.cpu_s += ended_cpu - cpu
        if self.live is not None:
            self.live.close()
        if self.folder is not None and self.plan.fault is not None:
            label = self.plan.fault.label(self.plan.steps, guarded=self.mode == "active")
            write_labels(self.folder / run_folder_name(self.plan.run_id), [label])

    def flown(self) -> Flown:
        """What came of it."""
        taken = len(self.scales)
        few = sum(parameter.numel() for parameter in self.parameters) <= MOST_WEIGHTS
        weights = [parameter.detach().reshape(-1).cpu() for parameter in self.parameters] if few else [torch.zeros(0)]
        return Flown(
            plan=self.plan,
            validation_loss=self.session.validation_loss(),
            losses=tuple(float(loss) for loss in self.losses),
            validation_curve=tuple(self.curve),
            decisions=tuple(self.decisions),
            scales=tuple(self.scales),
            skipped=tuple(self.skipped),
            rolled_back_to=tuple(self.went_back),
            retrained_steps=self.retrained,
            mean_lr=self.lr_sum / max(1, taken),
            mean_effective_lr=self.effective_lr_sum / max(1, taken),
            tokens=taken * self.session.tokens_per_step,
            unit=self.session.unit,
            wall_s=self.wall_s,
            cpu_s=self.cpu_s,
            facts=dict(self.session.facts),
            weights=torch.cat(weights).unsqueeze(0),
        )


def _device(wanted: str, load: Workload) -> str:
    return wanted if wanted != "auto" else "cuda" if load.on_gpu and torch.cuda.is_available() else "cpu"


def disturb(parameters: Sequence[nn.Parameter], fault: Fault, seed: int, step: int) -> None:
    """Do to the gradients what the fault does to them in the fleet."""
    if fault.gradient_factor == 1.0 and fault.noise_ratio == 0.0:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    whole = torch.cat([gradient.reshape(-1) for gradient in gradients]) * fault.gradient_factor
    if fault.noise_ratio > 0.0:
        add_noise(whole, fault.noise_ratio, seed, step)
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, part in zip(gradients, torch.split_with_sizes(whole, sizes), strict=True):
        gradient.copy_(part.view_as(gradient))
