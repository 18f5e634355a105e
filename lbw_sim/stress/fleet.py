"""Trains many tiny runs for real, each with its own guard and its own recorded trace.

Runs of one architecture and length share a graph; which runs share it changes no bit of any of them. It knows no
simulated loss: what a run shows here really happened. It keeps no snapshots, so it cannot roll back.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lbw_sim.errors import StressError
from lbw_sim.guard import GuardState, state_to_data
from lbw_sim.stress.adamw import BatchedAdamW
from lbw_sim.stress.corpus import Codes, corpus, random_labels, training_windows, validation_windows
from lbw_sim.stress.excitation import EXCITATION_CHANNELS
from lbw_sim.stress.plan import RunPlan, RunResult, check_run_ids
from lbw_sim.stress.tiny_gpt import BATCH, CONTEXT, PARAMETERS, SIZES, initial_weights, losses
from lbw_sim.trace.labels import write_labels
from lbw_sim.trace.layout import run_folder_name
from lbw_sim.trace.provenance import Provenance, collect
from lbw_sim.trace.recorder import Recorder
from lbw_sim.values import Posture, Telemetry, nan

RUNS_PER_GRAPH = 8
"""Narrower graphs pay more for each operation, wider ones leave the core's cache; 4 to 16 differ little."""

VALIDATION_BATCHES = 20

Progress = Callable[[int, int], None]


class Checkpoint(NamedTuple):
    """A run between two steps: weights and AdamW's memory. The data order needs none: it comes from seed and step."""

    step: int
    """The step that comes next."""
    weights: Tensor
    """[PARAMETERS], as are the moments."""
    mean: Tensor
    square: Tensor
    updates: float
    """Taken so far."""


class Start(NamedTuple):
    """Where a run begins that goes on from another one."""

    checkpoint: Checkpoint
    guard: GuardState
    """The state of the plan's guard at that step."""
    before: Telemetry
    """The telemetry of the step before it, as that guard knows it."""
    facts: Provenance
    """What its trace says beside the usual."""


Keep = Callable[[str, Checkpoint], None]


def train(
    plans: Sequence[RunPlan],
    folder: Path | None = None,
    progress: Progress | None = None,
    runs_per_graph: int = RUNS_PER_GRAPH,
    *,
    starts: Mapping[str, Start] | None = None,
    keep_steps: Collection[int] = (),
    keep: Keep | None = None,
    ended: Callable[[RunResult], None] | None = None,
) -> list[RunResult]:
    """Train every plan; results in the order of the plans.

    With `folder`, each run is recorded there, with the labels of its fault. `progress` is called after every step
    with the steps done and to do, summed over runs, from one thread at a time. As many graphs are trained at once as
    torch is set to have threads (`torch.set_num_threads`), each on one thread; neither that nor `runs_per_graph`
    changes a bit of any result.

    `starts`: run id -> where that run begins, instead of at step 0; what a result sums up begins there too. `keep` is
    called with run id and checkpoint just before each of the `keep_steps`, `ended` with each result as soon as its
    trace is whole, both from one thread at a time.

    Raises StressError for two plans with one run id, or one that `folder` holds already, and TraceError when a trace
    cannot be begun.
    """
    check_run_ids(plans)
    if folder is not None:
        _refuse_recorded(plans, folder)
    facts = collect(host=False, prose=corpus("prose").digest, code=corpus("code").digest) if folder else {}
    starts = starts or {}
    first_step = {plan.run_id: starts[plan.run_id].checkpoint.step if plan.run_id in starts else 0 for plan in plans}
    alike: dict[tuple[str, int, int], list[RunPlan]] = {}
    for plan in plans:
        alike.setdefault((plan.architecture, plan.steps, first_step[plan.run_id]), []).append(plan)
    graphs = []
    for group in alike.values():
        width = math.ceil(len(group) / math.ceil(len(group) / runs_per_graph))
        graphs += [group[start : start + width] for start in range(0, len(group), width)]
    total = sum(plan.steps - first_step[plan.run_id] for plan in plans)
    done = 0
    lock = threading.Lock()

    stop = threading.Event()

    def count(steps: int) -> None:
        nonlocal done
        if stop.is_set():
            raise KeyboardInterrupt
        with lock:
            done += steps
            if progress is not None:
                progress(done, total)

    def hand_over(run_id: str, checkpoint: Checkpoint) -> None:
        with lock:
            if keep is not None:
                keep(run_id, checkpoint)

    # a graph per thread, not a graph over threads: threads that wait for each other at every operation crawl as soon
    # as another program wants a core
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        torch.set_num_threads(1)
        kept = frozenset(keep_steps)

        def work(graph: list[RunPlan]) -> list[RunResult]:
            results = _train_graph(graph, folder, facts, count, starts, kept, hand_over)
            if ended is not None:
                with lock:
                    for result in results:
                        ended(result)
            return results

        finished = pool.map(work, graphs)
        results = {result.run_id: result for part in finished for result in part}
    except BaseException:
        # or the graphs in flight would be trained to their end before anybody heard of it
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    return [results[plan.run_id] for plan in plans]


