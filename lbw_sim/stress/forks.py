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
from lbw_sim.stress.corpus import corpus
from lbw_sim.stress.fleet import Checkpoint, Start, train
from lbw_sim.stress.flown import fly
from lbw_sim.stress.fork_ledger import CHECKPOINTS, Forked, Stamp, common_stamp, forked_in, loop_stamp
from lbw_sim.stress.leg import Leg, refuse_grounded
from lbw_sim.stress.plan import TELEMETRY_CHANNELS, RunPlan, RunResult, check_run_ids
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
    where a guard reads probes or may roll back, they fly one by one through `attach` instead, trunks too. A fork that
    was killed goes on, run by run, where the same call is made again. Raises StressError, and TraceError where the
    folder cannot be written.
    """
    if bad := [plan.run_id for plan in trunks if plan.method != "adamw" or plan.excitation is not None]:
        raise StressError(f"trunks {', '.join(bad)}: a trunk is plain AdamW, method adamw without excitation")
    check_run_ids(trunks)
    for plan in trunks:
        _check(at, actions, plan.steps)
    specs = [action.guard(step) for action in actions for step in at]
    if any(spec.tables["envelope"]["max_rollbacks"] > 0 or _extra([spec]) for spec in specs):
        by_id = {plan.run_id: plan for plan in trunks}
        return _fork(
            {plan.run_id: (plan.seed, partial(_flown, by_id[plan.run_id]), _plan_stamp(plan)) for plan in trunks},
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
    docs/fork.md shows one. A fork that was killed goes on, leg by leg, where the same call is made again. Raises
    StressError, what `attach` raises, and what the loop raises.
    """
    _check(at, actions, None)
    if len(set(seeds)) < len(seeds):
        raise StressError(f"seeds {', '.join(map(str, seeds))}: each stands for one trunk")
    about = loop_stamp(loop)
    return _fork({f"{name}_s{seed}": (seed, loop, about) for seed in seeds}, at, actions, folder, progress)


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
    stamps = {plan.run_id: _plan_stamp(plan) for plan in trunks}
    stamps |= {plan.run_id: _plan_stamp(plan) | _origin_stamp(origin) for origin, plan in branches}
    with forked_in(folder, stamps) as forked:
        left = [(origin, plan) for origin, plan in branches if plan.run_id not in forked]
        open_trunks = {origin.trunk for origin, _ in left}

        def trunk_ended(result: RunResult) -> None:
            forked.add(result.run_id, {"final_loss": result.validation_loss})

        again = [plan for plan in trunks if plan.run_id in forked and plan.run_id in open_trunks]
        fresh = [plan for plan in trunks if plan.run_id not in forked]
        tell = _stage(progress, "trunks")
        train(fresh, folder, tell, keep_steps=at, keep=keep, ended=trunk_ended)
        with tempfile.TemporaryDirectory(prefix=CHECKPOINTS, dir=folder) as scratch:
            train(again, Path(scratch), tell, keep_steps=at, keep=keep)
            for plan in again:
                _refuse_other_trunk(plan.run_id, folder, Path(scratch))
        rows = {trunk: _columns(folder, trunk) for trunk in open_trunks}
        starts = {}
        for origin, plan in left:
            state, before, _ = _watched(plan.spec, rows[origin.trunk], origin.step)
            starts[plan.run_id] = Start(kept[origin.trunk, origin.step], state, before, origin.provenance())
        origins = {plan.run_id: origin for origin, plan in branches}

        def branch_ended(result: RunResult) -> None:
            origin = origins[result.run_id]
            is_trunk = _is_trunk(origin, rows[origin.trunk], folder)
            forked.add(result.run_id, {"final_loss": result.validation_loss, "is_trunk": is_trunk})

        train([plan for _, plan in left], folder, _stage(progress, "branches"), starts=starts, ended=branch_ended)
        return [_outcome(origin, forked) for origin, _ in branches]


