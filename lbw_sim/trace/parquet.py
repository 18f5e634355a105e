"""Finished segments: rows as Parquet that pandas, polars and DuckDB read as it is, and come back bit for bit.

Enumerations and events are dictionary-encoded text, floats are split by byte and packed with zstd, whole numbers are
stored as differences. What the run says about itself stands in the file's metadata under the key `lbw`. A file from a
stranger is checked before it is believed, and its rows are loaded only when they are asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import IO, Any, Protocol
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lbw_sim.errors import TraceError
from lbw_sim.trace.journal import parse_description, rows_at_once
from lbw_sim.trace.schema import (
    MAX_META_BYTES,
    MAX_SEGMENT_ROWS,
    Column,
    SegmentMeta,
    check_description,
    columns,
    row_fields,
)
from lbw_sim.values import Posture, Reason, Regime

META_KEY = b"lbw"
ENUMS: dict[str, type[IntEnum]] = {"regime": Regime, "posture": Posture, "reason": Reason}
_TEXT = pa.dictionary(pa.int32(), pa.string())
_TYPES = {
    "i8": pa.int64(),
    "i4": pa.int32(),
    "f8": pa.float64(),
    "u1": pa.bool_(),
    "u4": pa.uint32(),
    "i1": _TEXT,
    "S24": _TEXT,
}
_READ_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, NotImplementedError)


class SegmentRows(Protocol):
    """Where the rows of a segment come from: a journal, or an import."""

    meta: SegmentMeta
    description: dict[str, Any]

    def chunks(self) -> Iterator[NDArray[np.void]]:
        """The rows in order, as structured arrays of `row_fields`."""


def arrow_schema(extra_channels: Sequence[str] = ()) -> pa.Schema:
    """The columns as Arrow fields; unit and meaning of each stand in its metadata."""
    return pa.schema(
        pa.field(c.name, _TYPES[c.dtype], nullable=False, metadata={"unit": c.unit, "doc": c.doc, "role": c.role})
        for c in columns(extra_channels)
    )


def rows_to_table(rows: NDArray[np.void], schema: pa.Schema, extra_channels: Sequence[str]) -> pa.Table:
    """Journal rows as Arrow."""
    arrays = [_to_arrow(rows[column.name], column) for column in columns(extra_channels)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _to_arrow(values: NDArray[Any], column: Column) -> pa.Array:
    if column.name in ENUMS:
        names = [member.name for member in ENUMS[column.name]]
        strange = np.unique(values[(values < 0) | (values >= len(names))]).tolist()
        indices = values.astype(np.int32)
        for i, code in enumerate(strange):
            # a plugged-in component may have its own codes: kept, as digits
            indices[values == code] = len(names) + i
        return pa.DictionaryArray.from_arrays(_arrow(indices), _texts(names + [str(code) for code in strange]))
    if column.dtype == "S24":
        if not (values != b"").any():
            return pa.DictionaryArray.from_arrays(_arrow(np.zeros(len(values), np.int32)), _texts([""]))
        texts, where = np.unique(values, return_inverse=True)
        decoded = [text.decode("ascii", "replace") for text in texts.tolist()]
        return pa.DictionaryArray.from_arrays(_arrow(where.astype(np.int32)), _texts(decoded))
    if column.dtype == "u1":
        return _arrow(values != 0)
    return _arrow(values)


# ---- between numpy and Arrow, not by pyarrow's own `array` and `to_numpy`: those import pandas, a third of the time of
# a short command, and memory that a training process has no use for


def _arrow(values: NDArray[Any]) -> pa.Array:
    """Numbers, or true and false."""
    kind = pa.from_numpy_dtype(values.dtype)
    held = np.packbits(values, bitorder="little") if kind == pa.bool_() else np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(held)])


def _texts(texts: Sequence[str]) -> pa.Array:
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of numbers, or of true and false, without nulls."""
    parts = [_numbers(chunk) for chunk in column.chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts or [_numbers(pa.nulls(0, column.type))])


def _numbers(values: pa.Array) -> NDArray[Any]:
    if pa.types.is_boolean(values.type):
        return _numbers(values.cast(pa.int8())).astype(np.bool_)
    kind = np.dtype(values.type.to_pandas_dtype())
    found = np.frombuffer(values.buffers()[1] or b"", kind, len(values), values.offset * kind.itemsize)
    found.flags.writeable = False
    return found