class _Run:
    """One run's guard, trace and sums; its tensors lie in the graph's."""

    def __init__(self, plan: RunPlan, weights: Tensor, recorder: Recorder | None, start: Start | None) -> None:
        self.plan = plan
        self.guard = plan.spec.build()
        self.state = self.guard.init() if start is None else start.guard
        self.recorder = recorder
        self.before = self.guard.not_yet if start is None else start.before
        self.lr_sum = 0.0
        self.effective_lr_sum = 0.0
        self.energy = 0.0
        self.skipped_steps = 0
        self.scales: list[float] = []
        self.caps = (
            [plan.cap_ratio * float(part.square().mean().sqrt()) for part in torch.split_with_sizes(weights, SIZES)]
            if plan.method == "static_cap"
            else []
        )

    def decide(self, telemetry: Telemetry) -> tuple[float, bool]:
        """Show the guard what it may see of this step; returns the scale and the skip to apply."""
        self.telemetry = telemetry
        self.state, self.decision = self.guard.step(self.state, self.guard.seen(telemetry, self.before))
        method = self.plan.method
        self.skip = method == "guard" and self.decision.posture == Posture.SKIP
        self.scale = 1.0
        if method == "guard":
            self.scale = self.decision.scale
        elif method == "playback":
            self.scale = self.plan.scales[telemetry.step]
        return self.scale, self.skip

    def finish(self, update_norm: float, elapsed_s: float) -> None:
        """Book the step and write its row, now that the update is known."""
        telemetry = self.telemetry._replace(update_norm=update_norm)
        lr = telemetry.lr * self.scale
        if self.skip:
            lr = 0.0
        elif self.caps:
            lr = sum(min(lr, cap) * size for cap, size in zip(self.caps, SIZES, strict=True)) / PARAMETERS
        self.before = telemetry
        self.lr_sum += telemetry.lr
        self.effective_lr_sum += lr
        self.energy += (1.0 - self.scale) * (1.0 - self.scale)
        self.skipped_steps += self.skip
        self.scales.append(self.scale)
        if self.recorder is not None:
            fault = self.plan.fault
            event = fault.name if fault is not None and fault.active(telemetry.step) else ""
            excitation = self.plan.excitation
            if excitation is not None:
                telemetry = telemetry._replace(extra=excitation.factor_at(telemetry.step, self.plan.seed))
                if excitation.active(telemetry.step) and not event:
                    event = f"excite_{excitation.kind}"
            self.recorder.append(
                telemetry, self.decision, elapsed_s=elapsed_s, effective_lr=lr, skipped=self.skip, event=event
            )


