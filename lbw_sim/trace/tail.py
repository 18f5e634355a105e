"""Follows a run while it is written: at each look the rows that were appended since the last one.

Strictly read-only: it takes no lock, finishes no journal and repairs nothing, so a writer never notices it. It forgets
the rows that it has handed out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from numpy.typing import NDArray

from lbw_sim.errors import TraceError
from lbw_sim.trace import parquet
from lbw_sim.trace.journal import DamagedHeaderError, JournalReader, is_at, locked_by_somebody
from lbw_sim.trace.layout import journal_name, segment_name, segments_in
from lbw_sim.trace.schema import Damage, SegmentMeta


class Appended(NamedTuple):
    """Rows in the order of recording, all of one segment."""

    meta: SegmentMeta
    columns: dict[str, NDArray[Any]]
    """As `Trace.to_numpy` gives them."""


class RunTail:
    """Reads one run's folder from its first row on, segment after segment.

    >>> import tempfile
    >>> from lbw_sim.guard import GuardSpec
    >>> from lbw_sim.trace import Recorder
    >>> from lbw_sim.values import Decision, Telemetry
    >>> folder = tempfile.TemporaryDirectory()
    >>> tail = RunTail(Path(folder.name) / "run_id=demo")
    >>> list(tail.poll()), tail.ended
    ([], None)
    >>> recorder = Recorder.open(folder.name, "demo", spec=GuardSpec.load("never"), mode="shadow")
    >>> for step in range(3):
    ...     ok = recorder.append(Telemetry(step), Decision(1, 0, 1.0, 0.0, 0), elapsed_s=0.0, effective_lr=0.1)
    ...     print([part.columns["step"].tolist() for part in tail.poll()], tail.ended)
    [[0]] open
    [[1]] open
    [[2]] open
    >>> _ = recorder.close()
    >>> list(tail.poll()), tail.ended
    ([], 'closed')
    >>> folder.cleanup()
    """

    def __init__(self, run_folder: str | Path) -> None:
        """The folder may be made later."""
        self.folder = Path(run_folder)
        self.meta: SegmentMeta | None = None
        """Of the newest segment; None: nothing was recorded yet."""
        self.ended: str | None = None
        """How the newest segment stands: `open`, `closed`, or `recovered` from a writer that died."""
        self.damage: Damage | None = None
        """Why nothing more can be read of the journal that is open; None: it can."""
        self._segment = -1
        self._file: IO[bytes] | None = None
        self._reader: JournalReader | None = None

    def poll(self) -> Iterator[Appended]:
        """The rows since the last call; use the iterator up. Raises TraceError for a file that is not a trace."""
        lost_sight = 0
        while lost_sight < 10:
            try:
                if self._reader is None and not self._open_next():
                    return
                yield from self._read_on()
            except FileNotFoundError:
                lost_sight += 1  # a journal became Parquet between two looks; or a link that leads nowhere
                continue
            except OSError as error:
                raise TraceError(f"{self.folder}: cannot be read: {error}") from None
            if self._reader is not None:
                return

    def writer_lives(self) -> bool | None:
        """Whether the journal's writer holds its lock; None: there is no journal, or this system does not tell."""
        return None if self._file is None else locked_by_somebody(self._file.fileno())

    def close(self) -> None:
        """Let go of the journal."""
        if self._file is not None:
            self._file.close()
        self._file = self._reader = None

    def _later(self) -> list[tuple[int, str]]:
        """Segments after the one that was read last."""
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [(number, name) for number, name in segments_in(names).items() if number > self._segment]

    def _open_next(self) -> bool:
        """Go to the next segment, if there is one that can be read. Raises FileNotFoundError."""
        for number, name in self._later():
            path = self.folder / name
            # unbuffered: a buffer would keep the bytes of a row that was cut off again
            file = open(path, "rb", buffering=0)  # noqa: SIM115
            if name == segment_name(number):
                self._file, self._segment = file, number
                return True
            try:
                self._reader = JournalReader(file, str(path))
            except DamagedHeaderError:
                # its header is being written; where later segments exist it is damaged for good
                file.close()
                continue
            self._file, self._segment = file, number
            self.meta, self.ended = self._reader.meta, "open"
            return True
        return False

    def _read_on(self) -> Iterator[Appended]:
        assert self._file is not None
        if self._reader is None:
            meta, _ = parquet.read_meta(self._file, str(self.folder / segment_name(self._segment)))
            self._file.seek(0)
            parts = parquet.read_rows(self._file, str(self.folder / segment_name(self._segment)))
            self.meta, self.ended, self.damage = meta, meta.ended, None
            for part in parts:
                yield Appended(meta, parquet.to_numpy(part))
            self.close()
            return
        # before reading: what is away now is read to its end below
        away = not is_at(self._file.fileno(), self.folder / journal_name(self._segment)) or bool(self._later())
        meta = self._reader.meta
        schema = parquet.arrow_schema(meta.extra_channels)
        for rows in self._reader.chunks():
            yield Appended(meta, parquet.to_numpy(parquet.rows_to_table(rows, schema, meta.extra_channels)))
        damage = self._reader.damage
        self.damage = damage if damage is not None and damage.bad_row is not None else None
        if away:
            self.close()
            self.ended = "recovered"
            try:
                with open(self.folder / segment_name(self._segment), "rb") as file:
                    self.meta = parquet.read_meta(file, file.name)[0]
                    self.ended = self.meta.ended
            except (FileNotFoundError, TraceError):
                pass  # a journal that could not be finished, and a later segment beside it
