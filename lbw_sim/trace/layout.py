"""Where a run's files lie: `TRACES/run_id=<id>/segment-000.parquet`, and what is beside it.

Everything but finished segments has a name that starts with `_`, so that pandas, pyarrow, DuckDB and polars read a
folder of traces as it is. It refuses run ids that could leave the folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from lbw_sim.errors import TraceError

LABELS = "_labels.json"
MOST_MISSING = 1000
"""Of a run's segments that are missing, so many are counted."""
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_RUN_FOLDER = "run_id="
_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SEGMENT = re.compile(r"segment-(\d{3,9})\.parquet")
_JOURNAL = re.compile(r"_segment-(\d{3,9})\.journal")
_ANY = re.compile(r"_?segment-(\d{3,9})\..*")


def local_path(path: str | PathLike[str], what: str) -> Path:
    """A path where `what` is done; `~` is the user's home, as in a shell.

    Raises TraceError for a URI, also where a `Path` has made it a local one, and for what no file system takes.

    >>> local_path("s3://bucket/traces", "runs are recorded")
    Traceback (most recent call last):
    ...
    lbw_sim.errors.TraceError: s3://bucket/traces: runs are recorded on this machine only, and URIs are read
    """
    try:
        fits = isinstance(path, (str, PathLike)) and b"\0" not in os.fsencode(path)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        shown = repr(str(path) if isinstance(path, PathLike) else path)
        raise TraceError(f"{shown:.200} is no path: {what} in a folder, named by text without null characters")
    if _URI.match(str(path)):
        raise TraceError(f"{path}: {what} on this machine only, and URIs are read")
    return Path(os.path.expanduser(path))


def run_folder_name(run_id: str) -> str:
    """The folder of a run. Raises TraceError for an id that is not 1 to 128 of letters, digits, `.`, `_` and `-`.

    >>> run_folder_name("tiny-0")
    'run_id=tiny-0'
    """
    if not isinstance(run_id, str) or not _RUN_ID.fullmatch(run_id):
        raise TraceError(
            f"run id {run_id!r} is not allowed: use 1 to 128 letters, digits, '.', '_' and '-', as in 'tiny-adamw.0'"
        )
    return _RUN_FOLDER + run_id


def run_id_of(folder_name: str) -> str | None:
    """The run id that a folder's name gives; None: it is not the folder of a run."""
    run_id = folder_name.removeprefix(_RUN_FOLDER)
    return run_id if folder_name.startswith(_RUN_FOLDER) and _RUN_ID.fullmatch(run_id) else None


def segment_name(segment: int) -> str:
    """The finished segment."""
    return f"segment-{segment:03d}.parquet"


def journal_name(segment: int) -> str:
    """The segment while it is being written, and until it has become Parquet."""
    return f"_segment-{segment:03d}.journal"


def segments_in(names: Iterable[str]) -> dict[int, str]:
    """Segment number -> file name, in order. Where both forms lie there, the finished one counts.

    >>> segments_in(["segment-000.parquet", "_segment-000.journal", "_segment-001.journal", "_labels.json"])
    {0: 'segment-000.parquet', 1: '_segment-001.journal'}
    """
    found: dict[int, str] = {}
    for pattern in (_JOURNAL, _SEGMENT):
        for name in names:
            if match := pattern.fullmatch(name):
                found[int(match[1])] = name
    return dict(sorted(found.items()))


def journals_in(names: Iterable[str]) -> list[int]:
    """Numbers of the segments that have a journal."""
    return sorted(int(match[1]) for match in map(_JOURNAL.fullmatch, names) if match)


def missing_in(names: Iterable[str]) -> list[int]:
    """Numbers below the highest in use of which there is no file, not even a damaged one.

    >>> missing_in(["segment-000.parquet", "_segment-001.journal.damaged", "segment-003.parquet", "_labels.json"])
    [2]
    """
    used = {int(match[1]) for match in map(_ANY.fullmatch, names) if match}
    # not a range up to the highest: the name of a stranger's file may say a billion
    return sorted(set(range(min(len(used) + MOST_MISSING, max(used, default=0)))) - used)


def next_segment(names: Iterable[str]) -> int:
    """The first number above every one in use, damaged and half-made files included."""
    return max((int(match[1]) + 1 for match in map(_ANY.fullmatch, names) if match), default=0)
