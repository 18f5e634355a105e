"""Detection: which labelled events a guard saw, how late, and how often it cried wolf.

Counts alarms on recorded runs and nothing else: it never says what acting on them would have done to the loss. There is
no point-adjusted F1: a random score looks state of the art under it (arXiv 2109.05257).

All windows are in logged rows, because a rule can fire only where a row was logged. With an event of `length` rows:

- detected: an alarm starts in [onset - tolerance, end], tolerance = max(3 rows, 5 % of length);
- detected with delay 0: the event lies inside a larger scored one, and an alarm that started in the larger one's own
  [onset - tolerance, end] is still on at the onset;
- false alarm: starts outside every event widened by the tolerance before and by max(10 rows, 50 % of length) after;
- baited: starts within 2 rows of a benign span, unless it starts in some event's [onset - tolerance, end];
- clean rows: outside every widened event and every benign span widened by 2 rows;
- latched: share of clean rows spent in alarm.

Events of low confidence widen like the others, so alarms on them count neither for nor against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lbw_sim.errors import ScoreError, unknown_name
from lbw_sim.score.range_measures import RangeMeasures, range_measures
from lbw_sim.trace.alarms import stretches, unsafe_rows
from lbw_sim.trace.labels import CONFIDENCES, EVENT_KINDS, KINDS, Label
from lbw_sim.values import nan

FALSE_ALARM_BUDGET_PER_10K = 1.0
"""The operating point at which guards are compared: false alarms per 10,000 clean rows."""

STARTUP_ROWS = 10
"""An event whose onset row is below this is a start-up event."""

VERDICTS = ("event", "ignored", "baited", "false")
"""What an alarm can be worth: see `JudgedAlarm`."""
Rows = Any
"""A row, or an array of rows; a test of it gives as many answers."""


class Alarm(NamedTuple):
    """One run of unsafe rows."""

    start_row: int
    end_row: int
    """The last unsafe row, inclusive."""


class JudgedAlarm(NamedTuple):
    """An alarm and what it was worth."""

    start_row: int
    end_row: int
    verdict: str
    """`event`: in a scored event, its tolerance or its aftermath; `ignored`: the same, of low-confidence events only;
    `baited`: on a benign span; `false`: none of these."""


class EventOutcome(NamedTuple):
    """What became of one scored event."""

    kind: str
    confidence: str
    onset_row: int
    end_row: int
    detected: bool
    delay_rows: float
    """Alarm minus onset, so at least minus the tolerance; nan when missed."""
    delay_steps: float
    """Step of the alarm's row minus the labelled start; nan when missed."""

    @property
    def startup(self) -> bool:
        """Whether the event began before row `STARTUP_ROWS`."""
        return self.onset_row < STARTUP_ROWS


