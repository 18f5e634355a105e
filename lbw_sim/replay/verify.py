"""Verify: rebuild the guard from a trace's own metadata, replay it, demand equal bits.

Every recorded run is a regression test of the guard that flew. It shows that row and guard agree, and that no row was
changed by accident; it is no signature: who rewrites a whole trace consistently is not found out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lbw_sim.errors import ComponentError, VerifyError
from lbw_sim.guard import state_from_data
from lbw_sim.replay.reference import DECIDED, telemetry_rows
from lbw_sim.trace import Segment, Trace
from lbw_sim.trace.schema import SCALER_OVERFLOW
from lbw_sim.values import Decision, Posture, Reason, Regime

_ENUMS = {"regime": Regime, "posture": Posture, "reason": Reason}
_GROUNDED = (Reason.GUARD_FAULT, Reason.RECORDER_FAULT)


class Verified(NamedTuple):
    """What was compared."""

    run_id: str
    segments: int
    rows: int
    grounded_rows: int
    """Rows at the end of segments in which the guard had been grounded and no longer decided."""


def verify(trace: Trace) -> Verified:
    """Replay every segment through its own guard from its own starting state.

    Raises VerifyError, naming run, row and column, at the first row whose checksum, decision or effective lr is not
    what the recorded telemetry gives; SpecError when the guard's components are not installed in that version.
    """
    rows = grounded_rows = 0
    for segment in trace.segments:
        segment_rows, segment_grounded = _verify_segment(trace.run_id, segment)
        rows += segment_rows
        grounded_rows += segment_grounded
    return Verified(trace.run_id, len(trace.segments), rows, grounded_rows)


def _verify_segment(run_id: str, segment: Segment) -> tuple[int, int]:
    meta = segment.meta
    where = f"run {run_id!r} segment {meta.segment}"
    if meta.spec.fingerprint != meta.fingerprint:
        raise VerifyError(
            f"{where}: its guard spec has fingerprint {meta.spec.fingerprint} and the trace was recorded under "
            f"{meta.fingerprint}: the spec was altered, or written by a version that fills in other defaults"
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
    columns = segment.to_numpy()
    recorded = zip(*(columns[name].tolist() for name in DECIDED), strict=True)
    applied = zip(
        *(columns[name].tolist() for name in ("effective_lr", "skipped", "rolled_back_to", "event")), strict=True
    )
    grounded = 0
    for row, (now, decided, (effective_lr, skipped, rolled_back_to, event)) in enumerate(
        zip(telemetry_rows(columns, guard.extra_channels), recorded, applied, strict=True)
    ):
        at = f"{where} row {row} (step {now.step})"
        if decided[4] in _GROUNDED:
            grounded += 1
            if decided[1] != Posture.HOLD or decided[2] != 1.0:
                raise VerifyError(
                    f"{at}: the guard was grounded, and yet {_named(dict(zip(DECIDED, decided, strict=True)))}"
                )
        elif grounded:
            raise VerifyError(f"{at}: the guard decides again after it was grounded at row {row - grounded}")
        else:
            state, decision = guard.step(state, guard.seen(now, before))
            _compare(at, decided, decision)
        before = now
        acts = meta.mode == "active" and not grounded
        rolls_back = acts and decided[1] == Posture.ROLLBACK
        if rolled_back_to >= 0 and not rolls_back:
            raise VerifyError(f"{at}: went back to step {rolled_back_to}, which its guard did not decide")
        # a step that the gradient scaler dropped was dropped whatever the guard decided; a rollback drops its own
        skips = (
            event == SCALER_OVERFLOW or (acts and decided[1] == Posture.SKIP) or (rolls_back and rolled_back_to >= 0)
        )
        if meta.mode == "shadow":
            if skipped != skips:
                raise VerifyError(f"{at}: an update was skipped, and a guard in shadow mode never skips one")
            continue
        expected = 0.0 if skips else now.lr * decided[2]
        if skipped != skips or not _same(effective_lr, expected):
            raise VerifyError(
                f"{at}: recorded effective_lr={effective_lr!r}, skipped={skipped}; a guard that decided this and acts "
                f"makes it effective_lr={expected!r}, skipped={skips}"
            )
    return len(columns["step"]), grounded


def _compare(at: str, recorded: tuple[Any, ...], decision: Decision) -> None:
    if all(_same(a, b) for a, b in zip(recorded, decision[:5], strict=True)):
        return
    wrong = [name for name, a, b in zip(DECIDED, recorded, decision[:5], strict=True) if not _same(a, b)]
    was = _named({name: value for name, value in zip(DECIDED, recorded, strict=True) if name in wrong})
    now = _named({name: value for name, value in zip(DECIDED, decision[:5], strict=True) if name in wrong})
    raise VerifyError(f"{at}: recorded {was}; the recorded guard decides {now} on the recorded telemetry")


def _same(a: float, b: float) -> bool:
    """Equal bits, any nan being like any other."""
    return (a == b and math.copysign(1.0, a) == math.copysign(1.0, b)) or (a != a and b != b)


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={_ENUMS[name](value).name if name in _ENUMS else repr(value)}" for name, value in values.items()
    )
