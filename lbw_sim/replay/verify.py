"""Verify: rebuild the guard from a trace's own metadata, replay it, demand equal bits.

Every recorded run is a regression test of the guard that flew. It shows that row and guard agree, and that no row was
changed by accident; it is no signature: who rewrites a whole trace consistently is not found out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from lbw_sim.errors import ComponentError, VerifyError
from lbw_sim.guard import state_from_data
from lbw_sim.replay.reference import DECIDED, telemetry_rows
from lbw_sim.trace import Segment, Trace
from lbw_sim.trace.parquet import ENUMS, to_numpy
from lbw_sim.trace.schema import SCALER_OVERFLOW
from lbw_sim.trace.store import missing_words
from lbw_sim.values import Decision, Posture, Reason, Telemetry, name_of
from lbw_sim.wording import counted

_HEARD_ROWS = 10_000
_GROUNDED = frozenset({Reason.GUARD_FAULT, Reason.RECORDER_FAULT})


class Verified(NamedTuple):
    """What was compared."""

    run_id: str
    segments: int
    rows: int
    grounded_rows: int
    """Rows at the end of segments in which the guard had been grounded and no longer decided."""


def verify(trace: Trace, progress: Callable[[int], None] | None = None) -> Verified:
    """Replay every segment through its own guard from its own starting state.

    `progress` hears how many further rows have been compared, some ten thousand at a time. Raises VerifyError, naming
    run, row and column, at the first row whose checksum, decision or effective lr is not what the recorded telemetry
    gives, or naming the segments that are missing, or the one whose number of rows is not what it was; SpecError when
    the guard's components are not installed in that version.
    """
    if trace.missing_segments:
        raise VerifyError(f"run {trace.run_id!r}: {missing_words(trace.missing_segments)}")
    rows = grounded_rows = 0
    for segment in trace.segments:
        segment_rows, segment_grounded = _verify_segment(trace.run_id, segment, progress or _quiet)
        rows += segment_rows
        grounded_rows += segment_grounded
    return Verified(trace.run_id, len(trace.segments), rows, grounded_rows)


def _quiet(rows: int) -> None:
    """Nobody listens."""


def _verify_segment(run_id: str, segment: Segment, progress: Callable[[int], None]) -> tuple[int, int]:
    meta = segment.meta
    where = f"run {run_id!r} segment {meta.segment}"
    if meta.spec.fingerprint != meta.fingerprint:
        raise VerifyError(
            f"{where}: its guard spec has fingerprint {meta.spec.fingerprint} and the trace was recorded under "
            f"{meta.fingerprint}: the spec was altered, or written by a version that fills in other defaults"
        )
    if meta.rows is not None and segment.rows != meta.rows:
        raise VerifyError(
            f"{where} holds {counted(segment.rows, 'row')} and had {meta.rows:,} when it was finished: its file was "
            f"written anew with others"
        )
    damaged = segment.damaged_rows()
    if damaged:
        raise VerifyError(
            f"{where} row {damaged[0]} does not match its checksum"
            f"{f' (nor do {len(damaged) - 1} more rows)' if len(damaged) > 1 else ''}: it was altered after recording"
        )
    guard = meta.spec.build()
    state, before = guard.init(), guard.not_yet
    try:
        if meta.guard_state is not None:
            state = state_from_data(state, meta.guard_state["guard"])
            before = state_from_data(guard.not_yet, meta.guard_state["before"])
    except (ComponentError, KeyError, TypeError) as error:
        raise VerifyError(f"{where}: the guard state that it starts from cannot be read: {error}") from None
    grounded = 0
    for row, (now, decided, done) in enumerate(_rows(segment, guard.extra_channels)):
        fault = ""
        if decided.reason in _GROUNDED:
            grounded += 1
            if decided.posture != Posture.HOLD or decided.scale != 1.0:
                fault = f"the guard was grounded, and yet {_named(decided, DECIDED)}"
        elif grounded:
            fault = f"the guard decides again after it was grounded at row {row - grounded}"
        else:
            state, decision = guard.step(state, guard.seen(now, before))
            fault = _difference(decided, decision)
        before = now
        fault = fault or _disobedience(now.lr, decided, done, meta.mode, acts=meta.mode == "active" and not grounded)
        if fault:
            raise VerifyError(f"{where} row {row} (step {now.step}): {fault}")
        if row % _HEARD_ROWS == _HEARD_ROWS - 1:
            progress(_HEARD_ROWS)
    progress(segment.rows % _HEARD_ROWS)
    return segment.rows, grounded


class _Done(NamedTuple):
    """What the run really did at one row."""

    effective_lr: float
    skipped: bool
    rolled_back_to: int
    event: str


def _rows(segment: Segment, extra_channels: Sequence[str]) -> Iterator[tuple[Telemetry, Decision, _Done]]:
    """What was seen, decided and done, row by row; as many rows are held as one of the segment's parts has."""
    for part in segment.parts():
        columns = to_numpy(part)
        decided = map(Decision, *(columns[name].tolist() for name in DECIDED))
        done = map(_Done, *(columns[name].tolist() for name in _Done._fields))
        yield from zip(telemetry_rows(columns, extra_channels), decided, done, strict=True)


def _difference(recorded: Decision, decision: Decision) -> str:
    """How the recorded decision differs from the guard's; empty: not at all."""
    # the others are whole numbers
    if (
        _same(recorded.scale, decision.scale)
        and _same(recorded.energy, decision.energy)
        and recorded[:2] == decision[:2]
        and recorded.reason == decision.reason
    ):
        return ""
    wrong = [name for name in DECIDED if not _same(getattr(recorded, name), getattr(decision, name))]
    return (
        f"recorded {_named(recorded, wrong)}; the recorded guard decides {_named(decision, wrong)} on the recorded "
        "telemetry"
    )


def _disobedience(lr: float, decided: Decision, done: _Done, mode: str, *, acts: bool) -> str:
    """What was done that was not decided, or the reverse; empty: nothing. `acts`: whether decisions are carried out."""
    rolls_back = acts and decided.posture == Posture.ROLLBACK
    if done.rolled_back_to >= 0 and not rolls_back:
        return f"went back to step {done.rolled_back_to}, which its guard did not decide"
    # a step that the gradient scaler dropped was dropped whatever the guard decided; a rollback drops its own
    skips = (
        done.event == SCALER_OVERFLOW
        or (acts and decided.posture == Posture.SKIP)
        or (rolls_back and done.rolled_back_to >= 0)
    )
    if mode == "shadow":
        return "" if done.skipped == skips else "an update was skipped, and a guard in shadow mode never skips one"
    expected = 0.0 if skips else lr * decided.scale
    if done.skipped == skips and _same(done.effective_lr, expected):
        return ""
    return (
        f"recorded effective_lr={done.effective_lr!r}, skipped={done.skipped}; a guard that decided this and acts "
        f"makes it effective_lr={expected!r}, skipped={skips}"
    )


def _same(a: float, b: float) -> bool:
    """Equal bits, any nan being like any other."""
    return (a == b and math.copysign(1.0, a) == math.copysign(1.0, b)) or (a != a and b != b)


def _named(decision: Decision, names: Iterable[str]) -> str:
    def shown(name: str) -> str:
        value = getattr(decision, name)
        return name_of(ENUMS[name], value) if name in ENUMS else repr(value)

    return ", ".join(f"{name}={shown(name)}" for name in names)
