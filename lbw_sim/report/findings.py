"""What a report says of each run, as values: everything that is judged is judged here, before a page is written.

A run that was recorded through a guard is shown as that guard decided. A run that no guard watched, or any run when a
guard is asked for, is replayed, open loop: what that guard would have seen and asked for on these losses. Neither says
what the loss would have been.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.errors import LbwError
from lbw_sim.guard import GuardSpec
from lbw_sim.plots import GivenUp, stretches_given_up
from lbw_sim.replay import Unusable, replay_many, usable_runs
from lbw_sim.replay.ahead import compile_ahead
from lbw_sim.replay.compiled import WORTH_COMPILING, Engine
from lbw_sim.report.vitals import Vitals, vitals
from lbw_sim.score import RunScore, find_alarms, match, unsafe_rows
from lbw_sim.score.control import ControlSummary, control_summary
from lbw_sim.trace import Label, SegmentMeta, Trace
from lbw_sim.trace.alarms import stretches
from lbw_sim.trace.ancestry import Ancestry
from lbw_sim.trace.limitations import limitations
from lbw_sim.trace.scrub import KEPT
from lbw_sim.values import Posture, Reason, Regime
from lbw_sim.wording import counted

Columns = dict[str, NDArray[Any]]
View = Literal["recorded", "replayed"]
Progress = Callable[[str, int, int], None]
"""Hears of each stage: its name, how much of it is done and how much there is in all."""

ROWS_AT_ONCE = 1_000_000
"""Rows of several runs that are in memory together: some 300 MB. A longer run is alone."""

EXPERIMENT = frozenset(
    {
        "architecture", "model", "method", "peak_lr", "steps", "fault", "corpus", "prose", "code", "unproven", "lost",
        "source_columns",
    }
)  # fmt: skip
"""Provenance that says what was tried."""
PUBLIC = (KEPT | EXPERIMENT) - {"python", "device"}
"""Provenance that tells nothing of where a run was made. All else is left out unless it is asked for."""

_PATH = re.compile(r"(?:[A-Za-z]:[\\/]|[A-Za-z][A-Za-z0-9+.-]*://|~/|\.{1,2}/|/)[^\s,;'\"]*[\\/][^\s,;'\"]*")


class RuleResult(NamedTuple):
    """What one guard would have said along one run."""

    name: str
    alarms: tuple[tuple[int, int], ...]
    """(first row, last row)."""
    first_step: int | None
    """Of the first alarm."""
    first_regime: str
    """As what it would have begun; empty without alarm."""
    unsafe_rows: int
    skip_requests: int
    min_scale: float
    requested_energy: float
    score: RunScore


class Refused(NamedTuple):
    """A guard that cannot be tried on a run."""

    name: str
    missing: tuple[str, ...]
    """Channels that it needs and the run does not hold."""


class Budget(NamedTuple):
    """A limit of the envelope, and how near a run came to it."""

    limit: str
    allowed: float
    used: float
    rows_refused: int
    """Rows on which this limit had the last word."""


class RunFindings(NamedTuple):
    """Everything that is said of one run, but for its figures."""

    run_id: str
    view: View
    guard: str
    fingerprint: str
    mode: str
    """Of the recording: shadow or active."""
    rows: int
    first_step: int
    last_step: int
    channels: tuple[str, ...]
    labels: tuple[Label, ...]
    judged: bool
    """Alarms are judged by the labels: there are some, and what was logged can support it."""
    scorable: bool
    """What was logged can support a judgement."""
    vitals: Vitals
    score: RunScore
    """Alarms of the guard shown, judged by the labels; where they are not judged, it has their places only."""
    alarm_steps: tuple[tuple[int, int], ...]
    """(first step, last step) of each of these alarms."""
    first_regime: str
    """As what the first one began; empty without alarm."""
    given_up: tuple[GivenUp, ...]
    """What rollbacks of a run took back; empty where a guard is replayed."""
    control: ControlSummary
    budgets: tuple[Budget, ...]
    """Empty when the guard's components are not installed here."""
    rules: tuple[RuleResult, ...]
    refused: tuple[Refused, ...]
    warnings: tuple[str, ...]
    provenance: tuple[tuple[str, str], ...]
    hidden_provenance: int
    """Entries that may tell where the run was made, and are left out."""

    @property
    def first_step_of_alarm(self) -> int | None:
        """Step at which the first alarm begins; None without alarm."""
        return self.alarm_steps[0][0] if self.alarm_steps else None

    @property
    def missed(self) -> int:
        """Labelled events without an alarm."""
        return self.score.counts.events - self.score.counts.detected

    @property
    def noteworthy(self) -> tuple[int, ...]:
        """For sorting: the more there is to see in a run, the larger. Non-finite values first, then labelled events
        that were missed, labelled events, false alarms, all alarms, and rules that fired."""
        counts = self.score.counts
        return (
            int(self.vitals.nonfinite_rows > 0),
            self.missed,
            counts.events,
            counts.false_alarms if self.judged else 0,
            counts.alarms,
            sum(bool(rule.alarms) for rule in self.rules),
        )


