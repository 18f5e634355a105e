"""What was measured already: a file that a search appends to, and reads when it is started again.

An entry stands under the hash of what was asked and is true whenever it is asked, so one file may serve many searches,
and deleting it costs time only. A line that was torn by a kill, or altered, fails its checksum and is left out.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import zlib
from pathlib import Path

import numpy as np

from lbw_sim.errors import TuneError
from lbw_sim.tune.measure import Arrays


class Ledger:
    """Key -> arrays, on disk. `path` None: nothing is kept. Raises TuneError when it cannot be written.

    >>> with Ledger(None) as ledger:
    ...     ledger.add("a", {"x": np.array([1.5])})
    ...     ledger.get("a") is None
    True
    """

    def __init__(self, path: Path | None) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        """Key -> where its line begins and ends."""
        self.dropped = 0
        """Lines that failed their checksum."""
        self._file = None
        if path is None:
            return
        try:
            self._file = path.open("a+b")
            self._read()
        except OSError as error:
            raise TuneError(f"{path} cannot be kept as a ledger: {error}") from None

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        at = 0
        for line in self._file:
            end = at + len(line)
            if not line.endswith(b"\n"):
                # torn by a kill: what follows must not be glued to it
                self._file.truncate(at)
                self.dropped += 1
                break
            key, _, rest = line.rstrip(b"\n").partition(b" ")
            if _intact(rest):
                self._places[key.decode("ascii", "replace")] = (at, end)
            else:
                self.dropped += 1
            at = end

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def get(self, key: str) -> Arrays | None:
        """What was measured under this key."""
        if self._file is None or key not in self._places:
            return None
        begin, end = self._places[key]
        self._file.seek(begin)
        packed = self._file.read(end - begin).rstrip(b"\n").split(b" ")[2]
        with np.load(io.BytesIO(base64.b64decode(packed)), allow_pickle=False) as found:
            return dict(found)

    def add(self, key: str, arrays: Arrays) -> None:
        """Keep a measurement: one write, so that a kill tears at most this line."""
        if self._file is None:
            return
        memory = io.BytesIO()
        np.savez_compressed(memory, **arrays)  # type: ignore[arg-type]
        packed = base64.b64encode(memory.getvalue())
        line = b"%s %08x %s\n" % (key.encode(), zlib.crc32(packed), packed)
        begin = self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        self._places[key] = (begin, begin + len(line))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _intact(rest: bytes) -> bool:
    check, _, packed = rest.partition(b" ")
    try:
        return int(check, 16) == zlib.crc32(packed) and bool(base64.b64decode(packed, validate=True))
    except (ValueError, binascii.Error):
        return False