@dataclass(frozen=True, kw_only=True)
class DetectionCounts:
    """Raw counts of one run or of several added up; every rate is made from the sums.

    >>> one = DetectionCounts(runs=1, rows=500, events=2, detected=1, clean_rows=400, false_alarms=1)
    >>> both = one + DetectionCounts(runs=1, rows=1600, clean_rows=1600)
    >>> both.recall, both.false_alarms_per_10k
    (0.5, 5.0)
    >>> DetectionCounts().recall
    nan
    """

    runs: int = 0
    rows: int = 0
    events: int = 0
    """Events of high or medium confidence."""
    detected: int = 0
    high_events: int = 0
    """Of these, the ones of high confidence."""
    high_detected: int = 0
    startup_events: int = 0
    """Of `events`, the ones that began before row `STARTUP_ROWS`."""
    startup_detected: int = 0
    alarms: int = 0
    false_alarms: int = 0
    baited: int = 0
    clean_rows: int = 0
    latched_rows: int = 0
    """Clean rows spent in alarm."""
    unplaced_labels: int = 0
    """Labels wholly outside the recorded steps: not scored."""
    delays_rows: tuple[float, ...] = ()
    """One per detected event."""
    delays_steps: tuple[float, ...] = ()

    @classmethod
    def total(cls, parts: Iterable[DetectionCounts]) -> DetectionCounts:
        """All of them added up."""
        listed = list(parts)
        sums: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in listed]
            # delays are strung together at once: one by one each would be copied as often as there are parts
            sums[field.name] = tuple(chain.from_iterable(values)) if field.default == () else sum(values)
        return cls(**sums)

    def __add__(self, other: DetectionCounts) -> DetectionCounts:
        return self.total([self, other])

    @property
    def recall(self) -> float:
        """Share of events detected; nan without events."""
        return _ratio(self.detected, self.events)

    @property
    def high_recall(self) -> float:
        """Recall of events of high confidence."""
        return _ratio(self.high_detected, self.high_events)

    @property
    def startup_recall(self) -> float:
        """Recall of start-up events."""
        return _ratio(self.startup_detected, self.startup_events)

    @property
    def later_recall(self) -> float:
        """Recall of all other events."""
        return _ratio(self.detected - self.startup_detected, self.events - self.startup_events)

    @property
    def false_alarms_per_10k(self) -> float:
        """False alarms per 10,000 clean rows; nan without clean rows."""
        return _ratio(10_000 * self.false_alarms, self.clean_rows)

    @property
    def latched_share(self) -> float:
        """Share of clean rows spent in alarm, in [0, 1]."""
        return _ratio(self.latched_rows, self.clean_rows)

    @property
    def median_delay_rows(self) -> float:
        """Median over detected events only, so read it beside recall; nan without any."""
        return float(np.median(self.delays_rows)) if self.delays_rows else nan

    @property
    def median_delay_steps(self) -> float:
        """The same in optimizer steps."""
        return float(np.median(self.delays_steps)) if self.delays_steps else nan


class RunScore(NamedTuple):
    """One guard on one run."""

    run_id: str
    events: tuple[EventOutcome, ...]
    """Scored events by onset row; low confidence left out."""
    alarms: tuple[JudgedAlarm, ...]
    counts: DetectionCounts
    ranges: RangeMeasures = RangeMeasures()
    """nan unless asked for: they cost twice as much as all the rest."""


def find_alarms(unsafe: ArrayLike) -> list[Alarm]:
    """The runs of rows that are marked, in order: of unsafe rows the alarms.

    >>> find_alarms([False, True, True, False, True])
    [Alarm(start_row=1, end_row=2), Alarm(start_row=4, end_row=4)]
    """
    return [Alarm(first, last) for first, last in stretches(unsafe).tolist()]


class Span(NamedTuple):
    """A label in rows."""

    label: Label
    onset: int
    end: int

    @property
    def tolerance(self) -> float:
        """Rows before the onset in which an alarm still detects the event."""
        return max(3.0, 0.05 * (self.end - self.onset + 1))

    @property
    def aftermath(self) -> float:
        """Rows after the end in which an alarm is not yet a false one."""
        return max(10.0, 0.5 * (self.end - self.onset + 1))

    @property
    def rows(self) -> slice:
        """The widened event."""
        return slice(max(0, math.ceil(self.onset - self.tolerance)), math.floor(self.end + self.aftermath) + 1)

    def own(self, row: Rows) -> Rows:
        """Whether an alarm that starts here detects the event."""
        return (self.onset - self.tolerance <= row) & (row <= self.end)

    def widened(self, row: Rows) -> Rows:
        """Whether an alarm that starts here is the event's or its aftermath's."""
        return (self.onset - self.tolerance <= row) & (row <= self.end + self.aftermath)

    def near(self, row: Rows) -> Rows:
        """Whether an alarm that starts here is on a benign span."""
        return (self.onset - 2 <= row) & (row <= self.end + 2)

    def contains(self, other: Span) -> bool:
        """Whether the other event lies inside this one."""
        return self.onset <= other.onset and other.end <= self.end