def codes(text: pa.ChunkedArray, column: str) -> NDArray[np.int8]:
    """An enumeration column as integer codes. Raises TraceError for a name that the enumeration does not have."""
    members = {member.name: int(member) for member in ENUMS[column]}
    parts = []
    for chunk in text.chunks:
        table = []
        for name in chunk.dictionary.to_pylist():
            code = members.get(name)
            if code is None:
                try:
                    code = int(name)
                except (TypeError, ValueError):
                    code = 128
                if not -128 <= code <= 127:
                    raise TraceError(f"column {column} holds {str(name)[:60]!r}; known: {', '.join(members)}")
            table.append(code)
        parts.append(np.array(table, np.int8)[_numbers(chunk.indices)])
    return np.concatenate(parts) if parts else np.empty(0, np.int8)


def write_segment(reader: SegmentRows, target: Path, ending: dict[str, Any]) -> None:
    """Write rows as `target`, at one stroke. `ending` joins their description. A journal itself is left alone.

    Raises OSError, and leaves no half-made file then.
    """
    extra = reader.meta.extra_channels
    schema = arrow_schema(extra)
    tables = (rows_to_table(rows, schema, extra) for rows in reader.chunks())
    write_tables(tables, reader.description | ending, extra, target)


def write_tables(tables: Iterable[pa.Table], description: dict[str, Any], extra: Sequence[str], target: Path) -> None:
    """Write tables of a trace's columns, a row group each, at one stroke. Raises OSError, and leaves nothing then."""
    schema = arrow_schema(extra).with_metadata({META_KEY: json.dumps(description)})
    names: dict[str, list[str]] = {}
    for column in columns(extra):
        names.setdefault(column.dtype, []).append(column.name)
    encoding = dict.fromkeys(names["f8"], "BYTE_STREAM_SPLIT") | dict.fromkeys(
        names["i8"] + names["i4"], "DELTA_BINARY_PACKED"
    )
    # one name, not one per process: the next attempt overwrites a killed one's, and the journal's lock keeps them apart
    fresh = target.with_name(f"_{target.name}.tmp")
    try:
        with open(fresh, "wb") as file:
            with pq.ParquetWriter(
                file,
                schema,
                compression="zstd",
                use_dictionary=names["i1"] + names["S24"],
                column_encoding=encoding,
                write_page_checksum=True,
            ) as writer:
                for table in tables:
                    writer.write_table(table.cast(schema), row_group_size=max(1, len(table)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, target)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make names that were added or removed survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read_meta(file: IO[bytes], where: str) -> tuple[SegmentMeta, int]:
    """What a finished segment says about itself, and its number of rows, from the footer. Raises TraceError."""
    return _check(_open(file, where), where)


def read_rows(file: IO[bytes], where: str) -> Iterator[pa.Table]:
    """The rows of a finished segment in order, `rows_at_once` of them, checked. Raises TraceError."""
    found = _open(file, where)
    meta, _ = _check(found, where)
    return checked(_read(found, meta.extra_channels, where), where)


def _read(found: Any, extra_channels: Sequence[str], where: str) -> Iterator[pa.Table]:
    schema = arrow_schema(extra_channels)
    at_once = rows_at_once(np.dtype(row_fields(extra_channels)).itemsize)
    try:
        for batch in found.iter_batches(at_once, columns=schema.names):
            table = pa.Table.from_batches([batch])
            holes = [name for name in schema.names if table[name].null_count]
            if holes:
                raise TraceError(f"{where}: nulls in column {', '.join(holes)}; a trace writes nan for 'not measured'")
            yield table.select(schema.names).cast(schema)
    except _READ_ERRORS as error:
        raise TraceError(f"{where}: rows cannot be read: {_one_line(error)}") from None


def checked(tables: Iterable[pa.Table], where: str) -> Iterator[pa.Table]:
    """The same tables, which follow on each other.

    Refuses steps that do not rise within an attempt, and enumeration names that do not exist. Raises TraceError.
    """
    step = attempt = np.empty(0, np.int64)
    first = 0
    for table in tables:
        # behind the last row of the table before
        first -= len(step)
        step = np.concatenate([step, numbers(table["step"])])
        attempt = np.concatenate([attempt, numbers(table["attempt"])])
        fewer = attempt[1:] < attempt[:-1]
        back = (attempt[1:] == attempt[:-1]) & (step[1:] <= step[:-1])
        if len(bad := np.flatnonzero(fewer | back)):
            at = int(bad[0])
            what, values = ("attempt", attempt) if fewer[at] else ("step", step)
            raise TraceError(
                f"{where} row {first + at + 1}: {what} goes {values[at]} -> {values[at + 1]}"
                + ("; attempts never go down" if what == "attempt" else " within one attempt; steps always rise")
            )
        for name in ENUMS:
            try:
                codes(table[name], name)
            except TraceError as error:
                raise TraceError(f"{where}: {error}") from None
        first += len(step)
        step, attempt = step[-1:], attempt[-1:]
        yield table


def _open(file: IO[bytes], where: str) -> Any:
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)
    except _READ_ERRORS as error:
        log = "" if where.endswith(".parquet") else ". If it is the log of a run, lbw import brings it in"
        raise TraceError(f"{where}: not a Parquet file, or cut short: {_one_line(error)}{log}") from None


