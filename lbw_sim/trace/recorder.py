"""The flight recorder: one checked row on disk per optimizer step, and Parquet when the run is over.

It may refuse before training starts; from then on it never raises, never waits for the disk and never changes a run.
When it cannot write it stops, counts what is lost and says why. It decides nothing and reads no clock.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from lbw_sim.errors import TraceError
from lbw_sim.guard.spec import GuardSpec
from lbw_sim.trace import provenance as provenance_
from lbw_sim.trace.journal import JournalWriter
from lbw_sim.trace.layout import journal_name, local_path, next_segment, run_folder_name, segment_name
from lbw_sim.trace.recovery import finish, recover_run
from lbw_sim.trace.schema import MODES, describe, row_struct
from lbw_sim.values import Decision, Telemetry, nan
from lbw_sim.wording import counted


class ClosedTrace(NamedTuple):
    """How a recording ended."""

    rows: int
    """Rows on disk."""
    lost_rows: int
    """Rows that could not be recorded."""
    path: Path
    """The finished Parquet file, or the journal when it could not be made; the next reader then makes it."""


def _cannot_write(run_id: str, folder: Path, error: OSError) -> TraceError:
    return TraceError(
        f"run {run_id!r} cannot be recorded: {folder} cannot be written: {error}. "
        f"Choose a folder on a disk with room that this user may write"
    )


def _check_facts(provenance: provenance_.Provenance) -> None:
    if unfit := [
        f"{key!r}={value!r}"
        for key, value in provenance.items()
        if not isinstance(key, str) or not (value is None or isinstance(value, (str, int, float)))
    ]:
        raise TraceError(f"provenance {'; '.join(unfit)}: a text, a number or None is needed; str() makes a text")


class Recorder:
    """Records one segment of a run: a new run, or what a resumed one does from here.

    Use from one thread of one process; a forked child's copy records nothing.

    >>> import tempfile
    >>> from lbw_sim.trace import read_trace
    >>> folder = tempfile.TemporaryDirectory()
    >>> guard = GuardSpec.load("default").build()
    >>> state = guard.init()
    >>> with Recorder.open(folder.name, "demo", spec=GuardSpec.load("default"), mode="shadow") as recorder:
    ...     for step in range(3):
    ...         seen = Telemetry(step, loss=5.0 - step, lr=1e-3, nonfinite=0.0)
    ...         state, decision = guard.step(state, seen)
    ...         ok = recorder.append(seen, decision, elapsed_s=0.1 * step, effective_lr=1e-3)
    >>> read_trace(folder.name).to_numpy()["loss"].tolist()
    [5.0, 4.0, 3.0]
    >>> folder.cleanup()
    """

    def __init__(self, journal: JournalWriter, run_id: str, segment: int, extra_channels: tuple[str, ...]) -> None:
        """Use `Recorder.open`."""
        self.run_id = run_id
        self.segment = segment
        self.lost_rows = 0
        """Rows that could not be recorded."""
        self.failure: str | None = None
        """Why rows were lost; None: none were."""
        self._journal = journal
        self._owned = True
        self._writing = True
        self._path = journal.path
        self._pack = row_struct(extra_channels).pack
        self._extra = len(extra_channels)
        self._step = -(1 << 63)
        self._attempt = 0
        self._closed: ClosedTrace | None = None
        _open_recorders.add(self)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        run_id: str,
        *,
        spec: GuardSpec,
        mode: str,
        provenance: provenance_.Provenance | None = None,
        extra_channels: Sequence[str] = (),
        guard_state: object | None = None,
    ) -> Recorder:
        """Begin a segment of `run_id` in a folder of traces, after finishing what dead writers of that run left.

        `mode` is `shadow` or `active`. `provenance` None: what `collect()` finds. `extra_channels` names
        `Telemetry.extra`: first the guard's own, in its order, then any others; empty: the guard's. `guard_state` is
        `state_to_data` of a resumed guard, None for a fresh one.

        Raises TraceError, before anything is trained, when something does not fit or the folder cannot be written;
        SpecError when the guard cannot be built here.
        """
        # from the root: `close` finds it, wherever the process works by then
        run_folder = local_path(folder, "runs are recorded").absolute() / run_folder_name(run_id)
        if mode not in MODES:
            raise TraceError(f"mode {mode!r} is not {' or '.join(MODES)}")
        own = spec.build().extra_channels
        channels = tuple(extra_channels) or own
        if channels[: len(own)] != own:
            raise TraceError(
                f"guard {spec.name!r} expects extra channels {', '.join(own)} first, in this order; "
                f"extra_channels is {', '.join(map(str, channels))}"
            )
        facts = provenance_.collect() if provenance is None else dict(provenance)
        _check_facts(facts)
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
            recover_run(run_folder)
            while True:
                segment = next_segment(os.listdir(run_folder))
                description = describe(
                    run_id=run_id,
                    segment=segment,
                    spec=spec,
                    mode=mode,
                    extra_channels=channels,
                    guard_state=guard_state,
                    provenance=facts,
                )
                try:
                    journal = JournalWriter(run_folder / journal_name(segment), description)
                except FileExistsError:
                    continue  # another process took this number since we looked
                return cls(journal, run_id, segment, channels)
        except OSError as error:
            raise _cannot_write(run_id, run_folder, error) from None

    @staticmethod
    def check(folder: str | Path, run_id: str, provenance: provenance_.Provenance) -> Path:
        """Refuse now what `open` would refuse later: a bad run id, a folder that cannot be written, provenance that is
        neither text nor number.

        Makes the run's folder; returns `folder` from the root of the file system. Raises TraceError.
        """
        _check_facts(provenance)
        folder = local_path(folder, "runs are recorded").absolute()
        run_folder = folder / run_folder_name(run_id)
        try:
            run_folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=run_folder):
                pass
        except OSError as error:
            raise _cannot_write(run_id, run_folder, error) from None
        return folder

    @property
    def rows(self) -> int:
        """Rows on disk so far."""
        return self._journal.rows

    @property
    def path(self) -> Path:
        """The journal while recording; after `close`, what became of it."""
        return self._path

    def append(
        self,
        telemetry: Telemetry,
        decision: Decision,
        *,
        elapsed_s: float,
        effective_lr: float,
        skipped: bool = False,
        rolled_back_to: int = -1,
        attempt: int = 0,
        event: str = "",
    ) -> bool:
        """Record one step; true when the row is safe from the death of this process. Never raises.

        A step that does not lie after the one before it starts a new attempt, told or not, and attempts never go
        down: a recorder does not refuse what happened. Missing extra channels become nan; an event keeps its first 24
        ASCII characters. A row that does not fit the columns is lost alone; a disk that does not take a row ends the
        recording, since rows after a gap could not be replayed.
        """
        if not self._writing:
            self.lost_rows += 1
            return False
        try:
            step, loss, lr, grad_norm, update_norm, tokens, nonfinite, extra = telemetry
            if len(extra) < self._extra:
                extra = (*extra, *(nan,) * (self._extra - len(extra)))
            if attempt < self._attempt:
                attempt = self._attempt
            if step <= self._step and attempt == self._attempt:
                attempt += 1
            body = self._pack(
                step, attempt, elapsed_s, loss, lr, effective_lr, grad_norm, update_norm, tokens, nonfinite, *extra,
                decision.regime, decision.posture, decision.scale, decision.energy, decision.reason,
                skipped, rolled_back_to, event.encode("ascii", "replace") if event else b"",
            )  # fmt: skip
        except Exception as error:
            self._lose(f"a row does not fit the columns: {error}")
            return False
        # before the write: an interrupt between the two must not let this step come twice in one attempt
        self._step = step
        self._attempt = attempt
        try:
            self._journal.append(body)
        except Exception as error:
            self._writing = False
            self._lose(f"recording stopped after {counted(self.rows, 'row')}: {error}")
            return False
        return True

    def close(self) -> ClosedTrace:
        """Finish the segment: the journal becomes Parquet. Never raises; a second call gives the same answer.

        When the Parquet file cannot be made the journal stays, no row is lost, and the next reader or recorder of this
        run makes it. A journal that somebody deleted is lost with its rows.
        """
        if self._closed is None:
            self._writing = False
            rows = self.rows
            if self._owned:
                try:
                    self._path = finish(
                        self._path,
                        self._path.with_name(segment_name(self.segment)),
                        ended="closed",
                        lost_rows=self.lost_rows,
                        failure=self.failure,
                    ).path
                except Exception as error:
                    why = f"the journal could not be turned into Parquet, its next reader does that: {error}"
                    if self._journal.deleted:
                        self.lost_rows, rows = self.lost_rows + rows, 0
                        why = f"somebody deleted {self._path}"
                    self.failure = self.failure or why
                self._release()
            self._closed = ClosedTrace(rows, self.lost_rows, self._path)
        return self._closed

    def leave(self) -> ClosedTrace:
        """Stop recording and leave the journal, which the next reader or recorder of this run turns into Parquet.

        For where nothing may be imported. Never raises; after `close` it gives that answer.
        """
        if self._closed is None:
            self._release()
            self._closed = ClosedTrace(self.rows, self.lost_rows, self._path)
        return self._closed

    def _lose(self, why: str) -> None:
        self.lost_rows += 1
        self.failure = self.failure or why

    def _release(self) -> None:
        self._writing = False
        if self._owned:
            self._owned = False
            # a failing close of a file that is gone has nothing left to tell
            with contextlib.suppress(OSError):
                self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "recording" if self._writing else "stopped"
        lost = f", {self.lost_rows} lost" if self.lost_rows else ""
        return f"<Recorder {self.run_id} segment {self.segment}: {counted(self.rows, 'row')}{lost}, {state}>"


_open_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _forget_in_child() -> None:
    # a data-loading worker must neither hold the dead parent's lock nor finish the living parent's journal
    for recorder in list(_open_recorders):
        recorder.failure = recorder.failure or "a forked child records nothing; its parent goes on"
        recorder._release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