def match(
    alarms: Iterable[tuple[int, int]], labels: Iterable[Label], steps: ArrayLike, run_id: str, *, ranges: bool = False
) -> RunScore:
    """Judge the alarms of one run by its labels.

    `alarms`: (first row, last row) pairs; `labels`: events and benign spans in steps, any order; `steps`: the step of
    each logged row, not falling. A label between two logged rows stands at the next row.
    `ranges`: also the measures over rows in alarm, for which widened events of low confidence do not exist. Raises
    ScoreError.
    """
    steps = np.asarray(steps)
    events, benign, unplaced = place_labels(labels, steps, run_id)
    ordered = sorted(Alarm(*alarm) for alarm in alarms)
    if any(not (0 <= alarm.start_row <= alarm.end_row < len(steps)) for alarm in ordered):
        raise ScoreError(f"run {run_id!r}: an alarm lies outside its {len(steps)} rows; alarms are (first, last) row")
    scored = [event for event in events if event.label.confidence != "low"]
    outcomes = tuple(_outcome(event, scored, ordered, steps) for event in scored)
    verdicts = verdicts_on(np.array([alarm.start_row for alarm in ordered], dtype=np.int64), events, benign)
    judged = tuple(JudgedAlarm(*a, VERDICTS[code]) for a, code in zip(ordered, verdicts.tolist(), strict=True))
    clean = clean_rows(len(steps), events, benign)
    latched = np.zeros(len(steps), dtype=bool)
    for alarm in ordered:
        latched[alarm.start_row : alarm.end_row + 1] = True
    seen = [outcome for outcome in outcomes if outcome.detected]
    counts = DetectionCounts(
        runs=1,
        rows=len(steps),
        events=len(outcomes),
        detected=len(seen),
        high_events=sum(o.confidence == "high" for o in outcomes),
        high_detected=sum(o.confidence == "high" for o in seen),
        startup_events=sum(o.startup for o in outcomes),
        startup_detected=sum(o.startup for o in seen),
        alarms=len(ordered),
        false_alarms=sum(a.verdict == "false" for a in judged),
        baited=sum(a.verdict == "baited" for a in judged),
        clean_rows=int(clean.sum()),
        latched_rows=int((clean & latched).sum()),
        unplaced_labels=unplaced,
        delays_rows=tuple(o.delay_rows for o in seen),
        delays_steps=tuple(o.delay_steps for o in seen),
    )
    if not ranges:
        return RunScore(run_id, outcomes, judged, counts)
    ignored = np.zeros(len(steps), dtype=bool)
    for span in (event for event in events if event.label.confidence == "low"):
        ignored[span.rows] = True
    measured = range_measures(latched, [(event.onset, event.end) for event in scored], ignored)
    return RunScore(run_id, outcomes, judged, counts, measured)


def score_regimes(regimes: ArrayLike, labels: Iterable[Label], steps: ArrayLike, run_id: str) -> RunScore:
    """Judge one run from the `Regime` code of each of its rows. Raises ScoreError."""
    regimes, steps = np.asarray(regimes), np.asarray(steps)
    if regimes.shape != steps.shape:
        raise ScoreError(f"run {run_id!r}: {regimes.shape} regimes for {steps.shape} steps; give one regime per row")
    return match(find_alarms(unsafe_rows(regimes)), labels, steps, run_id)