def examine(
    traces: Sequence[Trace],
    *,
    guard: GuardSpec | None,
    fallback: GuardSpec,
    rules: Mapping[str, GuardSpec],
    environment: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[RunFindings, Columns]]:
    """The findings of each run, in order, with its columns as the shown guard decided them.

    `guard`: replayed over every run; None: as recorded, and `fallback` replayed over runs that no guard watched.
    `rules`: name -> guards that are replayed beside. `environment`: also tell where and on what a run was made.
    Raises ChannelError when the guard shown cannot work on a run; a rule that cannot is told as refused. Raises
    LbwError for a run without a row; `showable` finds such.
    """
    done = 0
    tell = progress or (lambda *_: None)
    # judged over all batches: one batch alone may look too small to be worth a compiler
    rows = sum(segment.rows for trace in traces for segment in trace.segments)
    engine: Engine = "compiled" if rows >= WORTH_COMPILING else "auto"
    for together in _batches(traces):
        # a Trace keeps its rows once they are loaded; copies of it go with the batch
        batch = [_fresh(trace) for trace in together]
        shown = [guard or (fallback if unwatched(trace) else None) for trace in batch]
        loaded = [trace.to_numpy() for trace in batch]
        for trace, spec in zip(batch, shown, strict=True):
            if not len(trace.table()):
                raise LbwError(f"run {trace.run_id!r} holds no row to report on: leave it out")
            if spec is not None:
                spec.build().require(trace.channels, f"run {trace.run_id!r}")
        if engine == "compiled":
            alone = list({spec: None for spec in shown if spec is not None})
            groups = [([rules[name] for name in workable(rules, batch)], False), *(([spec], True) for spec in alone)]
            compile_ahead(groups, lambda made, total: tell("compiling", made, total))
        decided = _decided(loaded, shown, engine)
        said = _ask(batch, loaded, rules, engine)
        for trace, spec, columns, decisions, (results, refused) in zip(
            batch, shown, loaded, decided, said, strict=True
        ):
            columns |= decisions
            done += 1
            yield _findings(trace, spec, columns, results, refused, environment), columns
            tell("replaying", done, len(traces))


def showable(
    traces: Sequence[Trace], guard: GuardSpec | None, fallback: GuardSpec
) -> tuple[list[Trace], list[Unusable]]:
    """The runs that `examine` takes with these guards, and the others. Raises TraceError."""
    fit: list[Trace] = []
    unusable: list[Unusable] = []
    for trace in traces:
        spec = guard or (fallback if unwatched(trace) else None)
        found, others = usable_runs([trace], [spec] if spec is not None else [])
        fit += found
        unusable += others
    return fit, unusable


def workable(rules: Mapping[str, GuardSpec], traces: Sequence[Trace]) -> list[str]:
    """Which rules find the channels that they need in at least one run. The others need no compiled kernel."""
    needs = {name: spec.build().needs for name, spec in rules.items()}
    held = {trace.channels for trace in traces}
    return [name for name, wanted in needs.items() if any(set(wanted) <= set(channels) for channels in held)]


def unwatched(trace: Trace) -> bool:
    """Whether no guard looked at a run while it was recorded: it was imported, or flew with the null guard."""
    analyzer = tomllib.loads(trace.meta.spec_toml).get("analyzer", {})
    return bool(trace.meta.provenance.get("imported")) or analyzer.get("name") == "never"


def scorable(trace: Trace) -> bool:
    """Whether what was logged can support a judgement of alarms by labels."""
    return not any("score" in limitation.refuses for limitation in limitations(trace.meta.provenance))


