"""Imports TensorBoard event folders: TFRecord framing, checksums and scalar summaries, read here without TensorBoard.

All event files of one folder are one run, each file a segment of it. Both ways of writing a scalar are read, the
plain one and the tensor of TF2. Images, graphs and histograms are passed over. A cut-off tail is told, and what lies
before it is kept; so is everything beside a record that fails its checksum.
"""

from __future__ import annotations

import math
import re
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from lbw_sim.trace.importers.logged import (
    MOST_NAMES,
    MOST_POINTS,
    SYNONYMS,
    Importer,
    LoggedRun,
    Series,
    facts_of_tags,
    find_series,
    pieces,
    plain,
    rows_by_step,
    run_id_from,
)
from lbw_sim.trace.importers.wire import WireError, fields, masked_crc32c, signed, varint
from lbw_sim.trace.provenance import Provenance

_HEAD = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_DOUBLE = struct.Struct("<d")
_FLOAT = struct.Struct("<f")
_LARGEST_SCALAR_RECORD = 1 << 20
"""A longer record (a graph, an image) is passed over unread."""
_RECORDS_AT_ONCE = 20_000
_BYTES_AT_ONCE = 8 << 20
_LONGEST_TAG = 1000
# how SummaryWriter names a folder by itself; what follows the date is the name of the machine
_DATE_AND_HOST = re.compile(r"([A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d)_")
_CANDIDATES = frozenset(name for names in SYNONYMS.values() for name in names)
# TensorFlow's numbers for float32, float64, int32, int64, float16
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
_TENSOR_LISTS = {5: (5, "<f4", 4), 6: (1, "<f8", 8)}


class _Reader:
    """Scalars of the tags that may be wanted, by tag."""

    def __init__(self, wanted: Mapping[str, str]) -> None:
        self.series: dict[str, Series] = {}
        self.names: dict[str, None] = {}
        self.points = 0
        self.scalars = 0
        self.lost: list[str] = []
        self._wanted = frozenset(wanted.values())
        self._keep: dict[bytes, Series | None] = {}
        self._full = False

    def read(self, path: Path, segment: int) -> None:
        """One event file. Raises OSError."""
        # the file's own name holds the name of the machine
        where = f"event file {segment + 1}"
        with open(path, "rb") as file:
            for data in _records(file, where, self.lost):
                try:
                    if not self._plain_scalar(data, segment):
                        self._event(data, segment)
                except (WireError, IndexError, struct.error, ValueError, OverflowError):
                    self._lose(f"{where}: records that are no events")
                if self._full:
                    self._lose(f"more than {MOST_POINTS} numbers; those that follow are not read")
                    return

    def _lose(self, text: str) -> None:
        if text not in self.lost:
            self.lost.append(text)

    def _plain_scalar(self, data: bytes, segment: int) -> bool:
        """The layout in which nearly all scalars are written, at a fifth of the cost; false: it is another."""
        end = len(data)
        if end < 22 or data[0] != 0x09:
            return False
        at, step = 9, 0
        if data[at] == 0x10:
            at += 1
            shift = 0
            while True:
                byte = data[at]
                at += 1
                step |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
                if shift > 56:
                    return False
        # summary, value and tag, each with a length of one byte that reaches to the end
        if data[at] != 0x2A or data[at + 1] != end - at - 2 or data[at + 2] != 0x0A or data[at + 3] != end - at - 4:
            return False
        size = data[at + 5]
        place = at + 6 + size
        if data[at + 4] != 0x0A or size >= 0x80 or place + 5 != end or data[place] != 0x15:
            return False
        series = self._series(data[at + 6 : place])
        if series is not None:
            series.add(segment, step, _FLOAT.unpack_from(data, place + 1)[0], _DOUBLE.unpack_from(data, 1)[0])
            self.points += 1
            self._full = self.points >= MOST_POINTS
        self.scalars += 1
        return True

    def _event(self, data: bytes, segment: int) -> None:
        time_s, step, summaries = 0.0, 0, []
        for number, kind, value in fields(data):
            if number == 1 and kind == 1:
                time_s = _DOUBLE.unpack(value)[0]
            elif number == 2 and kind == 0:
                step = signed(value)
            elif number == 5 and kind == 2:
                summaries.append(value)
        for summary in summaries:
            for number, kind, value in fields(summary):
                if number == 1 and kind == 2:
                    self._value(value, segment, step, time_s)

    def _value(self, data: bytes, segment: int, step: int, time_s: float) -> None:
        tag, found = b"", None
        for number, kind, value in fields(data):
            if number == 1 and kind == 2:
                tag = value
            elif number == 2 and kind == 5:
                found = _FLOAT.unpack(value)[0]
            elif number == 8 and kind == 2:
                found = _tensor_scalar(value)
        if found is None:
            return
        self.scalars += 1
        series = self._series(tag)
        if series is None:
            return
        if not 0 <= step < 1 << 53:
            self._lose("scalars whose step is not a whole number from 0 on")
            return
        series.add(segment, step, found, time_s)
        self.points += 1
        self._full = self.points >= MOST_POINTS

    def _series(self, tag: bytes) -> Series | None:
        """Where numbers of a tag go; None: nobody wants them."""
        try:
            return self._keep[tag]
        except KeyError:
            pass
        if len(tag) > _LONGEST_TAG or len(self._keep) >= MOST_NAMES:
            self._lose(f"tags beyond the first {MOST_NAMES}, or with very long names")
            return None
        name = tag.decode("utf-8", "replace")
        self.names[name] = None
        wanted = name in self._wanted or plain(name) in _CANDIDATES
        self._keep[tag] = series = self.series.setdefault(name, Series()) if wanted else None
        return series