def place_labels(labels: Iterable[Label], steps: NDArray[Any], run_id: str) -> tuple[list[Span], list[Span], int]:
    """Events and benign spans in rows, by onset, and the number of labels outside the run."""
    if steps.ndim != 1 or bool(np.any(np.diff(steps) < 0)):
        row = int(np.flatnonzero(np.diff(steps) < 0)[0]) + 1 if steps.ndim == 1 else 0
        raise ScoreError(
            f"run {run_id!r}: steps fall at row {row}; score one lineage in order (a trace's lineage='final')"
        )
    events: list[Span] = []
    benign: list[Span] = []
    unplaced = 0
    for label in labels:
        if label.kind not in KINDS:
            raise ScoreError(f"run {run_id!r}: " + unknown_name("label kind", label.kind, KINDS))
        if label.confidence not in CONFIDENCES:
            raise ScoreError(f"run {run_id!r}: " + unknown_name("confidence", label.confidence, CONFIDENCES))
        if not (label.start_step <= label.end_step):
            raise ScoreError(f"run {run_id!r}: {label.kind} ends at {label.end_step} before it starts")
        if len(steps) == 0 or label.end_step < steps[0] or label.start_step > steps[-1]:
            unplaced += 1
            continue
        onset = int(np.searchsorted(steps, label.start_step, side="left"))
        end = max(onset, int(np.searchsorted(steps, label.end_step, side="right")) - 1)
        (events if label.kind in EVENT_KINDS else benign).append(Span(label, onset, end))
    return sorted(events, key=lambda s: s[1:]), sorted(benign, key=lambda s: s[1:]), unplaced


def _outcome(event: Span, scored: list[Span], alarms: list[Alarm], steps: NDArray[Any]) -> EventOutcome:
    label = event.label
    # (rows, steps) from the onset to the first alarm that counts
    delays = [
        (float(alarm.start_row - event.onset), float(steps[alarm.start_row] - label.start_step))
        for alarm in alarms
        if event.own(alarm.start_row)
    ][:1]
    around = [larger for larger in scored if larger.contains(event)]
    if any(
        alarm.start_row <= event.onset <= alarm.end_row and any(larger.own(alarm.start_row) for larger in around)
        for alarm in alarms
    ):
        delays.append((0.0, 0.0))
    rows, late = min(delays, default=(nan, nan))
    return EventOutcome(label.kind, label.confidence, event.onset, event.end, bool(delays), rows, late)


def verdicts_on(starts: NDArray[np.int64], events: Sequence[Span], benign: Sequence[Span]) -> NDArray[np.int64]:
    """What alarms that start in these rows are worth, as places in `VERDICTS`."""
    scored = [event for event in events if event.label.confidence != "low"]

    def within(spans: Iterable[Span], test: Callable[[Span, Rows], Rows]) -> NDArray[np.bool_]:
        found = np.zeros(len(starts), dtype=bool)
        for span in spans:
            found |= test(span, starts)
        return found

    worth = np.full(len(starts), VERDICTS.index("false"))
    worth[within(events, Span.widened)] = VERDICTS.index("ignored")
    worth[within(scored, Span.widened)] = VERDICTS.index("event")
    worth[within(benign, Span.near) & ~within(events, Span.own)] = VERDICTS.index("baited")
    return worth


def clean_rows(rows: int, events: Iterable[Span], benign: Iterable[Span]) -> NDArray[np.bool_]:
    """Which rows are clean."""
    clean = np.ones(rows, dtype=bool)
    for span in events:
        clean[span.rows] = False
    for span in benign:
        clean[max(0, span.onset - 2) : span.end + 3] = False
    return clean


def never_alarms() -> list[Alarm]:
    """The reference row that never fires."""
    return []


def oracle_alarms(labels: Iterable[Label], steps: ArrayLike, run_id: str) -> list[Alarm]:
    """The reference row that knows the labels: one row of alarm at the onset of every scored event."""
    events, _, _ = place_labels(labels, np.asarray(steps), run_id)
    return [Alarm(row, row) for row in sorted({e.onset for e in events if e.label.confidence != "low"})]


def random_alarms(rows: int, *, per_10k: float, seed: int, length_rows: int = 1) -> list[Alarm]:
    """The reference row that knows nothing: alarms of `length_rows` start at `per_10k` per 10,000 rows on average.

    Starts are independent (geometric gaps), so a real score has to beat what this reaches at its own false-alarm rate.
    Alarms that touch are one.
    """
    if not (0.0 <= per_10k <= 10_000.0):
        raise ScoreError(f"random alarms: per_10k={per_10k} is outside [0, 10000]")
    started = np.random.default_rng(seed).random(rows) < per_10k / 10_000.0
    unsafe = np.zeros(rows, dtype=bool)
    for start in np.flatnonzero(started):
        unsafe[start : start + length_rows] = True
    return find_alarms(unsafe)