def _train_graph(
    plans: Sequence[RunPlan],
    folder: Path | None,
    facts: Provenance,
    count: Callable[[int], None],
    starts: Mapping[str, Start],
    keep_steps: Collection[int],
    keep: Keep,
) -> list[RunResult]:
    """Train runs of one architecture, length and first step in one graph."""
    begun = [starts.get(plan.run_id) for plan in plans]
    weights = torch.stack(
        [
            initial_weights(plan.seed) if start is None else start.checkpoint.weights
            for plan, start in zip(plans, begun, strict=True)
        ]
    )
    optimizer = BatchedAdamW(weights)
    first_step = 0
    for row, start in enumerate(begun):
        if start is not None:
            first_step, _, optimizer.mean[row], optimizer.square[row], optimizer.counts[row] = start.checkpoint
    with ExitStack() as recording:
        runs = []
        for plan, row, start in zip(plans, weights, begun, strict=True):
            recorder = None if folder is None else _record(plan, folder, facts, start)
            if recorder is not None:
                recording.callback(recorder.close)
            runs.append(_Run(plan, row, recorder, start))
        started = time.perf_counter()
        steps = range(first_step, plans[0].steps)
        _train_steps(runs, optimizer, steps, started, count, keep_steps, keep)
        validation = validate([run.plan for run in runs], weights)
        seconds = (time.perf_counter() - started) / len(runs)
    return [
        RunResult(
            run_id=run.plan.run_id,
            plan=run.plan,
            validation_loss=loss,
            mean_lr=run.lr_sum / len(steps),
            mean_effective_lr=run.effective_lr_sum / len(steps),
            energy=run.energy,
            skipped_steps=run.skipped_steps,
            scales=tuple(run.scales),
            seconds=seconds,
            lost_rows=0 if run.recorder is None else run.recorder.lost_rows,
        )
        for run, loss in zip(runs, validation, strict=True)
    ]


def _refuse_recorded(plans: Sequence[RunPlan], folder: Path) -> None:
    """A second recording under one run id would read as the first one, resumed."""
    there = [plan.run_id for plan in plans if (folder / run_folder_name(plan.run_id)).exists()]
    if there:
        raise StressError(
            f"{folder} holds {', '.join(there)} already; record into another folder, or remove those runs"
        )


def _record(plan: RunPlan, folder: Path, facts: Provenance, start: Start | None) -> Recorder:
    """Begin a run's trace and write down its fault."""
    fault = plan.fault
    more: Provenance = {
        "seed": plan.seed,
        "architecture": plan.architecture,
        "method": plan.method,
        "peak_lr": plan.lr,
        "steps": plan.steps,
        "fault": None if fault is None else fault.name,
    }
    channels: tuple[str, ...] = ()
    if plan.excitation is not None:
        channels = EXCITATION_CHANNELS
        more |= {f"excitation_{key}": value for key, value in dataclasses.asdict(plan.excitation).items()}
    began = None
    if start is not None:
        more |= start.facts
        began = {"guard": state_to_data(start.guard), "before": state_to_data(start.before)}
    recorder = Recorder.open(
        folder, plan.run_id, spec=plan.spec, mode=plan.mode, provenance=facts | more, extra_channels=channels,
        guard_state=began,
    )  # fmt: skip
    if fault is not None:
        write_labels(folder / run_folder_name(plan.run_id), [fault.label(plan.steps, guarded=plan.mode == "active")])
    return recorder


