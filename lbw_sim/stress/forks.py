"""Forks: real runs that go on from one checkpoint, on one data order, with an action and without it.

What an action did is the difference between branches that share everything else; no plant and no model of training is
asked. It says nothing about another step, run or model, and one trunk is an anecdote: intervals are over trunks.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsFloat

import numpy as np
import torch

from lbw_sim.errors import LbwError, StressError
from lbw_sim.guard import Envelope, Guard, GuardSpec, GuardState, state_to_data
from lbw_sim.guard.analyzers.never import Never
from lbw_sim.guard.policies.planned import LATEST_STEP, Planned
from lbw_sim.guard.sensors.raw import Raw
from lbw_sim.replay.reference import telemetry_rows
from lbw_sim.score.significance import student_quantile
from lbw_sim.stress.fleet import Checkpoint, Start, train
from lbw_sim.stress.flown import fly
from lbw_sim.stress.leg import Leg
from lbw_sim.stress.plan import TELEMETRY_CHANNELS, RunPlan
from lbw_sim.trace import read_trace
from lbw_sim.trace.ancestry import OFF, Ancestry
from lbw_sim.trace.layout import run_folder_name
from lbw_sim.values import UNSAFE_REGIMES, Telemetry

Progress = Callable[[str, int, int], None]
Loop = Callable[[Leg], SupportsFloat]
"""Trains from `leg.first_step` to the end under `leg.attach(...)`; returns the final loss."""

_SAME = ("step", "loss", "effective_lr")
"""Columns in which a branch without an action has to be its trunk, to the bit."""
_ACTION = re.compile(r"(lr:(?P<scale>[^:]+)|skip)(:(?P<first>\d+)(-(?P<last>\d+))?)?")
_UNLIMITED = Envelope(
    min_scale=0.01, max_drop=1.0, max_rise=1.0, max_damped_steps=100_000, rest_steps=0, energy_per_1000_steps=1000.0,
    max_skips_in_a_row=100, skips_per_1000_steps=1000.0,
)  # fmt: skip
MOST_SKIPS = _UNLIMITED.max_skips_in_a_row
"""The longest run of updates that any guard may drop."""


class ForkAction(NamedTuple):
    """What is done on one branch, from the fork on."""

    name: str
    guard: Callable[[int], GuardSpec]
    """Fork step -> the guard that does it."""

    @classmethod
    def of_guard(cls, spec: GuardSpec | str) -> ForkAction:
        """A guard, which has watched the trunk from its first step and acts from the fork on. Raises SpecError."""
        found = spec if isinstance(spec, GuardSpec) else GuardSpec.load(spec)
        return cls(found.name, lambda step: found)

    @classmethod
    def planned(cls, text: str) -> ForkAction:
        """`lr:0.3`, `lr:0.3:0-39`, `skip:0-4`: factor on the learning rate, or updates dropped, whatever happens.

        Steps are counted from the fork, inclusive; without them, to the end. Raises StressError.

        >>> ForkAction.planned("lr:0.3:0-39").guard(100).tables["policy"]["last_step"]
        139
        """
        found = _ACTION.fullmatch(text)
        problem = "say lr:FACTOR, lr:FACTOR:FIRST-LAST or skip:FIRST-LAST, steps counted from the fork"
        if found is None:
            raise StressError(f"action {text!r} is none: {problem}")
        first = int(found["first"] or 0)
        last = LATEST_STEP if found["first"] is None else int(found["last"] or first)
        skip = found["scale"] is None
        if last < first:
            raise StressError(f"action {text!r} ends before it begins: {problem}")
        if skip and last - first >= MOST_SKIPS:
            raise StressError(f"action {text!r} drops more than {MOST_SKIPS} updates running, the most that can be")
        try:
            scale = 1.0 if skip else float(found["scale"])
            rule = Planned(scale=scale, skip=int(skip))
        except ValueError:
            raise StressError(f"action {text!r}: {found['scale']!r} is not a number; {problem}") from None
        except LbwError as error:
            raise StressError(
                f"action {text!r}: {error}. To raise a learning rate on purpose: lbw record --excite"
            ) from None

        def guard(step: int) -> GuardSpec:
            policy = dataclasses.replace(rule, first_step=step + first, last_step=min(LATEST_STEP, step + last))
            return GuardSpec.of(Guard(sensor=Raw(), analyzer=Never(), policy=policy, envelope=_UNLIMITED), text)

        return cls(text, guard)


class Outcome(NamedTuple):
    """One branch of one fork, run to its end."""

    trunk: str
    step: int
    """Of the fork."""
    branch: str
    """`off`, or the action's name."""
    run_id: str
    final_loss: float
    """What the loop returned; of the tiny GPT the validation loss of the last weights, nats per byte."""
    is_trunk: bool
    """Of `off` only: it has the trunk's rows to the bit. Where it has not, the loop draws on something that was not
    kept, and every difference holds that as well."""