def without_paths(text: str) -> str:
    """A text with everything that looks like a path replaced.

    >>> without_paths("lost 3 rows: /data/home/x/run.csv is full; 1/2 of it")
    'lost 3 rows: (path) is full; 1/2 of it'
    """
    return _PATH.sub("(path)", text)


def _batches(traces: Sequence[Trace]) -> Iterator[list[Trace]]:
    batch: list[Trace] = []
    rows = 0
    for trace in traces:
        more = sum(segment.rows for segment in trace.segments)
        if batch and rows + more > ROWS_AT_ONCE:
            yield batch
            batch, rows = [], 0
        batch.append(trace)
        rows += more
    if batch:
        yield batch


def _fresh(trace: Trace) -> Trace:
    return dataclasses.replace(trace, segments=tuple(dataclasses.replace(segment) for segment in trace.segments))


def _decided(loaded: Sequence[Columns], shown: Sequence[GuardSpec | None], engine: Engine) -> list[Columns]:
    """For each run the decisions of the guard to be shown; nothing where the recorded ones are."""
    found: list[Columns] = [{} for _ in loaded]
    for spec in {spec for spec in shown if spec is not None}:
        places = [place for place, wanted in enumerate(shown) if wanted == spec]
        work = replay_many([loaded[p] for p in places], [spec], rows=True, engine=engine)
        for place, replays in zip(places, work, strict=True):
            assert replays.decided is not None
            skipped = np.zeros(len(replays.steps), dtype=bool)
            # nothing was done: the recorded acts are not this guard's
            found[place] = replays.decided[0] | {"skipped": skipped, "rolled_back_to": np.full(len(skipped), -1)}
    return found


def _ask(
    batch: Sequence[Trace], loaded: Sequence[Columns], rules: Mapping[str, GuardSpec], engine: Engine
) -> Iterator[tuple[tuple[RuleResult, ...], tuple[Refused, ...]]]:
    """What every rule says of every run. A rule that can work on some run goes along all of them, because guards are
    fastest together; what it says where it lacks a channel is dropped."""
    guards = {name: spec.build() for name, spec in rules.items()}
    needs = {name: guard.needs for name, guard in guards.items()}
    asked = {name: place for place, name in enumerate(workable(rules, batch))}
    extra = {channel for name in asked for channel in guards[name].extra_channels}
    padded = [
        {**dict.fromkeys(extra, np.full(len(columns["step"]), np.nan)), **columns} for columns in loaded
    ]  # nobody measured them there
    for trace, found in zip(batch, replay_many(padded, [rules[name] for name in asked], engine=engine), strict=True):
        results: list[RuleResult] = []
        refused: list[Refused] = []
        for name in rules:
            missing = tuple(channel for channel in needs[name] if channel not in trace.channels)
            if missing:
                refused.append(Refused(name, missing))
                continue
            place = asked[name]
            alarms = tuple(found.alarms(place))
            results.append(
                RuleResult(
                    name=name,
                    alarms=alarms,
                    first_step=int(found.steps[alarms[0][0]]) if alarms else None,
                    first_regime=Regime(int(found.first_regime[place])).name if alarms else "",
                    unsafe_rows=int(found.unsafe_steps[place]),
                    skip_requests=int(found.skip_requests[place]),
                    min_scale=float(found.min_scale[place]),
                    requested_energy=float(found.requested_energy[place]),
                    score=match(alarms, trace.labels if scorable(trace) else (), found.steps, trace.run_id),
                )
            )
        yield tuple(results), tuple(refused)


def _findings(
    trace: Trace,
    spec: GuardSpec | None,
    columns: Columns,
    rules: tuple[RuleResult, ...],
    refused: tuple[Refused, ...],
    environment: bool,
) -> RunFindings:
    meta, steps = trace.meta, columns["step"]
    alarms = find_alarms(unsafe_rows(columns["regime"]))
    provenance, hidden = _provenance(meta, environment)
    # rows that were rolled back are in no final lineage, and neither are those that rolled back
    everything = trace.to_numpy("all") if spec is None else columns
    return RunFindings(
        run_id=trace.run_id,
        view="recorded" if spec is None else "replayed",
        guard=meta.guard_name if spec is None else spec.name,
        fingerprint=meta.fingerprint if spec is None else spec.fingerprint,
        mode=meta.mode,
        rows=len(steps),
        first_step=int(steps[0]),
        last_step=int(steps[-1]),
        channels=trace.channels,
        labels=tuple(
            label if environment else label._replace(note=without_paths(label.note)) for label in trace.labels
        ),
        judged=bool(trace.labels) and scorable(trace),
        scorable=scorable(trace),
        vitals=vitals(columns),
        score=match(alarms, trace.labels if scorable(trace) else (), steps, trace.run_id),
        alarm_steps=tuple((int(steps[alarm.start_row]), int(steps[alarm.end_row])) for alarm in alarms),
        first_regime=Regime(int(columns["regime"][alarms[0].start_row])).name if alarms else "",
        given_up=stretches_given_up(everything),
        control=control_summary(columns, everything),
        budgets=_budgets(meta, spec, columns, everything),
        rules=rules,
        refused=refused,
        warnings=_warnings(trace, environment),
        provenance=provenance,
        hidden_provenance=hidden,
    )


