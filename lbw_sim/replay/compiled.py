"""Open-loop replay of many guards over many runs, compiled: the reference engine's bits, some hundred times faster.

Says what each guard would have decided on the record, never what its decisions would have done. A guard that has no
compiled form, or a step at which Python would raise, goes through the reference engine, which has the last word.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.cores import usable_cores
from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.notebook import grid, warned
from lbw_sim.replay import kernel_files, kernels
from lbw_sim.replay.reference import DECIDED, decide
from lbw_sim.replay.symbolic import CannotInline
from lbw_sim.trace import Trace
from lbw_sim.trace.alarms import stretches, unsafe_rows
from lbw_sim.values import Posture
from lbw_sim.wording import counted

Engine = Literal["auto", "compiled", "python"]
Columns = Mapping[str, NDArray[Any]]
Progress = Callable[[int, int], None]

LANES = 32
"""Candidates side by side; measured in `benchmarks/replay.py`."""
BLOCK_ROWS = 1024 * kernels.WORD_ROWS
"""Rows between two looks at whether to stop: about 10 ms of work."""
MAX_ALARMS = 10_000
"""Alarms listed per run and candidate."""
WORTH_COMPILING = 100_000
"""Candidate-steps below which plain Python is done before a compiler has been loaded."""
_WHOLE = 2.0**53


class CompileWarning(UserWarning):
    """A guard runs in plain Python, some hundred times slower, because a component has no compiled form."""


class Replays(NamedTuple):
    """What guards decide along one recorded run. Arrays have one entry per guard, in the order of `specs`."""

    run_id: str
    specs: tuple[GuardSpec, ...]
    steps: NDArray[np.int64]
    """The step of each row of the final lineage."""
    alarm_counts: NDArray[np.int64]
    """Runs of unsafe rows, those not listed included."""
    alarm_rows: NDArray[np.int64]
    """(first row, last row) of every listed alarm, guard after guard: `alarms(guard)` picks them."""
    alarm_starts: NDArray[np.int64]
    """Where each guard's alarms begin in `alarm_rows`; one entry more than guards."""
    first_regime: NDArray[np.int8]
    """`Regime` in which the first alarm began; -1 without alarm."""
    unsafe_steps: NDArray[np.int64]
    regime_switches: NDArray[np.int64]
    """Rows whose regime is not the one before."""
    requested_energy: NDArray[np.float64]
    """Control energy asked for: the sum of (1 - scale)^2."""
    active_steps: NDArray[np.int64]
    """Rows with scale below 1."""
    min_scale: NDArray[np.float64]
    """Lowest scale; 1 without rows."""
    skip_requests: NDArray[np.int64]
    """Rows with posture SKIP: asked for and within the envelope's budget."""
    rollback_requests: NDArray[np.int64]
    """Rows with posture ROLLBACK."""
    decided: tuple[dict[str, NDArray[Any]], ...] | None
    """With `rows=True`, per guard: regime, posture and reason as enum codes, scale, energy, one entry per row."""
    limitations: tuple[str, ...] = ()
    """What this cannot show because of how the run was logged, a sentence each; none when a guard was attached."""

    def alarms(self, guard: int) -> list[tuple[int, int]]:
        """(first row, last row) of each alarm of one guard, in order; at most `max_alarms`."""
        found = self.alarm_rows[self.alarm_starts[guard] : self.alarm_starts[guard + 1]]
        return [(int(first), int(last)) for first, last in found]

    def _repr_html_(self) -> str:
        """For notebooks: a line per guard."""
        rows = []
        for place, spec in enumerate(self.specs):
            listed = self.alarms(place)
            first = self.steps[listed[0][0]] if listed else "–"
            unsafe, energy = int(self.unsafe_steps[place]), f"{self.requested_energy[place]:.1f}"
            rows.append((spec.name, int(self.alarm_counts[place]), first, unsafe, energy))
        title = f"{self.run_id}, {counted(len(self.steps), 'row')}, open loop"
        head = ["guard", "alarms", "first at step", "unsafe steps", "energy asked for"]
        return grid(title, head, rows) + warned(self.limitations)


class _Summary(NamedTuple):
    """Of some candidates on one run; the fields as in `Replays`, one entry per candidate."""

    alarms: list[NDArray[np.int64]]
    alarm_counts: NDArray[np.int64]
    unsafe_steps: NDArray[np.int64]
    counted: dict[str, NDArray[np.float64]]
    """Entry of `kernels.SUMMARY` -> values."""
    decided: list[dict[str, NDArray[Any]]]