class Effect(NamedTuple):
    """One action over all forks."""

    branch: str
    trunks: int
    forks: int
    broken: int
    """Forks in which this branch ended without a finite loss; then nothing is averaged."""
    final_loss: float
    """Mean over forks."""
    difference: float
    """Final loss minus that of the branch `off` of the same fork: mean over the forks of a trunk, then over trunks.
    Negative: the action helped."""
    low: float
    """End of the 95 % interval over trunks (Student's t); nan with one trunk."""
    high: float


def effects(outcomes: Sequence[Outcome]) -> list[Effect]:
    """What each action did, `off` first.

    >>> pairs = [("a", 2.0, 1.9), ("b", 2.2, 2.0)]
    >>> found = [Outcome(t, 9, n, "", x, True) for t, off, on in pairs for n, x in (("off", off), ("cut", on))]
    >>> effects(found)[1].branch, round(effects(found)[1].difference, 3), round(effects(found)[1].low, 2)
    ('cut', -0.15, -0.79)
    """
    off = {(one.trunk, one.step): one.final_loss for one in outcomes if one.branch == OFF}
    found = []
    for branch in dict.fromkeys([OFF, *(one.branch for one in outcomes)]):
        mine = [one for one in outcomes if one.branch == branch]
        by_trunk: dict[str, list[float]] = {}
        for one in mine:
            by_trunk.setdefault(one.trunk, []).append(one.final_loss - off[one.trunk, one.step])
        means = np.array([np.mean(values) for values in by_trunk.values()])
        broken = sum(not math.isfinite(one.final_loss) for one in mine)
        difference, half = float(np.mean(means)), math.nan
        if len(means) > 1 and math.isfinite(difference):
            half = student_quantile(0.975, len(means) - 1) * float(np.std(means, ddof=1)) / math.sqrt(len(means))
        loss = math.nan if broken else float(np.mean([one.final_loss for one in mine]))
        low, high = difference - half, difference + half
        found.append(Effect(branch, len(means), len(mine), broken, loss, difference, low, high))
    return found