def _tensor_scalar(data: bytes) -> float | None:
    """The number in a tensor of exactly one; None: it is a larger one, or text."""
    dtype, content, found = 0, b"", None
    for number, kind, value in fields(data):
        if number == 1 and kind == 0:
            dtype = value
        elif number == 4 and kind == 2:
            content = value
        elif number in _TENSOR_LISTS:
            plain_kind, code, size = _TENSOR_LISTS[number]
            if kind in (2, plain_kind) and len(value) == size:
                found = float(np.frombuffer(value, code)[0])
        elif number in (7, 10) and kind in (0, 2):
            found = float(signed(value if kind == 0 else varint(value, 0)[0]))
    if found is None and dtype in _DTYPES and len(content) == np.dtype(_DTYPES[dtype]).itemsize:
        found = float(np.frombuffer(content, _DTYPES[dtype])[0])
    return found


class _Framed(NamedTuple):
    """One record as it lies in a file, unchecked."""

    length: bytes
    length_crc: int
    data: bytes
    data_crc: int


def _records(file: IO[bytes], where: str, lost: list[str]) -> Iterator[bytes]:
    """Records whose checksums are right. What is not read is added to `lost`, in words."""
    number = broken = 0
    why = ""
    for batch, ending in _batches(file):
        good = masked_crc32c([one.length for one in batch]) == np.array([one.length_crc for one in batch], np.uint32)
        # after a wrong length nothing can be placed
        sound = len(batch) if good.all() else int(np.flatnonzero(~good)[0])
        data = [one.data for one in batch[:sound]]
        right = masked_crc32c(data) == np.array([one.data_crc for one in batch[:sound]], np.uint32)
        yield from (one for one, ok in zip(data, right.tolist(), strict=True) if ok)
        broken += int((~right).sum())
        number += sound
        why = ending if sound == len(batch) else "a length fails its checksum"
        if why:
            break
    if broken:
        lost.append(f"{where}: {broken} records fail their checksum")
    if why:
        lost.append(f"{where}: {why} after {number} records; what follows is not read")


def _batches(file: IO[bytes]) -> Iterator[tuple[list[_Framed], str]]:
    """Records in lots, each with why the file ends there before its end; empty: it goes on, or is whole."""
    lot: list[_Framed] = []
    size_of_lot = 0
    while head := file.read(_HEAD.size):
        if len(head) < _HEAD.size:
            yield lot, "it ends within a record"
            return
        size, crc = _HEAD.unpack(head)
        if size > _LARGEST_SCALAR_RECORD:
            # before a jump the length has to be right
            if int(masked_crc32c([head[:8]])[0]) != crc:
                yield lot, "a length fails its checksum"
                return
            file.seek(size + _CRC.size, 1)
            continue
        data = file.read(size + _CRC.size)
        if len(data) < size + _CRC.size:
            yield lot, "it ends within a record"
            return
        lot.append(_Framed(head[:8], crc, data[:size], _CRC.unpack_from(data, size)[0]))
        size_of_lot += size
        if len(lot) >= _RECORDS_AT_ONCE or size_of_lot >= _BYTES_AT_ONCE:
            yield lot, ""
            lot, size_of_lot = [], 0
    yield lot, ""


def is_event_file(path: Path, head: bytes) -> bool:
    """Whether a file begins with a TFRecord whose length passes its checksum and holds an event with a wall time."""
    if len(head) < _HEAD.size + 13:
        return False
    size, crc = _HEAD.unpack_from(head)
    return size < 1 << 32 and int(masked_crc32c([head[:8]])[0]) == crc and head[12] == 0x09


def _join_writers(series: Mapping[str, Series]) -> None:
    """Give files that were written at the same time one segment, where they hold different tags.

    Two writers of one training, the loss in one file and the learning rate in the other: taken for a resumption, the
    rows of the second would replace those of the first.
    """
    seen: dict[int, dict[str, tuple[float, float]]] = {}
    for name, one in series.items():
        segment, time_s = np.frombuffer(one.segment, np.int64), np.frombuffer(one.time)
        for number in np.unique(segment).tolist():
            mine = time_s[segment == number]
            seen.setdefault(number, {})[name] = (float(mine.min()), float(mine.max()))
    place = np.zeros(max(seen, default=0) + 1, np.int64)
    tags: set[str] = set()
    until, group = math.inf, -1
    for number, held in sorted(seen.items()):
        began, ended = min(first for first, _ in held.values()), max(last for _, last in held.values())
        if group < 0 or tags & held.keys() or not began < until:
            tags, until, group = set(), ended, group + 1
        tags |= held.keys()
        until = max(until, ended)
        place[number] = group
    # each once: a user may have named one tag for two columns
    for one in {id(one): one for one in series.values()}.values():
        one.segment = array("q", place[np.frombuffer(one.segment, np.int64)].tobytes())


def _runs(files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    files = sorted(files, key=lambda path: path.name)
    folder = files[0].resolve().parent.name
    if match := _DATE_AND_HOST.match(folder):
        folder = match[1]
    reader = _Reader(columns)
    for segment, path in enumerate(files):
        reader.read(path, segment)
    mapping = find_series(reader.names, columns, folder)
    series = {name: reader.series[tag] for name, tag in mapping.items() if len(reader.series[tag])}
    _join_writers(series)
    rows = rows_by_step(series, folder)
    facts: Provenance = {"source_scalars": reader.scalars, **facts_of_tags(reader.names)}
    yield LoggedRun(
        run_id_from(folder), folder, mapping, lambda: pieces(rows), facts=facts, lost=reader.lost, files=files
    )


TENSORBOARD = Importer(
    name="tensorboard",
    reads="TensorBoard event files; those of one folder are one run",
    recognises=is_event_file,
    runs=_runs,
    unit=lambda path: path.parent,
    rank=10,
)