def family_of(run_id: str) -> str:
    """The part of a run id before the first `_` or `-`: runs of one family are correlated.

    >>> family_of("gptL_adamw_0.001"), family_of("tiny-lr3e-3-s0"), family_of("single")
    ('gptL', 'tiny', 'single')
    """
    return run_id.replace("-", "_").split("_", 1)[0]


def pooled(scores: Iterable[RunScore]) -> DetectionCounts:
    """All runs added up."""
    return DetectionCounts.total(score.counts for score in scores)


def by_family(scores: Iterable[RunScore]) -> dict[str, DetectionCounts]:
    """The runs of each family added up; families by name."""
    groups: dict[str, list[DetectionCounts]] = {}
    for score in scores:
        groups.setdefault(family_of(score.run_id), []).append(score.counts)
    return {family: DetectionCounts.total(counts) for family, counts in sorted(groups.items())}


def family_mean(families: Mapping[str, DetectionCounts], measure: Callable[[DetectionCounts], float]) -> float:
    """Mean of a rate over the families in which it is defined, each weighing the same; nan when none is.

    Meant for recall. The false-alarm rate is pooled: a family of 200 clean rows would make one alarm 44 per 10,000.
    """
    values = [value for value in map(measure, families.values()) if not math.isnan(value)]
    return math.fsum(values) / len(values) if values else nan


class Interval(NamedTuple):
    """A bootstrap interval; nan, nan when undefined."""

    low: float
    high: float


class DetectionIntervals(NamedTuple):
    """Percentile intervals over resampled runs."""

    recall: Interval
    """Pooled."""
    family_recall: Interval
    """Mean over families that hold events."""
    false_alarms_per_10k: Interval
    """Pooled."""


def bootstrap(
    scores: Sequence[RunScore], *, seed: int, resamples: int = 2_000, level: float = 0.95
) -> DetectionIntervals:
    """How far the rates would move with other runs of the same families.

    Runs are drawn with replacement within each family; a family of one run adds no spread, so an interval is too narrow
    where families are small. Where no family holds two runs there is nothing to draw, and no interval: it would be as
    narrow as if one run told everything. Resamples in which a rate is undefined are left out of its interval.
    """
    groups: dict[str, list[DetectionCounts]] = {}
    for score in scores:
        groups.setdefault(family_of(score.run_id), []).append(score.counts)
    if all(len(counts) == 1 for counts in groups.values()):
        return DetectionIntervals(Interval(nan, nan), Interval(nan, nan), Interval(nan, nan))
    rng = np.random.default_rng(seed)
    # (families, resamples, 4): events, detected, clean rows, false alarms
    sums = np.empty((len(groups), resamples, 4))
    for place, family in enumerate(sorted(groups)):
        counts = groups[family]
        table = np.array([(c.events, c.detected, c.clean_rows, c.false_alarms) for c in counts], dtype=float)
        drawn = rng.integers(len(counts), size=(resamples, len(counts)))
        sums[place] = table[drawn].sum(axis=1)
    events, detected, clean, false = np.moveaxis(sums, 2, 0)
    with np.errstate(invalid="ignore"):
        by_one = detected / events
        recall = detected.sum(axis=0) / events.sum(axis=0)
        rate = 10_000.0 * false.sum(axis=0) / clean.sum(axis=0)
        defined = ~np.isnan(by_one)
        mean = np.where(defined, by_one, 0.0).sum(axis=0) / defined.sum(axis=0)
    return DetectionIntervals(_percentiles(recall, level), _percentiles(mean, level), _percentiles(rate, level))


def _percentiles(values: NDArray[np.float64], level: float) -> Interval:
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(nan, nan)
    low, high = np.quantile(values, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(low), float(high))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else nan
