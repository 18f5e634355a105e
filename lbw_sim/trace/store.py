"""Reads recorded runs: one, or all below a folder, from this machine or from a URI.

Descriptions are read at once, rows when they are asked for. Journals of dead writers are finished on the way where
the folder can be written; in a read-only or remote folder everything is read where it lies. Nothing in a file is ever
executed or imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lbw_sim.errors import BrokenRunsError, TraceError
from lbw_sim.notebook import facts, warned
from lbw_sim.trace import parquet
from lbw_sim.trace.journal import DamagedHeaderError, JournalReader, TraceWarning
from lbw_sim.trace.labels import MAX_BYTES, Label, parse_labels
from lbw_sim.trace.layout import LABELS, missing_in, run_folder_name, run_id_of, segment_name, segments_in
from lbw_sim.trace.limitations import Limitation, limitations
from lbw_sim.trace.place import Place
from lbw_sim.trace.recovery import recover_run
from lbw_sim.trace.schema import SegmentMeta, columns
from lbw_sim.wording import counted, some

if TYPE_CHECKING:
    from lbw_sim.plots import Picture

Lineage = Literal["final", "all"]


@dataclass(frozen=True)
class Segment:
    """One uninterrupted recording: a run, or the part of it since a resumption."""

    meta: SegmentMeta
    rows: int
    """How many; known without loading them."""
    _parts: Callable[[], Iterator[pa.Table]]

    def parts(self) -> Iterator[pa.Table]:
        """The rows in the order of recording, some 100,000 at a time, for runs too long to hold. Raises TraceError."""
        return self._parts()

    @cached_property
    def table(self) -> pa.Table:
        """Every row in the order of recording. Raises TraceError."""
        return parquet.concat(self.parts(), self.meta.extra_channels)

    def to_numpy(self) -> dict[str, NDArray[Any]]:
        """Column -> array, as `Trace.to_numpy` does. Raises TraceError."""
        return parquet.to_numpy(self.table)

    def damaged_rows(self) -> list[int]:
        """Rows that are no longer what was written when the step was taken, by their checksums. Raises TraceError."""
        damaged: list[int] = []
        first = 0
        for part in self.parts():
            wanted = parquet.checksums(part, self.meta.extra_channels, self.meta.crc32_seed + first)
            damaged += (first + np.flatnonzero(wanted != parquet.numbers(part["crc32"]))).tolist()
            first += len(part)
        return damaged

    def __repr__(self) -> str:
        return f"<Segment {self.meta.segment} of {self.meta.run_id}: {counted(self.rows, 'row')}, {self.meta.ended}>"


@dataclass(frozen=True)
class Trace:
    """A recorded run.

    `lineage="final"` is the run as it ended: of every step the row of the last attempt at it. `"all"` is everything
    that happened, in order, rows that were rolled back or lost with a crash included.
    """

    run_id: str
    segments: tuple[Segment, ...]
    """At least one, in order."""
    labels: tuple[Label, ...] = ()
    missing_segments: tuple[int, ...] = ()
    """Those before the last one of which nothing lies in the run's folder: lost, or not copied with the others."""

    @property
    def meta(self) -> SegmentMeta:
        """What the last segment says about itself."""
        return self.segments[-1].meta

    @property
    def limitations(self) -> tuple[Limitation, ...]:
        """What this run cannot support because of how it was logged; none when a guard was attached to it."""
        return limitations(self.meta.provenance)

    @cached_property
    def _all(self) -> pa.Table:
        if len(self.segments) == 1:
            return self.segments[0].table
        extra = dict.fromkeys(name for segment in self.segments for name in segment.meta.extra_channels)
        return parquet.concat((segment.table for segment in self.segments), list(extra))

    @cached_property
    def _final(self) -> pa.Table:
        return parquet.select(self._all, parquet.final_rows(parquet.numbers(self._all["step"])))

    def table(self, lineage: Lineage = "final") -> pa.Table:
        """The rows as Arrow; enumerations as dictionary-encoded text. Raises TraceError."""
        if lineage not in ("final", "all"):
            raise TraceError(f"lineage {lineage!r} is not 'final' or 'all'")
        return self._final if lineage == "final" else self._all

    def to_pandas(self, lineage: Lineage = "final") -> Any:
        """The rows as a pandas DataFrame; enumerations and events as categories. Raises TraceError."""
        return self.table(lineage).to_pandas()

    def to_numpy(self, lineage: Lineage = "final") -> dict[str, NDArray[Any]]:
        """Column -> array: enumerations as int8 codes, `event` as text, `skipped` as bool. Raises TraceError."""
        return parquet.to_numpy(self.table(lineage))

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Telemetry channels that hold at least one number (infinity counts). Raises TraceError.

        `loss` is among them also in a run that was nan from its first step on: it was measured, as `nonfinite` says.
        """
        seen = {c.name for segment in self.segments for c in columns(segment.meta.extra_channels) if c.role == "seen"}
        broken = bool((parquet.numbers(self._all["nonfinite"]) == 1.0).any())
        return tuple(
            name
            for name in self._all.column_names
            if name in seen
            and ((name == "loss" and broken) or not bool(np.isnan(parquet.numbers(self._all[name])).all()))
        )

    def plot(self) -> Picture:
        """The run as a figure: loss, regimes, alarms, scale and control energy. Shows itself in a notebook.

        Needs matplotlib, loaded here. Raises TraceError, ScoreError.
        """
        # upwards, and the one place where that is so: on the trace is where a user looks for it
        from lbw_sim.plots import plot_trace

        return plot_trace(self)

    def _repr_html_(self) -> str:
        """For notebooks: what the run is, without its rows being loaded."""
        lost = sum(segment.meta.lost_rows or 0 for segment in self.segments)
        rows: list[tuple[str, object]] = [
            ("rows", f"{sum(segment.rows for segment in self.segments):,}"), ("segments", len(self.segments)),
            ("guard", f"{self.meta.guard_name}, {self.meta.mode}"), ("fingerprint", self.meta.fingerprint),
            ("ended", self.meta.ended), ("lost rows", lost),
            ("labels", "; ".join(f"{x.kind} {x.start_step}–{x.end_step}" for x in self.labels[:20]) or "none"),
        ]  # fmt: skip
        return facts(f"run {self.run_id}", rows) + warned(limitation.text for limitation in self.limitations)

    def __repr__(self) -> str:
        rows = sum(segment.rows for segment in self.segments)
        parts = [counted(rows, "row"), counted(len(self.segments), "segment")]
        parts += [f"guard {self.meta.fingerprint} {self.meta.mode}", self.meta.ended]
        lost = sum(segment.meta.lost_rows or 0 for segment in self.segments)
        parts += [f"{counted(lost, 'row')} lost"] * (lost > 0)
        parts += ["damaged"] * any(segment.meta.damage for segment in self.segments)
        parts += [counted(len(self.labels), "label")] * bool(self.labels)
        parts += [limitation.key for limitation in self.limitations]
        return f"<Trace {self.run_id}: {', '.join(parts)}>"


def read_trace(path: str | os.PathLike[str], run_id: str | None = None) -> Trace:
    """A recorded run, from its folder `…/run_id=X`, from one file of it, or from a folder of runs.

    A folder that holds several runs needs `run_id`. `path` may be a URI such as `s3://bucket/traces`. Raises TraceError
    that names the file and what is wrong with it; warns with TraceWarning about journals that are damaged
    and segments that are missing.
    """
    place = Place.of(path)
    kind = place.kind()
    if kind == "nothing":
        raise TraceError(f"{path}: {place.nothing()}")
    if kind == "file":
        try:
            segment = _read_file(place)
        except FileNotFoundError:
            raise TraceError(f"{path}: was there and is gone") from None
        if run_id is not None and run_id != segment.meta.run_id:
            raise TraceError(f"{path} is of run {segment.meta.run_id!r}, not {run_id!r}")
        return Trace(segment.meta.run_id, (segment,), _labels(place.parent))
    files, folders = place.listing()
    if run_id_of(place.name) or segments_in(files):
        trace = _read_run(place)
        if trace is None:
            raise TraceError(f"{path}: holds no readable segment of a run")
        if run_id is not None and run_id != trace.run_id:
            raise TraceError(f"{path} is run {trace.run_id!r}, not {run_id!r}")
        return trace
    runs = sorted(found for name in folders if (found := run_id_of(name)))
    known = "it holds no run; lbw import brings logs in"
    if runs:
        known = f"runs there: {', '.join(runs[:20])}{', …' if len(runs) > 20 else ''}"
    if run_id is None:
        if len(runs) != 1:
            raise TraceError(f"{path}: say which run by run_id; {known}" if runs else f"{path}: {known}")
        run_id = runs[0]
    if run_id not in runs:
        run_folder_name(run_id)
        raise TraceError(f"{path}: no run {run_id!r}; {known}")
    trace = _read_run(place.below(run_folder_name(run_id)))
    if trace is None:
        raise TraceError(f"{path}: run {run_id!r} holds no readable segment")
    return trace


def read_traces(path: str | os.PathLike[str]) -> list[Trace]:
    """Every run at or below a path, sorted by run id; rows are loaded when they are asked for.

    A run folder in which no row was ever recorded is passed over. Raises TraceError; where it is for some of several
    runs, a BrokenRunsError that names all of these. `open_traces` gives the others.
    """
    found, broken = open_traces(path)
    if broken:
        runs = len(found) + len(broken)
        raise broken[0] if runs == 1 else BrokenRunsError(broken, runs)
    return found


def open_traces(path: str | os.PathLike[str]) -> tuple[list[Trace], list[TraceError]]:
    """As `read_traces`, and beside the runs, what is wrong with each of those that cannot be opened.

    Raises TraceError when nothing is there, or nobody can tell.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cut = Path(folder, "run_id=first", "segment-000.parquet")
    ...     cut.parent.mkdir()
    ...     _ = cut.write_bytes(b"PAR1")
    ...     traces, broken = open_traces(folder)
    >>> len(traces), "not a Parquet file, or cut short" in str(broken[0])
    (0, True)
    """
    place = Place.of(path)
    opening: list[Callable[[], Trace | None]] = [partial(read_trace, path)]
    if place.kind() != "file":
        folders = sorted(_run_folders(place), key=lambda folder: folder.path)
        opening = [partial(_read_run, folder) for folder in folders]
    found: list[Trace] = []
    broken: list[TraceError] = []
    for open_run in opening:
        try:
            trace = open_run()
        except TraceError as error:
            broken.append(error)
        else:
            found += [trace] if trace else []
    return sorted(found, key=lambda trace: trace.run_id), broken


def run_paths(path: str | os.PathLike[str]) -> list[str]:
    """The path of every run at or below a path, sorted by run id; `read_trace` takes each by itself.

    For work that is split over processes or machines: nothing is opened. URIs stay URIs. Raises TraceError.
    """
    top = Place.of(path)
    if top.kind() == "file":
        return [os.fspath(path)]
    head, query, options = os.fspath(path).partition("?")

    def path_of(place: Place) -> str:
        return place.path if top.local else head.rstrip("/") + place.path[len(top.path) :] + query + options

    return [path_of(place) for place in sorted(_run_folders(top), key=lambda place: place.name)]


def _run_folders(top: Place) -> list[Place]:
    """Where runs lie, in a folder or anywhere below it. Raises TraceError."""
    if top.kind() == "nothing":
        raise TraceError(f"{top}: {top.nothing()}; name a folder of traces, one run's folder or a Parquet file")
    found, waiting, looked_into = [], [top], set()
    while waiting:
        here = waiting.pop()
        # a link may lead back to a folder that it lies in
        real = os.path.realpath(here.path) if here.local else here.path
        if run_id_of(here.name):
            found.append(here)
        elif real not in looked_into:
            looked_into.add(real)
            waiting += [here.below(name) for name in here.listing()[1]]
    return found


def _labels(folder: Place) -> tuple[Label, ...]:
    file = folder.below(LABELS)
    try:
        data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return ()
    return parse_labels(data, str(file))


def _read_run(place: Place) -> Trace | None:
    """The run in a folder; None when it holds no segment."""
    if place.local:
        # a read-only folder or a full disk: read it where it lies
        with contextlib.suppress(OSError):
            recover_run(Path(place.path))
    for _ in range(10):
        try:
            names = place.listing()[0]
            found = _read_segments(place, names)
        except FileNotFoundError:
            continue  # somebody is tidying up
        break
    else:
        raise TraceError(f"{place}: its files come and go; read it when it is at rest")
    if not found:
        return None
    ids = sorted({segment.meta.run_id for segment in found.values()})
    if len(ids) > 1:
        raise TraceError(f"{place}: holds segments of several runs: {', '.join(ids)}")
    for number, segment in found.items():
        if (own := segment.meta.segment) != number:
            raise TraceError(
                f"{place.below(segment_name(number))}: is segment {own} by its own account: renamed, or a second copy. "
                f"Give it its name, {segment_name(own)}, or move it away"
            )
    # the folder's name is what other tools take for the run id
    missing = tuple(missing_in(names))
    if missing:
        warnings.warn(f"{place}: {missing_words(missing)}", TraceWarning, stacklevel=2)
    return Trace(run_id_of(place.name) or ids[0], tuple(found.values()), _labels(place), missing)


def missing_words(segments: Sequence[int]) -> str:
    """That these segments are not there, for warnings and errors.

    >>> missing_words([0, 2])
    'segments 0, 2 are missing, lost or not copied with the others: the run is not whole'
    """
    several = len(segments) > 1
    numbers = some([str(segment) for segment in segments], 8)
    return (
        f"segment{'s' * several} {numbers} {'are' if several else 'is'} missing, lost or not copied with the others: "
        f"the run is not whole"
    )


def _read_segments(place: Place, names: Sequence[str]) -> dict[int, Segment]:
    """Number by file name -> segment. Raises TraceError, and FileNotFoundError."""
    found = {}
    for number, name in segments_in(names).items():
        try:
            try:
                found[number] = _read_file(place.below(name))
            except FileNotFoundError:
                # a journal whose writer finished it since we looked
                found[number] = _read_file(place.below(segment_name(number)))
        except DamagedHeaderError as error:
            warnings.warn(f"{error}. Passed over", TraceWarning, stacklevel=2)
    return found


def _read_file(place: Place) -> Segment:
    """One segment. Raises TraceError, and FileNotFoundError."""
    if ".journal" in place.name:
        return _read_journal(place)
    with place.open() as file:
        meta, rows = parquet.read_meta(file, str(place))
    return Segment(meta, rows, partial(_parts, place))


def _parts(place: Place) -> Iterator[pa.Table]:
    try:
        with place.open() as file:
            yield from parquet.read_rows(file, str(place))
    except FileNotFoundError:
        raise TraceError(f"{place}: was there and is gone") from None


def _read_journal(place: Place) -> Segment:
    """A journal as it stands. Its rows are taken at once: it may become Parquet at any moment."""
    try:
        with place.open() as file:
            reader = JournalReader(file, str(place))
            extra = reader.meta.extra_channels
            schema = parquet.arrow_schema(extra)
            found = (parquet.rows_to_table(rows, schema, extra) for rows in reader.chunks())
            tables = list(parquet.checked(found, str(place)))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise TraceError(f"{place}: cannot be read: {error}") from None
    if reader.damage is not None and reader.damage.bad_row is not None:
        warnings.warn(f"{place}: {reader.damage}", TraceWarning, stacklevel=2)
    return Segment(dataclasses.replace(reader.meta, damage=reader.damage), reader.rows, lambda: iter(tables))
