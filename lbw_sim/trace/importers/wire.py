"""The wire format of protocol buffers, as far as reading needs it, and checksums of the files that carry them.

It knows no message: who calls says which field numbers mean what. Lengths in a file are claims and are checked against
what is there. Nothing is allocated by a claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEW = 30
"""Fewer strings of one length are cheaper byte by byte."""


class WireError(ValueError):
    """Bytes that are no message."""


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and where it ends. Raises WireError.

    >>> varint(bytes([0xAC, 0x02]), 0)
    (300, 2)
    """
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise WireError("a number is cut short or too long")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7


def fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Field number, wire type and value: a number for types 0, bytes for 1, 2 and 5. Raises WireError.

    >>> list(fields(bytes([0x08, 0x07, 0x12, 0x02, 0x68, 0x69])))
    [(1, 0, 7), (2, 2, b'hi')]
    """
    at, end = 0, len(data)
    while at < end:
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
            yield key >> 3, 0, value
            continue
        if kind == 2:
            size, at = varint(data, at)
        elif kind == 1:
            size = 8
        elif kind == 5:
            size = 4
        else:
            raise WireError(f"wire type {kind}")
        if size > end - at:
            raise WireError("a field is longer than its message")
        yield key >> 3, kind, data[at : at + size]
        at += size


def signed(value: int) -> int:
    """A varint as the 64-bit signed number that int64 fields hold."""
    return value - (1 << 64) if value >> 63 else value


@cache
def _crc32c_table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


@cache
def _crc32c_list() -> list[int]:
    return [int(entry) for entry in _crc32c_table()]


def _one_crc32c(data: bytes) -> int:
    table, crc = _crc32c_list(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


def masked_crc32c(parts: Sequence[bytes]) -> NDArray[np.uint32]:
    """The masked CRC-32C (Castagnoli) of each of many short byte strings, as TFRecord files hold it.

    Many at once: byte after byte over all of them, so that Python's cost is per column and not per byte.

    >>> [hex(c) for c in masked_crc32c([b"123456789"]).tolist()]
    ['0xc78ab0e5']
    """
    table = _crc32c_table()
    sizes = np.fromiter((len(part) for part in parts), np.int64, len(parts))
    crc = np.full(len(parts), 0xFFFFFFFF, np.uint32)
    for size in np.unique(sizes).tolist():
        where = np.flatnonzero(sizes == size)
        if len(where) < _FEW:
            for i in where.tolist():
                crc[i] = _one_crc32c(parts[i])
            continue
        block = np.frombuffer(b"".join([parts[i] for i in where.tolist()]), np.uint8).reshape(len(where), size)
        state = crc[where]
        for column in np.ascontiguousarray(block.T):
            state = table[(state ^ column) & 0xFF] ^ (state >> np.uint32(8))
        crc[where] = state
    crc = ~crc
    return (((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)).astype(np.uint32)