def _budgets(meta: SegmentMeta, spec: GuardSpec | None, columns: Columns, everything: Columns) -> tuple[Budget, ...]:
    """Limits of the envelope against what the shown guard asked for and got."""
    try:
        limits = (spec or meta.spec).build().envelope
    except LbwError:
        return ()
    steps, scale, reason = columns["step"], columns["scale"], columns["reason"]
    skips = columns["posture"] == Posture.SKIP
    effort = np.cumsum((1.0 - scale) ** 2)
    before = np.searchsorted(steps, steps - 1000, side="right") - 1

    def most_in_1000(total: NDArray[Any]) -> float:
        return float(np.max(total - np.where(before >= 0, total[before], 0.0)))

    def longest(mask: NDArray[Any]) -> float:
        return float(max((last - first + 1 for first, last in stretches(mask).tolist()), default=0))

    def refused(*reasons: Reason) -> int:
        return int(np.isin(reason, [int(r) for r in reasons]).sum())

    rollbacks = float((everything["posture"] == Posture.ROLLBACK).sum())
    return (
        Budget("lowest scale", limits.min_scale, float(scale.min()), refused(Reason.MIN_SCALE)),
        Budget("longest damping, rows", limits.max_damped_steps, longest(scale < 1.0), refused(Reason.DAMPED_TOO_LONG)),
        Budget("control energy in 1,000 steps", limits.energy_per_1000_steps, most_in_1000(effort),
               refused(Reason.ENERGY_SPENT)),
        Budget("skips in 1,000 steps", limits.skips_per_1000_steps, most_in_1000(np.cumsum(skips)),
               refused(Reason.SKIPS_SPENT)),
        Budget("skips in a row", limits.max_skips_in_a_row, longest(skips), 0),
        Budget("rollbacks", limits.max_rollbacks, rollbacks, refused(Reason.ROLLBACKS_SPENT)),
    )  # fmt: skip


def _warnings(trace: Trace, environment: bool) -> tuple[str, ...]:
    """What a reader should know before trusting a run."""
    found = []
    for segment in trace.segments:
        meta = segment.meta
        where = f"segment {meta.segment}: " if len(trace.segments) > 1 else ""
        if meta.lost_rows:
            found.append(f"{where}{counted(meta.lost_rows, 'row')} could not be recorded")
        if meta.failure:
            found.append(where + (meta.failure if environment else without_paths(meta.failure)))
        if meta.damage is not None:
            found.append(f"{where}{meta.damage}")
        if meta.ended == "recovered":
            found.append(f"{where}its writer died; the rows before were recovered")
        if meta.ended == "open":
            found.append(f"{where}is still being written, or its writer died")
    if len(trace.segments) > 1:
        found.append(f"recorded in {len(trace.segments)} segments: the run was resumed")
    if origin := Ancestry.of(trace.meta.provenance):
        found.append(
            f"branch {origin.branch} of run {origin.trunk}, forked at step {origin.step:,}: earlier rows are that run's"
        )
    texts = [limitation.text for limitation in limitations(trace.meta.provenance)]
    if not scorable(trace):
        texts.append("alarms on this run are not judged, and it stands in no score: see above why")
    return (*found, *(text if environment else without_paths(text) for text in texts))


def _provenance(meta: SegmentMeta, environment: bool) -> tuple[tuple[tuple[str, str], ...], int]:
    known = {name: value for name, value in meta.provenance.items() if value not in (None, "")}
    told = {name: value for name, value in known.items() if environment or name in PUBLIC}
    shown = tuple((name, str(value) if environment else without_paths(str(value))) for name, value in told.items())
    return shown, len(known) - len(told)
