"""Imports Weights & Biases: offline `.wandb` files, Parquet exports, and runs on a server by `scan_history`.

The `.wandb` file is read here: records in the framing of LevelDB's log, each a protobuf message, of which history rows
matter. Without the wandb library files are still read; only `wandb://entity/project/run` needs it. `history()` is never
called: it samples.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any
from zlib import crc32

import pyarrow.parquet as pq

from lbw_sim.errors import TraceError
from lbw_sim.trace.importers.csv import run_of
from lbw_sim.trace.importers.logged import (
    MOST_POINTS,
    Importer,
    LoggedRun,
    facts_of_tags,
    find_columns,
    names_in,
    rows_of,
    run_id_from,
)
from lbw_sim.trace.importers.wire import WireError, fields, signed
from lbw_sim.trace.provenance import Provenance

_MAGIC = b":W&B"
_HEADER = struct.Struct("<4sHB")
_RECORD = struct.Struct("<IHB")
_BLOCK = 32 << 10
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS = {kind: crc32(bytes([kind])) for kind in (_FULL, _FIRST, _MIDDLE, _LAST)}
_LONGEST_RECORD = 16 << 20
_LONGEST_VALUE = 64
"""Longer values are no numbers."""
_HISTORY, _RUN = 2, 17

History = Iterator[dict[str, Any]]


def records(file: IO[bytes], where: str, lost: list[str]) -> Iterator[bytes]:
    """The records of a `.wandb` file. What is not read is added to `lost`, in words. Raises TraceError."""
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or _HEADER.unpack(head)[:2] != (_MAGIC, 0xBEE1):
        raise TraceError(f"{where}: does not begin as a .wandb file does")
    at, size, number, failed = _HEADER.size, 0, 0, 0
    parts: list[bytes] = []
    while True:
        room = _BLOCK - at % _BLOCK
        if room < _RECORD.size:
            file.seek(room, 1)
            at += room
            continue
        head = file.read(_RECORD.size)
        if not head.strip(b"\0"):
            break
        if len(head) < _RECORD.size:
            lost.append(f"{where}: ends within a record after {number} records")
            break
        checksum, length, kind = _RECORD.unpack(head)
        data = file.read(length) if length <= room - _RECORD.size else b""
        if len(data) < length or kind not in _SEEDS:
            lost.append(f"{where}: ends within record {number}, or is damaged there; what follows is not read")
            break
        at += _RECORD.size + length
        if crc32(data, _SEEDS[kind]) != checksum:
            failed += 1
            parts, size = [], 0
            continue
        if kind in (_FULL, _FIRST):
            parts, size = [data], length
        elif parts:
            size += length
            # a longer one is a table or a picture, not a row of numbers
            parts = [*parts, data] if size <= _LONGEST_RECORD else []
        if kind in (_FULL, _LAST) and parts:
            number += 1
            yield b"".join(parts)
            parts, size = [], 0
    if failed:
        lost.append(f"{where}: {failed} records fail their checksum")


def _history(path: Path, lost: list[str] | None = None, about: dict[str, Any] | None = None) -> History:
    """The history rows of a `.wandb` file: name to number, in the order of logging. Raises TraceError."""
    strange, lost = 0, [] if lost is None else lost
    with open(path, "rb") as file:
        for data in records(file, path.name, lost):
            try:
                for number, kind, value in fields(data):
                    if number == _HISTORY and kind == 2:
                        yield _row(value)
                    elif number == _RUN and kind == 2 and about is not None:
                        about |= _about(value)
            except (WireError, struct.error):
                strange += 1
    if strange:
        lost.append(f"{path.name}: {strange} records are no messages of wandb")


def _row(data: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for number, kind, value in fields(data):
        if number == 2 and kind == 2:
            row.setdefault("_step", next((signed(v) for n, k, v in fields(value) if n == 1 and k == 0), 0))
        elif number == 1 and kind == 2:
            name: list[str] = []
            found: Any = None
            for part, part_kind, content in fields(value):
                if part in (1, 2) and part_kind == 2:
                    name.append(content[:1000].decode("utf-8", "replace"))
                elif part == 16 and part_kind == 2:
                    found = _scalar(content)
                elif part == 5 and part_kind == 0:
                    found = (content >> 1) ^ -(content & 1)
                elif part == 6 and part_kind == 1:
                    found = struct.unpack("<d", content)[0]
            if found is not None:
                row[".".join(name)] = found
    return row


def _scalar(text: bytes) -> float | None:
    """The number in a JSON value; None: it is something else. wandb writes nan bare and as text."""
    if len(text) > _LONGEST_VALUE:
        return None
    try:
        found = float(text.strip(b'"'))
    except ValueError:
        return None
    return found if b"_" not in text else None


def _about(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, kind, value in fields(data):
        if number == 8 and kind == 2:
            found["name"] = value[:128].decode("utf-8", "replace")
        elif number == 14 and kind == 0 and value:
            found["starting_step"] = signed(value)
        elif number == 18 and kind == 0 and value:
            found["resumed"] = True
    return found


def _offline(path: Path, columns: Mapping[str, str]) -> LoggedRun:
    lost: list[str] = []
    about: dict[str, Any] = {}
    names = names_in(_history(path, lost, about), path)
    if about.get("resumed") or about.get("starting_step"):
        lost.append(f"the run was resumed at step {about.get('starting_step', 0)}: earlier rows lie in another file")
    mapping = find_columns([name for name in names if name != "_runtime"], columns, path)
    facts = facts_of_tags(names)
    run = LoggedRun(run_id_from(path), path.name, mapping, lambda: iter(()), facts=facts, lost=lost, files=[path])
    run.rows = partial(rows_of, partial(_history, path), mapping, path.name)
    return run


def _export(path: Path, columns: Mapping[str, str]) -> LoggedRun:
    names = list(pq.ParquetFile(path).schema_arrow.names)
    return run_of(path, "parquet", find_columns(names, columns, path), run_id_from(path), facts=facts_of_tags(names))


def _server(address: Path, columns: Mapping[str, str]) -> LoggedRun:
    """A run on a server, through the wandb library with the user's own credentials. Raises TraceError."""
    where = f"wandb://{address}"
    if len(address.parts) != 3:
        raise TraceError(f"{where}: expected wandb://entity/project/run")
    try:
        import wandb
    except ImportError:
        raise TraceError(f"{where}: reading from a server needs the wandb library: pip install wandb") from None
    try:
        run = wandb.Api().run("/".join(address.parts))
        # all rows, once: scan_history pages through everything, history() would sample
        history: list[dict[str, Any]] = []
        points = 0
        for row in run.scan_history():
            history.append({name: value for name, value in row.items() if isinstance(value, (int, float, str))})
            points += len(row)
            if points > MOST_POINTS:
                raise TraceError(f"{where}: more than {MOST_POINTS} numbers; export the run and import the file")
    except TraceError:
        raise
    except Exception as error:
        # the library's errors have no common base, and all of them mean the same here
        raise TraceError(f"{where} cannot be read: {' '.join(str(error).split())[:300]}") from None
    names = names_in(history, where)
    mapping = find_columns(names, columns, where)
    facts: Provenance = {"sampled": 0, **facts_of_tags(names)}
    found = LoggedRun(run_id_from(run.name or address.name), where, mapping, lambda: iter(()), facts=facts)
    found.rows = partial(rows_of, lambda: iter(history), mapping, where)
    return found


def _runs(files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    for path in files:
        if not path.exists():  # an address
            yield _server(path, columns)
            continue
        with open(path, "rb") as file:
            magic = file.read(4)
        yield _offline(path, columns) if magic == _MAGIC else _export(path, columns)


def _recognises(path: Path, head: bytes) -> bool:
    if head[:4] == _MAGIC:
        return True
    if head[:4] != b"PAR1":
        return False
    try:
        names = set(pq.ParquetFile(path).schema_arrow.names)
    except Exception:
        # a broken Parquet file is reported by whoever reads Parquet
        return False
    return {"_step", "_timestamp"} <= names


WANDB = Importer(
    name="wandb",
    reads="Weights & Biases: offline .wandb files, Parquet exports, wandb://entity/project/run",
    recognises=_recognises,
    runs=_runs,
    rank=10,
    scheme="wandb",
)
