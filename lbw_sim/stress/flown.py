"""One tiny run at a time through the live guard: torch's own AdamW, `attach`, probes, snapshots and rollback.

Slower than the fleet, which knows no probes and cannot go back; the same model, data, schedule and faults. What it
gives is what really happened in one run, not an estimate of what a guard is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lbw_sim.guard import GuardSpec
from lbw_sim.live import Probe, Snapshots, attach
from lbw_sim.live.probes import Canary, FullStepLr, InitialWeightRms, PairedProbe, UpdateNorm
from lbw_sim.stress.corpus import corpus, training_windows
from lbw_sim.stress.faults import Fault
from lbw_sim.stress.fleet import add_noise, batches, validate
from lbw_sim.stress.plan import RunPlan
from lbw_sim.stress.tiny_gpt import BATCH, CONTEXT, SHAPES, SIZES, initial_weights, losses
from lbw_sim.values import Decision

CANARY_SEED = 10_000
"""Added to a run's seed for its canary batch, which is drawn from the same text."""
SNAPSHOTS_EVERY, SNAPSHOTS_KEPT = 10, 8
MEASURE_EVERY, SPAN = 5, 10
"""Steps from one measurement of canary and paired probe to the next, and steps that the pair lies apart."""


class TinyGpt(nn.Module):
    """The tiny GPT as a module: one parameter for each weight matrix; gives the loss of one batch."""

    def __init__(self, seed: int, architecture: str) -> None:
        super().__init__()
        self.architecture = architecture
        parts = torch.split_with_sizes(initial_weights(seed), SIZES)
        self.matrices = nn.ParameterList(
            nn.Parameter(part.clone().view(shape)) for part, shape in zip(parts, SHAPES.values(), strict=True)
        )

    @property
    def weights(self) -> Tensor:
        """All weights in one row; [1, PARAMETERS]."""
        return torch.cat([matrix.reshape(-1) for matrix in self.matrices]).unsqueeze(0)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of inputs and labels [1, BATCH, CONTEXT]; nats per byte."""
        return losses(self.weights, *batch, self.architecture)[0]


class Flown(NamedTuple):
    """What came of one flown run."""

    validation_loss: float
    """Of the last weights, on the text that the run ended on; nats per byte."""
    decisions: tuple[Decision, ...]
    """One per step taken, in the order of time; empty without a guard."""
    rolled_back_to: tuple[int, ...]
    """Steps that the run went back to, in the order of time."""
    weights: Tensor
    """The last ones; [1, PARAMETERS]."""


ProbeMaker = Callable[[TinyGpt, torch.optim.Optimizer], Sequence[Probe]]


def every_probe(model: TinyGpt, optimizer: torch.optim.Optimizer, seed: int) -> list[Probe]:
    """Every probe that a preset reads, and the update norm. The canary batch comes from the training text."""
    windows = training_windows(corpus("prose"), CANARY_SEED + seed, 0, BATCH, CONTEXT + 1)
    codes = torch.from_numpy(windows).long().unsqueeze(0)
    canary = codes[:, :, :-1], codes[:, :, 1:]
    return [
        Canary(model, lambda: model(canary), every_steps=MEASURE_EVERY),
        PairedProbe(model, model, every_steps=MEASURE_EVERY, span_steps=SPAN),
        InitialWeightRms(model),
        FullStepLr(model),
        UpdateNorm(optimizer),
    ]


def fly(
    plan: RunPlan,
    guard: GuardSpec | str | None = None,
    *,
    mode: Literal["active", "shadow"] = "active",
    probes: ProbeMaker | None = None,
    folder: Path | None = None,
) -> Flown:
    """Train `plan` for real under `guard`, which acts unless `mode` is `shadow`; without one, unguarded.

    Of the plan count architecture, learning rate, seed, steps, fault, and method `clip`; the others are the fleet's.
    `probes` makes the probes; by default those of `every_probe` that the guard reads: the others would cost time for
    nothing. With `folder` the run is recorded there. A rollback takes back weights and moments; data and schedule go
    on. Raises what `attach` raises.
    """
    spec = guard if isinstance(guard, GuardSpec) or guard is None else GuardSpec.load(guard)
    model = TinyGpt(plan.seed, plan.architecture)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr)
    live = None
    went_back: list[int] = []
    if spec is not None:
        wanted = set(spec.build().extra_channels)
        chosen = [p for p in every_probe(model, optimizer, plan.seed) if wanted & set(p.channels)]
        live = attach(
            optimizer,
            spec,
            trace=folder,
            run_id=plan.run_id,
            mode=mode,
            unproven=True,
            probes=chosen if probes is None else probes(model, optimizer),
            snapshots=Snapshots(every_steps=SNAPSHOTS_EVERY, keep=SNAPSHOTS_KEPT, on_rollback=went_back.append),
            provenance={"host": None, "seed": plan.seed, "architecture": plan.architecture, "peak_lr": plan.lr},
        )
    decisions = []
    try:
        for step in range(plan.steps):
            fault = plan.fault if plan.fault is not None and plan.fault.active(step) else None
            for group in optimizer.param_groups:
                group["lr"] = plan.lr_at(step)
            batch = batches([plan], step)
            optimizer.zero_grad()
            loss = model(batch)
            if fault is not None and fault.loss_factor != 1.0:
                loss = loss * fault.loss_factor
            loss.backward()
            if fault is not None:
                _disturb(model, fault, plan.seed, step)
            norm = nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm if plan.method == "clip" else math.inf)
            if live is not None:
                if fault is not None:
                    live.mark(fault.name)
                live.observe(loss, tokens=BATCH * CONTEXT, grad_norm=norm, batch=batch)
            optimizer.step()
            if live is not None:
                decisions.append(live.decision)
    finally:
        if live is not None:
            live.close()
    weights = model.weights.detach()
    return Flown(validate([plan], weights)[0], tuple(decisions), tuple(went_back), weights)


def _disturb(model: TinyGpt, fault: Fault, seed: int, step: int) -> None:
    """Do to the gradients what the fault does to them in the fleet."""
    if fault.gradient_factor == 1.0 and fault.noise_ratio == 0.0:
        return
    gradients = [matrix.grad for matrix in model.matrices if matrix.grad is not None]
    whole = torch.cat([gradient.reshape(-1) for gradient in gradients]) * fault.gradient_factor
    if fault.noise_ratio > 0.0:
        add_noise(whole, fault.noise_ratio, seed, step)
    for gradient, part in zip(gradients, torch.split_with_sizes(whole, SIZES), strict=True):
        gradient.copy_(part.view_as(gradient))