def replay_many(
    traces: Sequence[Trace | Columns],
    specs: Sequence[GuardSpec],
    *,
    rows: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
    max_alarms: int = MAX_ALARMS,
    engine: Engine = "auto",
) -> Iterator[Replays]:
    """Replay every guard along every run; one result per run, in order, as soon as it is there.

    `traces`: recorded runs, of which the final lineage counts, or columns as `Trace.to_numpy()` gives. `rows`: keep
    every decision, not only the summary. `progress` is called with candidate-steps done and in all. `threads`: default
    one per core that this process may use; results do not depend on it. `engine`: `auto` compiles unless the work is
    small; results do not depend on it either. Stop it at any time, with Ctrl-C or by not asking for more: what was
    handed out is complete. `replay_bytes` says how much memory it takes.

    Warns with CompileWarning, once per structure, about guards that run in plain Python. Raises ChannelError when a
    guard needs a channel that a run does not hold, SpecError when a component is not installed.

    >>> columns = {"step": np.arange(400), "loss": np.array([2.0, 2.1] * 150 + [9.0, 9.1] * 50)}
    >>> specs = [GuardSpec.load("zscore"), GuardSpec.load("never")]
    >>> for found in replay_many([columns], specs):
    ...     print(found.alarms(0), found.unsafe_steps.tolist())
    [(300, 310)] [11, 0]
    """
    guards = [spec.build() for spec in specs]
    totals = [_row_count(trace) for trace in traces]
    chunks = _chunks(guards, sum(totals), rows, engine)
    total = sum(totals) * len(guards)
    done = 0

    def report(steps: int) -> None:
        nonlocal done
        done += steps
        if progress is not None:
            progress(done, total)

    count = usable_cores() if threads is None else threads
    stop = threading.Event()
    pool = ThreadPoolExecutor(count) if count > 1 else None
    try:
        for number, trace in enumerate(traces):
            yield _replay_one(number, trace, tuple(specs), chunks, rows, max_alarms, pool, stop, report)
    finally:
        stop.set()
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def replay_bytes(
    row_count: int,
    guards: int,
    *,
    channels: int = 8,
    rows: bool = False,
    threads: int = 1,
    max_alarms: int = MAX_ALARMS,
) -> int:
    """Most memory in bytes that `replay_many` takes for one run of `row_count` rows, beside the run itself.

    The worst case, in which every second row starts an alarm. Results of earlier runs count only if they are kept.

    >>> replay_bytes(10_000, 1_000) < 200e6 < replay_bytes(10_000, 1_000, rows=True)
    True
    """
    alarms = min(max_alarms, (row_count + 1) // 2)
    telemetry = 8 * (channels + 1) * (row_count + 1)
    words = 8 * LANES * (BLOCK_ROWS // kernels.WORD_ROWS)
    candidate = 8 * 100 + 8 * len(Replays._fields) + 2 * 16 * alarms + (2 * 19 * row_count if rows else 0)
    return telemetry + threads * (words + LANES * 16 * alarms) + guards * candidate


class _Chunk(NamedTuple):
    """Candidates of one structure that run side by side."""

    members: list[int]
    """Their places among the guards."""
    guards: list[Guard]
    source: kernels.Source | None
    """None: plain Python."""
    start: kernels.Start | None


def _chunks(guards: Sequence[Guard], row_count: int, rows: bool, engine: Engine) -> list[_Chunk]:
    by_structure: dict[Any, list[int]] = {}
    for place, guard in enumerate(guards):
        by_structure.setdefault(kernels.structure(guard), []).append(place)
    chunks = []
    for members in by_structure.values():
        source = None
        if engine == "compiled" or (engine == "auto" and row_count * len(members) >= WORTH_COMPILING):
            guard = guards[members[0]]
            try:
                source = _source(guard, LANES if len(members) > 1 else 1, rows)
                # now, so that no two threads do it
                kernel_files.compiled(source.text)
                kernel_files.compiled(kernels.extraction())
            except (CannotInline, OSError) as reason:
                source = None
                warnings.warn(f"replayed in plain Python: {reason}", CompileWarning, stacklevel=4)
        together = source.layout.lanes if source else 1
        for first in range(0, len(members), together):
            chunk = members[first : first + together]
            those = [guards[member] for member in chunk]
            chunks.append(_Chunk(chunk, those, source, kernels.start(source.layout, those) if source else None))
    return chunks


_sources: dict[Any, kernels.Source] = {}


def _source(guard: Guard, lanes: int, rows: bool) -> kernels.Source:
    """`kernels.source`, which takes longer than many a replay, once per structure while it fits."""
    key = (kernels.structure(guard), lanes, rows)
    found = _sources.get(key)
    if found is None or bool(kernels.start(found.layout, [guard]).unfit[0]):
        found = _sources[key] = kernels.source(guard, lanes, rows)
    return found


def _row_count(trace: Trace | Columns) -> int:
    return sum(segment.rows for segment in trace.segments) if isinstance(trace, Trace) else len(trace["step"])


def _replay_one(
    number: int,
    trace: Trace | Columns,
    specs: tuple[GuardSpec, ...],
    chunks: Sequence[_Chunk],
    rows: bool,
    max_alarms: int,
    pool: ThreadPoolExecutor | None,
    stop: threading.Event,
    report: Callable[[int], None],
) -> Replays:
    if isinstance(trace, Trace):
        run_id, columns, channels = trace.run_id, trace.to_numpy(), trace.channels
    else:
        run_id, columns, channels = f"columns {number}", dict(trace), tuple(trace)
    row_count = len(columns["step"])
    n = len(specs)
    alarms: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)] * n
    counts, unsafe = np.zeros(n, np.int64), np.zeros(n, np.int64)
    counted = {name: np.zeros(n) for name in kernels.SUMMARY}
    decided: list[dict[str, NDArray[Any]]] = [{} for _ in range(n)]

    for sensor in {chunk.guards[0].sensor: chunk.guards[0] for chunk in chunks}.values():
        sensor.require(channels, f"trace {run_id!r}")
    seen = {extra: _seen(columns, extra) for extra in {chunk.guards[0].extra_channels for chunk in chunks}}
    work: list[Callable[[], _Summary]] = [
        partial(_compiled, chunk, seen[chunk.guards[0].extra_channels], columns, rows, max_alarms, stop)
        if chunk.source
        else partial(_reference, chunk.guards[0], columns, rows, max_alarms)
        for chunk in chunks
    ]
    finished = (one() for one in work) if pool is None else (f.result() for f in [pool.submit(one) for one in work])
    for members, found in zip((chunk.members for chunk in chunks), finished, strict=True):
        counts[members] = found.alarm_counts[: len(members)]
        unsafe[members] = found.unsafe_steps[: len(members)]
        for name, values in found.counted.items():
            counted[name][members] = values[: len(members)]
        for place, member in enumerate(members):
            alarms[member] = found.alarms[place]
            if rows:
                decided[member] = found.decided[place]
        report(row_count * len(members))
    return Replays(
        run_id=run_id,
        specs=specs,
        steps=columns["step"],
        alarm_counts=counts,
        alarm_rows=np.concatenate([np.empty((0, 2), np.int64), *alarms]),
        alarm_starts=np.cumsum([0, *map(len, alarms)]),
        first_regime=counted["first_regime"].astype(np.int8),
        unsafe_steps=unsafe,
        regime_switches=counted["switches"].astype(np.int64),
        requested_energy=counted["energy"],
        active_steps=counted["active_steps"].astype(np.int64),
        min_scale=counted["min_scale"],
        skip_requests=counted["skips"].astype(np.int64),
        rollback_requests=counted["rollbacks"].astype(np.int64),
        decided=tuple(decided) if rows else None,
        limitations=tuple(limit.text for limit in trace.limitations) if isinstance(trace, Trace) else (),
    )


