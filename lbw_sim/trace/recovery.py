"""Turns the journals of writers that died into Parquet. A journal whose writer lives is left alone.

Nothing is ever thrown away: a journal goes only when every row of it lies in a finished file on the disk, and one that
is damaged stays beside it as `….journal.damaged`.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import NamedTuple

from lbw_sim.errors import TraceError
from lbw_sim.trace.journal import DamagedHeaderError, JournalReader, TraceWarning, is_at, lock, locked_by_somebody
from lbw_sim.trace.layout import journal_name, journals_in, segment_name
from lbw_sim.trace.schema import Damage


class Recovered(NamedTuple):
    """One journal that was turned into a finished segment."""

    run_id: str
    segment: int
    rows: int
    path: Path
    damage: Damage | None


def recover(folder: str | Path) -> list[Recovered]:
    """Finish every dead journal of a run folder, or of all runs below a folder. Raises TraceError.

    A writer shows that it lives by the lock on its journal; where the file system has no locks, nothing is taken for
    dead. Warns with TraceWarning about each damaged journal.
    """
    if not os.path.isdir(folder):
        raise TraceError(f"{folder}: no such folder; name a folder of traces, one run's folder or a Parquet file")
    recovered = []
    for here, folders, names in os.walk(folder):
        folders.sort()
        if journals_in(names):
            try:
                recovered += recover_run(Path(here))
            except OSError as error:
                raise TraceError(f"{here}: a journal cannot be turned into Parquet: {error}") from None
    return recovered


def recover_run(run_folder: Path) -> list[Recovered]:
    """The same for one run folder. Raises OSError when the folder cannot be written, and TraceError."""
    recovered = []
    for segment in journals_in(os.listdir(run_folder)):
        found = _recover_journal(run_folder, segment)
        if found is not None:
            recovered.append(found)
    return recovered


def living_writers(run_folder: Path) -> int:
    """How many writers record this run now, as far as this system tells; more than one mix two trainings."""
    living = 0
    for segment in journals_in(os.listdir(run_folder)):
        try:
            fd = os.open(run_folder / journal_name(segment), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            living += locked_by_somebody(fd) is True
        finally:
            os.close(fd)
    return living


def _recover_journal(run_folder: Path, segment: int) -> Recovered | None:
    path = run_folder / journal_name(segment)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # the second look: whoever had the lock may have finished the journal meanwhile
        if not lock(fd) or not is_at(fd, path):
            return None
        try:
            return finish(path, run_folder / segment_name(segment), ended="recovered", lost_rows=None, failure=None)
        except DamagedHeaderError as error:
            if os.fstat(fd).st_size == 0:
                os.unlink(path)
            else:
                warnings.warn(f"{error}. Kept as {_put_aside(path).name}", TraceWarning, stacklevel=2)
            return None
    finally:
        os.close(fd)


def finish(path: Path, target: Path, *, ended: str, lost_rows: int | None, failure: str | None) -> Recovered:
    """Turn a journal into Parquet, then remove it. The caller holds its lock. Raises OSError and TraceError."""
    # here, not above: recording starts without waiting for these imports
    from lbw_sim.trace import parquet

    with open(path, "rb") as file:
        reader = JournalReader(file, str(path))
        for _ in reader.chunks():
            pass  # only now is known where it ends, and a Parquet file wants that before its rows
        rows, damage = reader.rows, reader.damage
        # a whole Parquet file is there already when its maker was killed before it could remove the journal
        if _rows_finished(target) < rows:
            file.seek(0)
            ending = {"ended": ended, "rows": rows, "lost_rows": lost_rows, "failure": failure, "damage": damage}
            parquet.write_segment(JournalReader(file, str(path)), target, ending)
    if damage is not None and damage.bad_row is not None:
        warnings.warn(f"{path}: {damage}. Kept as {_put_aside(path).name}", TraceWarning, stacklevel=2)
    else:
        os.unlink(path)
    parquet.sync_folder(target.parent)
    return Recovered(reader.meta.run_id, reader.meta.segment, rows, target, damage)


def _rows_finished(target: Path) -> int:
    """Rows of a finished segment; -1: there is none, or none that can be read."""
    from lbw_sim.trace import parquet

    try:
        with open(target, "rb") as file:
            return parquet.read_meta(file, str(target))[1]
    except (FileNotFoundError, TraceError):
        return -1


def _put_aside(path: Path) -> Path:
    aside = path.with_name(path.name + ".damaged")
    os.replace(path, aside)
    return aside