def _check(found: Any, where: str) -> tuple[SegmentMeta, int]:
    text = (found.metadata.metadata or {}).get(META_KEY)
    if text is None:
        raise TraceError(f"{where}: a Parquet file without the metadata key 'lbw' is not a trace")
    if len(text) > 2 * MAX_META_BYTES:
        raise TraceError(f"{where}: description of {len(text)} bytes; at most {2 * MAX_META_BYTES} are allowed")
    rows = found.metadata.num_rows
    if not 0 <= rows <= MAX_SEGMENT_ROWS:
        raise TraceError(f"{where}: {rows} rows; at most {MAX_SEGMENT_ROWS} are allowed")
    meta = check_description(parse_description(text, where), where)
    try:
        schema = found.schema_arrow
    except _READ_ERRORS as error:
        raise TraceError(f"{where}: columns cannot be read: {_one_line(error)}") from None
    problems = []
    for field in arrow_schema(meta.extra_channels):
        there = schema.get_all_field_indices(field.name)
        if len(there) != 1:
            problems.append(f"column {field.name} is {'missing' if not there else 'there twice'}")
        elif not _fits(schema.field(there[0]).type, field.type):
            problems.append(f"column {field.name} is {schema.field(there[0]).type}, not {field.type}")
    if problems:
        raise TraceError(f"{where}: {'; '.join(problems)}")
    return meta, rows


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Other tools may write the file anew and turn dictionaries into plain text."""
    if wanted != _TEXT:
        return bool(found == wanted)
    plain = found.value_type if pa.types.is_dictionary(found) else found
    return bool(pa.types.is_string(plain) or pa.types.is_large_string(plain))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def concat(tables: Iterable[pa.Table], extra_channels: Sequence[str]) -> pa.Table:
    """Tables under one another; an extra channel that one of them lacks is nan there."""
    schema = arrow_schema(extra_channels)
    full = []
    for table in tables:
        for name in schema.names:
            if name not in table.column_names:
                table = table.append_column(schema.field(name), _arrow(np.full(len(table), np.nan)))
        full.append(table.select(schema.names).cast(schema))
    return pa.concat_tables(full).unify_dictionaries() if full else schema.empty_table()


def final_rows(step: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows no later one overtook: those whose step is below every step that comes after.

    >>> final_rows(np.array([0, 1, 2, 3, 2, 3, 4])).tolist()
    [True, True, False, False, True, True, True]
    """
    keep = np.ones(len(step), bool)
    if len(step):
        keep[:-1] = step[:-1] < np.minimum.accumulate(step[::-1])[::-1][1:]
    return keep


def select(table: pa.Table, keep: NDArray[np.bool_]) -> pa.Table:
    """The rows marked true."""
    return table if keep.all() else table.filter(_arrow(keep))


def checksums(table: pa.Table, extra_channels: Sequence[str], seed: int) -> NDArray[np.uint32]:
    """What the `crc32` column of these rows has to be. `seed`: of the checksum of the first of them."""
    arrays = to_numpy(table)
    rows = np.zeros(len(table), np.dtype(row_fields(extra_channels)))
    for name in rows.dtype.names or ():
        rows[name] = arrays[name]
    data, size = memoryview(rows.tobytes()), rows.dtype.itemsize
    body = size - rows.dtype["crc32"].itemsize
    starts = range(0, len(data), size)
    found = (crc32(data[at : at + body], (seed + row) & 0xFFFFFFFF) for row, at in enumerate(starts))
    return np.fromiter(found, np.uint32, len(table))


def to_numpy(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Columns as arrays: enumerations as int8 codes, events as text, `skipped` as bool."""
    arrays: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        if name in ENUMS:
            arrays[name] = codes(table[name], name)
        elif name == "event":
            arrays[name] = np.array(pc.cast(table[name], pa.string()).to_pylist(), dtype=np.str_)
        else:
            arrays[name] = numbers(table[name])
    return arrays