def _seen(columns: Columns, extra: Sequence[str]) -> NDArray[np.float64]:
    """Telemetry as kernels read it: a row per channel; the first column is what comes before the first step."""
    row_count = len(columns["step"])
    seen = np.full((len(kernels.CHANNELS) + len(extra), row_count + 1), np.nan)
    seen[:, 0] = kernels.telemetry_before_the_first_step(len(extra))
    for place, name in enumerate((*kernels.CHANNELS, *extra)):
        if name in columns:
            seen[place, 1:] = columns[name]
    return seen


def _compiled(
    chunk: _Chunk,
    seen: NDArray[np.float64],
    columns: Columns,
    rows: bool,
    max_alarms: int,
    stop: threading.Event,
) -> _Summary:
    """Candidates of one structure, at most as many as there are lanes, along one run."""
    assert chunk.source is not None
    assert chunk.start is not None
    guards, layout, row_count = chunk.guards, chunk.source.layout, seen.shape[1] - 1
    lanes = layout.lanes
    kernel, extract = kernel_files.compiled(chunk.source.text), kernel_files.compiled(kernels.extraction())
    buffer, win, place, unfit = chunk.start.again()
    block = min(BLOCK_ROWS, row_count)
    words = kernels.cache_aligned(lanes * -(-block // kernels.WORD_ROWS))
    outputs = {
        name: kernels.cache_aligned(row_count * lanes, float if name in ("scale", "energy") else np.int8)
        for name in (DECIDED if rows else ())
    }
    listed = min(max_alarms, (row_count + 1) // 2)
    alarms = np.empty((lanes, listed, 2), np.int64)
    counts, unsafe, begun = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64), np.full(lanes, -1, np.int64)
    for begin in range(0, row_count, BLOCK_ROWS):
        if stop.is_set():
            raise KeyboardInterrupt
        end = min(begin + BLOCK_ROWS, row_count)
        kernel(seen, begin, end, buffer, words, win, place, *outputs.values())
        extract(words, begin, end, lanes, begun, counts, unsafe, alarms)
    for lane in np.flatnonzero(begun >= 0).tolist():
        if counts[lane] < listed:
            alarms[lane, counts[lane]] = begun[lane], row_count - 1
        counts[lane] += 1

    counted: dict[str, NDArray[np.float64]] = {
        name: buffer[layout.summary_row(name) * lanes : (layout.summary_row(name) + 1) * lanes]
        for name in kernels.SUMMARY
    }
    if row_count == 0:
        counted["switches"][:] = 0.0
    found = _Summary(
        [alarms[lane, : counts[lane]].copy() for lane in range(len(guards))],
        counts,
        unsafe,
        counted,
        [
            {name: values.reshape(row_count, lanes)[:, lane].copy() for name, values in outputs.items()}
            for lane in range(len(guards) if rows else 0)
        ],
    )
    refused = unfit | (counted["fault"] != 0.0) | _too_large(columns)
    for lane, guard in enumerate(guards):
        if refused[lane]:
            _replace(found, lane, _reference(guard, columns, rows, max_alarms))
    return found


def _replace(found: _Summary, lane: int, by: _Summary) -> None:
    """Put the reference engine's answer in the place of a candidate's."""
    found.alarms[lane] = by.alarms[0]
    found.alarm_counts[lane], found.unsafe_steps[lane] = by.alarm_counts[0], by.unsafe_steps[0]
    for name, values in by.counted.items():
        found.counted[name][lane] = values[0]
    if by.decided:
        found.decided[lane] = by.decided[0]


def _too_large(columns: Columns) -> bool:
    steps = columns["step"]
    return len(steps) > 0 and not (abs(float(steps.min())) < _WHOLE and abs(float(steps.max())) < _WHOLE)


def _reference(guard: Guard, columns: Columns, rows: bool, max_alarms: int) -> _Summary:
    """One candidate in plain Python."""
    decisions = list(zip(*(decision[:5] for decision in decide(guard, columns)), strict=True))
    arrays: dict[str, NDArray[Any]] = {
        name: np.array(values, dtype=np.float64 if name in ("scale", "energy") else np.int8)
        for name, values in zip(DECIDED, decisions or [()] * len(DECIDED), strict=True)
    }
    regime, posture, scale = arrays["regime"], arrays["posture"], arrays["scale"]
    unsafe = unsafe_rows(regime)
    alarms = stretches(unsafe)
    counted = {
        "first_regime": float(regime[alarms[0, 0]]) if len(alarms) else -1.0,
        "switches": float((regime[1:] != regime[:-1]).sum()),
        "active_steps": float((scale < 1.0).sum()),
        "min_scale": float(scale.min(initial=1.0)),
        "energy": float(arrays["energy"][-1]) if len(scale) else 0.0,
        "skips": float((posture == Posture.SKIP).sum()),
        "rollbacks": float((posture == Posture.ROLLBACK).sum()),
    }
    return _Summary(
        [alarms[:max_alarms]],
        np.array([len(alarms)]),
        np.array([int(unsafe.sum())]),
        {name: np.array([value]) for name, value in counted.items()},
        [arrays] if rows else [],
    )
