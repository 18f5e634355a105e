"""Finished work, line by line in a file that only grows: for work that may be killed at any time, and resumed.

    CRC32 of the rest of the line, eight hexadecimal digits | blank | whatever the owner of the file writes

A line that was torn by a kill, or altered, fails its checksum. What lines say, and whether they still count, is their
owner's affair: nothing here locks, and nothing is ever taken out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO
from zlib import crc32


def read_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """From where the file stands to its end: where each line begins, and what it says; None: torn or altered."""
    begin = file.tell()
    for line in file:
        yield begin, _said(line)
        begin += len(line)


def read_line(file: IO[bytes], begin: int) -> bytes | None:
    """What the line that begins there says; None: torn or altered."""
    file.seek(begin)
    return _said(file.readline())


def add_line(file: IO[bytes], said: bytes) -> int:
    """Append a line in one write, so that a kill tears at most this one; returns where it begins.

    The file is open for reading and appending. `said` holds no line break.

    >>> import io
    >>> file = io.BytesIO(b"torn")
    >>> add_line(file, b"7 runs"), file.getvalue()
    (5, b'torn\\nc8021db1 7 runs\\n')
    >>> read_line(file, 5)
    b'7 runs'
    """
    line = b"%08x %s\n" % (crc32(said), said)
    own = len(line)
    if end := file.seek(0, os.SEEK_END):
        file.seek(end - 1)
        if file.read(1) != b"\n":
            # a line that was cut short ends here, not in the middle of this one
            line = b"\n" + line
    file.write(line)
    file.flush()
    # told after it, not before: another process may have appended since we looked
    return file.tell() - own


def _said(line: bytes) -> bytes | None:
    check, _, said = line.removesuffix(b"\n").partition(b" ")
    return said if line.endswith(b"\n") and check == b"%08x" % crc32(said) else None