def _fork(
    trunks: Mapping[str, tuple[int, Loop, Stamp]], at: Collection[int], actions: Sequence[ForkAction], folder: Path,
    progress: Progress | None,
) -> list[Outcome]:  # fmt: skip
    """Leg after leg: trunk run id -> seed, loop, and what a stored leg has to have been flown with to count."""
    quiet = GuardSpec.load("never")
    acting = [action.guard(step) for action in actions for step in at]
    channels = _extra(acting)
    origins = {
        run_id: [Ancestry(run_id, step, action) for step in sorted(at) for action in (OFF, *(a.name for a in actions))]
        for run_id in trunks
    }
    guards = {OFF: lambda step: quiet, **{action.name: action.guard for action in actions}}
    stamps = {}
    for trunk, (seed, _, about) in trunks.items():
        common = {**common_stamp(), **about, "seed": str(seed), "channels": " ".join(sorted(channels))}
        stamps[trunk] = common
        for origin in origins[trunk]:
            spec = guards[origin.branch](origin.step)
            stamps[_run_id(origin)] = common | _origin_stamp(origin) | {"guard": spec.fingerprint}
    with forked_in(folder, stamps) as forked:
        left = {trunk: [one for one in each if _run_id(one) not in forked] for trunk, each in origins.items()}
        total = sum(len(each) + (len(each) > 0 or trunk not in forked) for trunk, each in left.items())
        done = 0
        for trunk, (seed, loop, _) in trunks.items():
            if trunk in forked and not left[trunk]:
                continue
            # beside the traces: there is room for a run there, and in memory there may be none
            with tempfile.TemporaryDirectory(prefix=CHECKPOINTS, dir=folder) as scratch:
                make = partial(Leg, seed=seed, checkpoints=Path(scratch), guards=acting, channels=channels)
                # for its checkpoints: files that another process left would be loaded unseen
                again = trunk in forked
                leg = make(
                    run_id=trunk, spec=quiet, mode="shadow", keep_steps=at,
                    folder=Path(scratch, "again") if again else folder,
                )  # fmt: skip
                # of the trunk it is not used, but a loop that returns none is found out before its branches are trained
                loss = _trained(loop, leg)
                done += 1
                _told(progress, done, total)
                if missing := sorted(set(at) - leg.kept):
                    raise StressError(
                        f"{trunk}: no checkpoint of step {', '.join(map(str, missing))}: the loop has to call "
                        f"leg.keep(step, ...) at the top of every step, and to reach that one"
                    )
                if again:
                    _refuse_other_trunk(trunk, folder, Path(scratch, "again"))
                else:
                    forked.add(trunk, {"final_loss": loss})
                rows = _columns(folder, trunk)
                for origin in left[trunk]:
                    spec = guards[origin.branch](origin.step)
                    state, before, unsafe_steps = _watched(spec, rows, origin.step)
                    memory = {"fingerprint": spec.fingerprint, "step": origin.step, "guard": state_to_data(state),
                              "before": state_to_data(before)}  # fmt: skip
                    run_id = _run_id(origin)
                    mode: Literal["active", "shadow"] = "shadow" if origin.branch == OFF else "active"
                    leg = make(
                        run_id=run_id, spec=spec, mode=mode, first_step=origin.step, memory=memory,
                        unsafe_steps=unsafe_steps, origin=origin, folder=folder,
                    )  # fmt: skip
                    loss = _trained(loop, leg)
                    forked.add(run_id, {"final_loss": loss, "is_trunk": _is_trunk(origin, rows, folder)})
                    done += 1
                    _told(progress, done, total)
        return [_outcome(origin, forked) for each in origins.values() for origin in each]


def _outcome(origin: Ancestry, forked: Forked) -> Outcome:
    run_id = _run_id(origin)
    return Outcome(*origin, run_id, **forked.finished[run_id])


def _refuse_other_trunk(trunk: str, folder: Path, again: Path) -> None:
    """Raise StressError when a trunk that was trained again is not the one that the finished branches left."""
    if not _same_rows(_columns(again, trunk), _columns(folder, trunk)):
        raise StressError(
            f"{trunk} was trained again for its other branches, and is not the one that {folder} holds: the loop draws "
            f"on something besides seed and step. Fork into another folder, in one go"
        )


def _plan_stamp(plan: RunPlan) -> Stamp:
    about = {field.name: repr(getattr(plan, field.name)) for field in dataclasses.fields(plan) if field.name != "spec"}
    texts = {name: corpus(name).digest for name in ("prose", "code")}
    return {**common_stamp(), **texts, **about, "guard": plan.spec.fingerprint}


def _origin_stamp(origin: Ancestry) -> Stamp:
    return {"at": str(origin.step), "branch": origin.branch}


def _trained(loop: Loop, leg: Leg) -> float:
    """The final loss of one leg. Raises StressError, also when the leg's guard did not hold out."""
    returned = loop(leg)
    refuse_grounded(leg.live, leg.run_id)
    return _final_loss(returned, leg.run_id)


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
    after = trunk["step"] >= origin.step
    return _same_rows(_columns(folder, _run_id(origin)), {name: trunk[name][after] for name in _SAME})


def _same_rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(np.array_equal(one[name], other[name], equal_nan=name != "step") for name in _SAME)


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
