"""Back-test: one guard along recorded, labelled runs, and a report that active mode accepts.

Open loop: it says what the guard saw, missed and asked for, and what these runs cannot say about it. With calibrated
plants it also says what acting does to *them*. It does not judge whether that is good enough, and never says what
acting would have gained on the recorded runs.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

import lbw_sim
from lbw_sim.errors import LbwError, ScoreError
from lbw_sim.guard import BacktestReport, GuardSpec
from lbw_sim.guard.evidence import CLOSED_LOOP, OPEN_LOOP, Detection, ReplayedRun, SimulatedEffect
from lbw_sim.params import meta
from lbw_sim.replay import Replays, Unusable, replay_many, unusable_words
from lbw_sim.score import RunScore, detection_rows, jsonable, match
from lbw_sim.score.detection import family_of, never_alarms
from lbw_sim.simulate import PlantSpec, simulated_effects
from lbw_sim.trace import Trace
from lbw_sim.trace.labels import BENIGN_KINDS, EVENT_KINDS
from lbw_sim.trace.schema import columns
from lbw_sim.values import UNSAFE_REGIMES, Posture, Regime
from lbw_sim.wording import counted, some

Progress = Callable[[str, int, int], None]
"""Hears of each stage: its name, how much of it is done and how much there is in all."""

FEW_EVENTS = 10
"""Below this many labelled events the report says that its recall is a guess."""


def backtest(
    spec: GuardSpec,
    traces: Sequence[Trace],
    *,
    plants: Sequence[PlantSpec] = (),
    plant_seeds: int = 20,
    seed: int = 0,
    left_out: int = 0,
    unusable: Sequence[Unusable] = (),
    progress: Progress | None = None,
) -> BacktestReport:
    """Replay a guard along runs and write down what that shows. `plants`: calibrated ones, on which the guard flies as
    well, with `plant_seeds` noises from `seed` on; `seed` is also that of the bootstrap over runs. `left_out`: how many
    further runs could not be read; `unusable`: those that the guard cannot see, as `usable_runs` finds them. The report
    says both.

    Every row outside a label counts as clean, also in a run that nobody has labelled. Raises ScoreError without a run,
    for one without a row, or when one record comes twice; ChannelError when the guard needs a channel that a run or a
    plant lacks; SimulateError when a plant was never calibrated; SpecError; TraceError.
    """
    tell = progress or (lambda *_: None)
    runs: list[ReplayedRun] = []
    scores: list[RunScore] = []
    reference: list[RunScore] = []
    seen = _Seen()
    hear = partial(tell, "back-testing")
    work = replay_many(traces, [spec], rows=True, progress=hear, max_alarms=sys.maxsize)
    for found, trace in zip(work, traces, strict=True):
        if not len(found.steps):
            raise ScoreError(f"run {trace.run_id!r} holds no row to back-test guard {spec.name!r} on: leave it out")
        about = (trace.labels, found.steps, trace.run_id)
        scores.append(match(found.alarms(0), *about))
        reference.append(match(never_alarms(), *about))
        runs.append(_tested(trace, found, scores[-1]))
        seen.add(trace, found)
    refuse_repeats(((run.run_id, run.telemetry_sha256) for run in runs), ScoreError, "it would count twice")
    if not runs:
        raise ScoreError(f"guard {spec.name!r} cannot be back-tested on no run")
    effects: list[SimulatedEffect] = []
    for plant in plants:
        flying = partial(tell, f"flying on {plant.name}")
        effects += simulated_effects(spec, plant, seeds=plant_seeds, first_seed=seed, progress=flying)
    return BacktestReport(
        guard=spec.name,
        guard_fingerprint=spec.fingerprint,
        spec_toml=spec.to_toml(),
        runs=tuple(runs),
        detection=(*_detection(spec.name, scores, seed), *_detection("never", reference, seed)[:1]),
        caveat=f"{OPEN_LOOP} {CLOSED_LOOP}" if effects else OPEN_LOOP,
        not_tested_on=tuple(_not_tested_on(spec, runs, scores, seen, effects, left_out, unusable)),
        versions={"lbw_sim": lbw_sim.__version__, "python": platform.python_version(), "numpy": np.__version__},
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        simulated=tuple(effects),
    )


def digest_telemetry(trace: Trace) -> str:
    """SHA-256 over the step and every channel that a guard can see, of the final lineage.

    Equal for equal records, as journal or Parquet, and whichever guard flew while they were made.
    """
    table = trace.to_numpy()
    extra = dict.fromkeys(name for segment in trace.segments for name in segment.meta.extra_channels)
    digest = hashlib.sha256()
    for column in columns(tuple(extra)):
        if column.name == "step" or column.role == "seen":
            digest.update(f"{column.name} {column.dtype}\n".encode())
            digest.update(np.ascontiguousarray(table[column.name], dtype="<" + column.dtype).tobytes())
    return digest.hexdigest()


class _Seen:
    """What the runs held and what the guard did in them, beside the figures."""

    def __init__(self) -> None:
        self.regimes: set[int] = set()
        self.postures: set[int] = set()
        self.channels: dict[str, int] = {}
        """Channel -> runs that hold it."""
        self.most_rows_apart = 1
        self.lr_low = self.lr_high = float("nan")
        self.benign: set[str] = set()

    def add(self, trace: Trace, found: Replays) -> None:
        assert found.decided is not None
        self.regimes.update(np.unique(found.decided[0]["regime"]).tolist())
        self.postures.update(np.unique(found.decided[0]["posture"]).tolist())
        for name in trace.channels:
            self.channels[name] = self.channels.get(name, 0) + 1
        if len(found.steps) > 1:
            self.most_rows_apart = max(self.most_rows_apart, int(np.median(np.diff(found.steps))))
        lr = trace.to_numpy()["lr"]
        if np.isfinite(lr).any():
            peak = float(lr[np.isfinite(lr)].max())
            self.lr_low, self.lr_high = np.fmin(self.lr_low, peak).item(), np.fmax(self.lr_high, peak).item()
        self.benign.update(label.kind for label in trace.labels if label.kind in BENIGN_KINDS)


def _tested(trace: Trace, found: Replays, score: RunScore) -> ReplayedRun:
    labels = json.dumps([label._asdict() for label in trace.labels], sort_keys=True, separators=(",", ":"))
    return ReplayedRun(
        run_id=trace.run_id,
        family=family_of(trace.run_id),
        telemetry_sha256=digest_telemetry(trace),
        labels_sha256=hashlib.sha256(labels.encode()).hexdigest(),
        rows=len(found.steps),
        first_step=int(found.steps[0]),
        last_step=int(found.steps[-1]),
        labelled_events=score.counts.events,
        labels=len(trace.labels),
        mode="active" if any(segment.meta.mode == "active" for segment in trace.segments) else "shadow",
        imported=any(bool(segment.meta.provenance.get("imported")) for segment in trace.segments),
        energy=float(found.requested_energy[0]),
        damped_steps=int(found.active_steps[0]),
        lowest_scale=float(found.min_scale[0]),
        skips=int(found.skip_requests[0]),
        rollbacks=int(found.rollback_requests[0]),
    )


def refuse_repeats(records: Iterable[tuple[str, str]], error: type[LbwError], consequence: str) -> None:
    """Raise `error` where two runs, given as run id and telemetry digest, hold one record; it ends in `consequence`."""
    first: dict[str, str] = {}
    for run_id, digest in records:
        if digest in first:
            raise error(
                f"runs {first[digest]!r} and {run_id!r} hold the same record ({digest[:16]}): {consequence}. "
                f"Leave one of them out"
            )
        first[digest] = run_id


def _detection(guard: str, scores: Sequence[RunScore], seed: int) -> list[Detection]:
    families = len({family_of(score.run_id) for score in scores}) > 1
    rows: list[dict[str, Any]] = jsonable(detection_rows({guard: scores}, seed=seed, families=families))
    return [
        Detection(**{name: row[name] for name in Detection._fields})
        for row in rows
        if families or row["group"] == "all"
    ]


def _not_tested_on(
    spec: GuardSpec,
    runs: Sequence[ReplayedRun],
    scores: Sequence[RunScore],
    seen: _Seen,
    effects: Sequence[SimulatedEffect],
    left_out: int,
    unusable: Sequence[Unusable],
) -> Iterable[str]:
    """One sentence for each thing that these runs cannot say about the guard; the weightiest first."""
    events = [event for score in scores for event in score.events]
    if not events:
        yield "No labelled event at all: its recall is unknown; only its false alarms and its control were measured."
    elif len(events) < FEW_EVENTS:
        yield f"Only {counted(len(events), 'labelled event')}: its recall is a guess, whatever its interval says."
    else:
        startup = sum(event.startup for event in events)
        if startup == 0:
            yield "No labelled event at the start of a run."
    kinds = {event.kind for event in events}
    if events and (missing := [kind for kind in EVENT_KINDS if kind not in kinds]):
        yield f"No labelled event of kind {_or(missing)}."
    if missing := [kind for kind in BENIGN_KINDS if kind not in seen.benign]:
        yield f"No labelled span of kind {_or(missing)}: changes that look like an event and are none."
    yield from _not_simulated(effects)
    if unlabelled := sum(run.labels == 0 for run in runs):
        yield (
            f"{counted(unlabelled, 'run')} of {len(runs)} without any label: every row there counts as clean, whether "
            f"or not somebody looked."
        )
    for words in unusable_words(unusable):
        yield f"Left out, {words}."
    if left_out:
        yield f"{counted(left_out, 'run')} that could not be read: left out, whatever the guard would have met there."
    if acted := [run.run_id for run in runs if run.mode == "active"]:
        names = some(acted, 8)
        yield f"{counted(len(acted), 'run')} recorded while a guard acted ({names}): their losses are partly its doing."
    if imported := sum(run.imported for run in runs):
        cadence = f", with up to {seen.most_rows_apart} steps between rows" if seen.most_rows_apart > 1 else ""
        yield f"{counted(imported, 'run')} of {len(runs)} from logs{cadence}: a log is not what a live guard sees."
    longest = max(run.last_step - run.first_step + 1 for run in runs)
    yield f"No run longer than {counted(longest, 'step')}."
    families = sorted({run.family for run in runs})
    yield f"No family of runs but {some(families, 8)}: runs of one family are alike."
    if seen.lr_low == seen.lr_low:
        yield f"No peak learning rate below {seen.lr_low:.3g} or above {seen.lr_high:.3g}."
    else:
        yield "No run in which the learning rate was recorded."
    guard = spec.build()
    reads = dict.fromkeys((*meta(guard.sensor).uses, *meta(guard.sensor).needs, *guard.extra_channels))
    for name in reads:
        if name in ("lr", "nonfinite"):
            continue
        held = seen.channels.get(name, 0)
        if held < len(runs):
            yield f"{counted(len(runs) - held, 'run')} of {len(runs)} without {name}, which the guard reads."
    if unseen := [Regime(code).name for code in sorted(UNSAFE_REGIMES) if int(code) not in seen.regimes]:
        yield f"It was never in {_or(unseen)}: what it does there did not show."
    asked = {Posture.DAMP: "damped", Posture.SKIP: "skipped a step", Posture.ROLLBACK: "rolled back"}
    allowed = spec.tables["envelope"]
    possible = {
        Posture.DAMP: allowed["min_scale"] < 1.0,
        Posture.SKIP: allowed["skips_per_1000_steps"] >= 1.0 and allowed["max_skips_in_a_row"] > 0,
        Posture.ROLLBACK: allowed["max_rollbacks"] > 0,
    }
    if never := [word for code, word in asked.items() if possible[code] and int(code) not in seen.postures]:
        yield f"It never {_or(never)}, though its envelope allows that."
    yield "Nor can this report know whether the guard was tuned on these very runs, which would flatter it."


def _not_simulated(effects: Sequence[SimulatedEffect]) -> Iterable[str]:
    """What the simulated effects do not say."""
    if not effects:
        yield "No simulated effect: what its actions would have done to the loss was not computed."
        return
    yield "No real run on which it acted: its effect was simulated, on plants only."
    for name in dict.fromkeys(effect.plant for effect in effects):
        mine = [effect for effect in effects if effect.plant == name]
        if mine[0].held_out_rmse is None:
            yield f"Plant {name!r} was tried on no run that it had not been fitted to: how wrong it is, nobody knows."
        else:
            yield (
                f"Plant {name!r} is off by {mine[0].held_out_rmse:.2g} nats (rmse) on "
                f"{counted(mine[0].held_out_runs, 'run')} that it had not seen: a smaller effect may be its error."
            )
        if outside := [effect for effect in mine if max(effect.left_range_with, effect.left_range_without) > 0.0]:
            rates = ", ".join(f"{max(e.left_range_with, e.left_range_without):.0%} at {e.peak_lr:.3g}" for e in outside)
            yield f"Rollouts on plant {name!r} left what it was calibrated on: {rates}; nothing was measured there."
        if cut := sum(effect.cut for effect in mine):
            yield (
                f"{counted(cut, 'rollout')} of {sum(effect.rollouts for effect in mine)} on plant {name!r} ended in a "
                f"rollback, which no plant can fly: they are left out."
            )


def _or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1])] * (len(words) > 1) + [words[-1]])


def worst(runs: Iterable[ReplayedRun]) -> Mapping[str, tuple[float, str]]:
    """The most that the guard asked for in any one run: measure -> (value, run id).

    >>> run = ReplayedRun("a", "a", "", "", 200, 0, 199, 0, 0, "shadow", False, 3.0, 9, 0.5, 1, 0)
    >>> worst([run])["energy"], worst([run])["lowest_scale"]
    ((3.0, 'a'), (0.5, 'a'))
    """
    runs = list(runs)
    found: dict[str, tuple[float, str]] = {}
    for name in ("energy", "damped_steps", "skips", "rollbacks"):
        most = max(runs, key=attrgetter(name))
        found[name] = (getattr(most, name), most.run_id)
    lowest = min(runs, key=lambda run: run.lowest_scale)
    return {**found, "lowest_scale": (lowest.lowest_scale, lowest.run_id)}