def _train_steps(
    runs: Sequence[_Run],
    optimizer: BatchedAdamW,
    steps: range,
    started: float,
    count: Callable[[int], None],
    keep_steps: Collection[int],
    keep: Keep,
) -> None:
    """These steps of all runs of one graph, in place on the optimizer's weights [runs, PARAMETERS]."""
    first = runs[0].plan
    leaf = optimizer.weights.detach().requires_grad_()
    clips = [run.plan.clip_norm if run.plan.method == "clip" else math.inf for run in runs]
    clip = torch.tensor(clips) if min(clips) < math.inf else None
    caps = None
    if any(run.caps for run in runs):
        each = torch.tensor([run.caps or [math.inf] * len(SIZES) for run in runs])
        caps = each.repeat_interleave(torch.tensor(SIZES), dim=1)
    tokens = float(BATCH * CONTEXT)

    for step in steps:
        if step in keep_steps:
            for row, run in enumerate(runs):
                weights, mean, square = (
                    tensor[row].clone() for tensor in (optimizer.weights, optimizer.mean, optimizer.square)
                )
                keep(run.plan.run_id, Checkpoint(step, weights, mean, square, float(optimizer.counts[row])))
        inputs, labels = batches([run.plan for run in runs], step)
        leaf.grad = None
        loss = losses(leaf, inputs, labels, first.architecture)
        faults = [run.plan.fault if run.plan.fault and run.plan.fault.active(step) else None for run in runs]
        for row, fault in enumerate(faults):
            if fault is not None and fault.loss_factor != 1.0:
                factor = torch.ones(len(runs))
                factor[row] = fault.loss_factor
                loss = loss * factor
        loss.sum().backward()  # type: ignore[no-untyped-call]
        gradient = leaf.grad
        assert gradient is not None
        for row, fault in enumerate(faults):
            if fault is not None and fault.gradient_factor != 1.0:
                gradient[row] *= fault.gradient_factor
            if fault is not None and fault.noise_ratio > 0.0:
                add_noise(gradient[row], fault.noise_ratio, runs[row].plan.seed, step)
        norms = torch.linalg.vector_norm(gradient, dim=1)

        lrs, skips = [], []
        for run, run_loss, run_norm in zip(runs, loss.tolist(), norms.tolist(), strict=True):
            finite = math.isfinite(run_loss) and math.isfinite(run_norm)
            lr = run.plan.lr_at(step)
            scale, skip = run.decide(Telemetry(step, run_loss, lr, run_norm, nan, tokens, 0.0 if finite else 1.0))
            lrs.append(lr * scale)
            skips.append(skip)
        lr_rows = torch.tensor(lrs).view(-1, 1)
        if caps is not None:
            lr_rows = torch.minimum(lr_rows, caps)
        if clip is not None:
            # a run that does not clip has an infinite limit: its gradient keeps every bit
            gradient.mul_(torch.where(norms > clip, clip / norms, 1.0).view(-1, 1))
        updates = optimizer.step(gradient, lr_rows, torch.tensor(skips))
        elapsed_s = time.perf_counter() - started
        for run, update_norm in zip(runs, updates.tolist(), strict=True):
            run.finish(update_norm, elapsed_s)
        count(len(runs))


def batches(plans: Sequence[RunPlan], step: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels of one step for every run, faults included; [runs, BATCH, CONTEXT] each."""
    # runs that share seed and data share the draw
    drawn: dict[tuple[str, int, int], Codes] = {}
    windows = []
    for plan in plans:
        key = (plan.corpus_at(step), plan.seed, plan.data_step(step))
        if key not in drawn:
            drawn[key] = training_windows(corpus(key[0]), key[1], key[2], BATCH, CONTEXT + 1)
        windows.append(drawn[key])
    stacked = torch.from_numpy(np.stack(windows)).long()
    inputs, labels = stacked[:, :, :-1], stacked[:, :, 1:]
    for row, plan in enumerate(plans):
        fault = plan.fault
        if fault is not None and fault.random_labels and fault.active(step):
            labels[row] = torch.from_numpy(random_labels(plan.seed, step, BATCH, CONTEXT))
    return inputs, labels


def add_noise(gradient: Tensor, ratio: float, seed: int, step: int) -> None:
    """Add Gaussian noise of `ratio` times the norm to one run's gradient [parameters], in place."""
    drawn = np.random.default_rng((3, seed, step)).standard_normal(len(gradient), dtype=np.float32)
    noise = torch.from_numpy(drawn).to(gradient.device)
    gradient += noise * (ratio * gradient.norm() / noise.norm())


def validate(plans: Sequence[RunPlan], weights: Tensor) -> list[float]:
    """Mean loss of each run on fixed windows of the text that it ended on; nats per byte."""
    texts = [plan.corpus_at(plan.steps - 1) for plan in plans]
    cuts = {
        name: validation_windows(corpus(name), VALIDATION_BATCHES * BATCH, CONTEXT + 1).reshape(
            VALIDATION_BATCHES, BATCH, CONTEXT + 1
        )
        for name in set(texts)
    }
    total = torch.zeros(len(plans))
    with torch.no_grad():
        for batch in range(VALIDATION_BATCHES):
            stacked = torch.from_numpy(np.stack([cuts[name][batch] for name in texts])).long()
            total += losses(weights, stacked[:, :, :-1], stacked[:, :, 1:], plans[0].architecture)
    return [value / VALIDATION_BATCHES for value in total.tolist()]