def fork_tiny(
    trunks: Sequence[RunPlan],
    at: Collection[int],
    actions: Sequence[ForkAction],
    folder: Path,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Fork tiny GPTs: every trunk at every step of `at`, with nothing done and with each action; all are recorded.

    A trunk is unguarded (method `adamw`); a fault that hits it hits its branches. Runs share graphs, as in the fleet;
    where a guard reads probes or may roll back, they fly one by one through `attach` instead, trunks too. Raises
    StressError, and TraceError where the folder cannot be written.
    """
    if bad := [plan.run_id for plan in trunks if plan.method != "adamw" or plan.excitation is not None]:
        raise StressError(f"trunks {', '.join(bad)}: a trunk is plain AdamW, method adamw without excitation")
    for plan in trunks:
        _check(at, actions, plan.steps)
    specs = [action.guard(step) for action in actions for step in at]
    if any(spec.tables["envelope"]["max_rollbacks"] > 0 or _extra([spec]) for spec in specs):
        by_id = {plan.run_id: plan for plan in trunks}
        return _fork(
            {plan.run_id: (plan.seed, partial(_flown, by_id[plan.run_id])) for plan in trunks},
            at, actions, folder, progress,
        )  # fmt: skip
    return _fork_fleet(trunks, at, actions, folder, progress)


def fork_loop(
    loop: Loop,
    seeds: Sequence[int],
    at: Collection[int],
    actions: Sequence[ForkAction],
    folder: Path,
    *,
    name: str = "run",
    progress: Progress | None = None,
) -> list[Outcome]:
    """Fork a training loop of your own: one trunk per seed, each forked at every step of `at`.

    `loop` is called with a `Leg` for each trunk and each branch, and trains that leg to the end: it builds model and
    optimizer from `leg.seed`, calls `leg.restore(...)` once and `leg.keep(step, ...)` at the top of every step with
    whatever a checkpoint holds, attaches the leg's guard by `leg.attach(optimizer)`, and returns the final loss.
    docs/fork.md shows one. Raises StressError, what `attach` raises, and what the loop raises.
    """
    _check(at, actions, None)
    if len(set(seeds)) < len(seeds):
        raise StressError(f"seeds {', '.join(map(str, seeds))}: each stands for one trunk")
    return _fork({f"{name}_s{seed}": (seed, loop) for seed in seeds}, at, actions, folder, progress)


def _check(at: Collection[int], actions: Sequence[ForkAction], steps: int | None) -> None:
    problems = [
        f"cannot fork at step {step}: {'a trunk has its first step behind it' if step < 1 else f'the run has {steps}'}"
        for step in at
        if step < 1 or (steps is not None and step >= steps)
    ]
    if not at:
        problems.append("no step to fork at")
    slugs = [_slug(action.name) for action in actions]
    problems += [f"two actions are called {slug!r}" for slug in sorted({s for s in slugs if slugs.count(s) > 1})]
    if OFF in slugs:
        problems.append(f"no action can be called {OFF!r}: that is the branch without one")
    if problems:
        raise StressError("; ".join(problems))


def _fork_fleet(
    trunks: Sequence[RunPlan],
    at: Collection[int],
    actions: Sequence[ForkAction],
    folder: Path,
    progress: Progress | None,
) -> list[Outcome]:
    quiet = GuardSpec.load("never")
    trunks = [dataclasses.replace(plan, spec=quiet) for plan in trunks]
    kept: dict[tuple[str, int], Checkpoint] = {}

    def keep(run_id: str, checkpoint: Checkpoint) -> None:
        kept[run_id, checkpoint.step] = checkpoint

    branches: list[tuple[Ancestry, RunPlan]] = []
    for plan in trunks:
        for step in at:
            for action in (None, *actions):
                origin = Ancestry(plan.run_id, step, OFF if action is None else action.name)
                spec, method = (quiet, "adamw") if action is None else (action.guard(step), "guard")
                # made before anything is trained: what a guard asks in vain is refused now
                branches.append((origin, dataclasses.replace(plan, run_id=_run_id(origin), method=method, spec=spec)))
    # room for the branches as well
    if there := [plan.run_id for _, plan in branches if (folder / run_folder_name(plan.run_id)).exists()]:
        raise StressError(f"{folder} holds {', '.join(there)} already; fork into another folder")
    train(trunks, folder, _stage(progress, "trunks"), keep_steps=at, keep=keep)
    rows = {plan.run_id: _columns(folder, plan.run_id) for plan in trunks}
    starts = {}
    for origin, plan in branches:
        state, before, _ = _watched(plan.spec, rows[origin.trunk], origin.step)
        starts[plan.run_id] = Start(kept[origin.trunk, origin.step], state, before, origin.provenance())
    results = train([plan for _, plan in branches], folder, _stage(progress, "branches"), starts=starts)
    return [
        Outcome(*origin, result.run_id, result.validation_loss, _is_trunk(origin, rows[origin.trunk], folder))
        for (origin, _), result in zip(branches, results, strict=True)
    ]


def _fork(
    trunks: Mapping[str, tuple[int, Loop]], at: Collection[int], actions: Sequence[ForkAction], folder: Path,
    progress: Progress | None,
) -> list[Outcome]:  # fmt: skip
    """Leg after leg: trunk run id -> seed and loop."""
    quiet = GuardSpec.load("never")
    acting = [action.guard(step) for action in actions for step in at]
    total = len(trunks) * (1 + len(at) * (1 + len(actions)))
    done, outcomes = 0, []
    origins = {
        run_id: [Ancestry(run_id, step, action) for step in sorted(at) for action in (OFF, *(a.name for a in actions))]
        for run_id in trunks
    }
    guards = {action.name: action.guard for action in actions}
    wanted = [*trunks, *(_run_id(origin) for each in origins.values() for origin in each)]
    if there := [run_id for run_id in wanted if (folder / run_folder_name(run_id)).exists()]:
        raise StressError(f"{folder} holds {', '.join(there)} already; fork into another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for trunk, (seed, loop) in trunks.items():
        # beside the traces: there is room for a run there, and in memory there may be none
        with tempfile.TemporaryDirectory(prefix="_checkpoints-", dir=folder) as scratch:
            common: dict[str, Any] = {"seed": seed, "folder": folder, "checkpoints": Path(scratch), "guards": acting,
                                      "channels": _extra(acting)}  # fmt: skip
            leg = Leg(run_id=trunk, spec=quiet, mode="shadow", keep_steps=at, **common)
            # of the trunk it is not used, but a loop that returns none is found out before its branches are trained
            _final_loss(loop(leg), trunk)
            done += 1
            _told(progress, done, total)
            if missing := sorted(set(at) - leg.kept):
                raise StressError(
                    f"{trunk}: no checkpoint of step {', '.join(map(str, missing))}: the loop has to call "
                    f"leg.keep(step, ...) at the top of every step, and to reach that one"
                )
            rows = _columns(folder, trunk)
            for origin in origins[trunk]:
                acts = origin.branch != OFF
                spec = guards[origin.branch](origin.step) if acts else quiet
                state, before, unsafe_steps = _watched(spec, rows, origin.step)
                memory = {"fingerprint": spec.fingerprint, "step": origin.step, "guard": state_to_data(state),
                          "before": state_to_data(before)}  # fmt: skip
                run_id = _run_id(origin)
                mode: Literal["active", "shadow"] = "active" if acts else "shadow"
                leg = Leg(
                    run_id=run_id, spec=spec, mode=mode, first_step=origin.step, memory=memory,
                    unsafe_steps=unsafe_steps, origin=origin, **common,
                )  # fmt: skip
                loss = _final_loss(loop(leg), run_id)
                outcomes.append(Outcome(*origin, run_id, loss, _is_trunk(origin, rows, folder)))
                done += 1
                _told(progress, done, total)
    return outcomes


def _final_loss(returned: Any, run_id: str) -> float:
    """What a leg came to, from a number or a tensor of one. Raises StressError."""
    try:
        # with its graph, as a loop has it at hand, torch warns of the conversion
        return float(returned.detach() if isinstance(returned, torch.Tensor) else returned)
    except (TypeError, ValueError, RuntimeError):
        shown = "nothing" if returned is None else f"a {type(returned).__name__}"
        raise StressError(
            f"{run_id}: the loop returned {shown}; it has to return its final loss, a number or a tensor of one"
        ) from None


def _flown(plan: RunPlan, leg: Leg) -> float:
    return fly(plan, leg=leg).validation_loss


def _extra(specs: Iterable[GuardSpec]) -> frozenset[str]:
    """Channels that these guards read and a plain run does not measure."""
    return frozenset(name for spec in specs for name in spec.build().extra_channels) - {*TELEMETRY_CHANNELS}


def _columns(folder: Path, run_id: str) -> dict[str, Any]:
    return read_trace(folder / run_folder_name(run_id)).to_numpy()


def _watched(spec: GuardSpec, rows: Mapping[str, Any], step: int) -> tuple[GuardState, Telemetry, set[int]]:
    """A guard's state after it has watched the trunk up to a step, what it has seen last, and where it saw danger."""
    guard = spec.build()
    state, before = guard.init(), guard.not_yet
    unsafe_steps = set()
    for now in telemetry_rows(
        {name: column[rows["step"] < step] for name, column in rows.items()}, guard.extra_channels
    ):
        state, decision = guard.step(state, guard.seen(now, before))
        if decision.regime in UNSAFE_REGIMES:
            unsafe_steps.add(now.step)
        before = now
    return state, before, unsafe_steps


def _is_trunk(origin: Ancestry, trunk: Mapping[str, Any], folder: Path) -> bool:
    """Whether a branch without an action has the trunk's rows to the bit; true of the others, which need not."""
    if origin.branch != OFF:
        return True
    branch, after = _columns(folder, _run_id(origin)), trunk["step"] >= origin.step
    return all(np.array_equal(branch[name], trunk[name][after], equal_nan=name != "step") for name in _SAME)


def _run_id(origin: Ancestry) -> str:
    return f"{origin.trunk}_at{origin.step}_{_slug(origin.branch)}"


def _slug(name: str) -> str:
    """A name as a part of a run id."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-") or "action"


def _stage(progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return None if progress is None else partial(progress, stage)


def _told(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress("legs", done, total)
