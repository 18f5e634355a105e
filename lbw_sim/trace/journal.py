"""The journal: an append-only file of checked rows, so that kill -9 loses no row that was acknowledged.

    "lbwtrace" | format u32 | header length u32 | header JSON | CRC32 of all that
    row | CRC32        for ever; fixed width, little-endian

A row's CRC32 starts from the header's plus the row's number, so that a row which is moved, doubled or pasted in from
another journal fails like a flipped one. A reader stops at the first row that fails: what follows cannot be placed.
A journal survives the death of its process; it is not forced to the disk row by row, so a power cut may cost the last
seconds.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from zlib import crc32

from lbw_sim.errors import TraceError
from lbw_sim.trace.schema import MAX_META_BYTES, Damage, SegmentMeta, check_description, row_fields, row_struct

try:
    import fcntl
except ImportError:  # no file locks on this platform: a journal is then never taken for a dead one
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"lbwtrace"
FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8sII")
_CRC = struct.Struct("<I")
_CHUNK_ROWS = 131_072
_CHUNK_BYTES = 32 << 20
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class TraceWarning(UserWarning):
    """Part of a recording could not be read; the text says which, and where the bytes are kept."""


class DamagedHeaderError(TraceError):
    """A journal's header is cut short or fails its checksum: no row of it can be read."""


def encode_header(description: dict[str, Any]) -> bytes:
    """The bytes before the first row. Raises TraceError when the description is too long or is not JSON."""
    try:
        text = json.dumps(description, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TraceError(f"the description of this run cannot be written as JSON: {error}") from None
    if len(text) > MAX_META_BYTES:
        raise TraceError(f"the description of this run takes {len(text)} bytes; at most {MAX_META_BYTES} are allowed")
    head = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(text)) + text
    return head + _CRC.pack(crc32(head))


def lock(fd: int, *, wait: bool = False) -> bool | None:
    """Take the exclusive lock by which a writer shows that it lives. False: somebody has it; None: this system, or the
    file system, has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if isinstance(error, BlockingIOError):
            return False
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def locked_by_somebody(fd: int) -> bool | None:
    """Whether some process holds the lock, found out without touching it. None: this system does not tell.

    False also where the lock is out of sight: held in another container, or on another machine.
    """
    try:
        with open("/proc/locks", encoding="ascii") as file:
            held = [line.split() for line in file]
    except OSError:
        return None
    found = os.fstat(fd)
    inode = f":{found.st_ino}"
    places = {word for words in held if "FLOCK" in words for word in words if word.endswith(inode)}
    if f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}{inode}" in places:
        return True
    # btrfs and overlays report another device here than there
    return None if places else False


def is_at(fd: int, path: Path) -> bool:
    """Whether `path` still names the open file: another process may have finished it and taken it away."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


class JournalWriter:
    """Appends rows to a new journal and holds its lock. One thread at a time."""

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        """Raises FileExistsError when `path` exists, other OSErrors when it cannot be written, and TraceError."""
        header = encode_header(description)
        self.path = path
        self.rows = 0
        self._row_bytes = row_struct(description["extra_channels"]).size + _CRC.size
        self._start = len(header)
        self._seed = _CRC.unpack(header[-_CRC.size :])[0]
        while True:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                lock(self._fd, wait=True)
                if not is_at(self._fd, path):
                    # between our open and our lock a reader found an empty journal and cleared it away
                    os.close(self._fd)
                    continue
                _write_all(self._fd, header)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                os.close(self._fd)
                raise
            break

    @property
    def deleted(self) -> bool:
        """Whether the file has no name any more; one that was moved still has."""
        return os.fstat(self._fd).st_nlink == 0

    def append(self, body: bytes) -> None:
        """Append one packed row with its checksum. When it raises, the row is not there; OSError among others."""
        row = body + _CRC.pack(crc32(body, (self._seed + self.rows) & 0xFFFFFFFF))
        try:
            written = os.write(self._fd, row)
            if written != self._row_bytes:
                _write_all(self._fd, row[written:])
            self.rows += 1
        except BaseException:
            # also for KeyboardInterrupt: a row written and not counted would give its number to the next one
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._start + self.rows * self._row_bytes)
            raise

    def close(self) -> None:
        """Let go of the file and its lock."""
        os.close(self._fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class JournalReader:
    """Reads a journal, dead or alive, as far as it is whole; memory stays bounded however long it is."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        """`file` can seek, and has no buffer when it is read while it grows. `where` names it in errors.

        Raises TraceError, DamagedHeaderError among them.
        """
        self._file = file
        self.where = where
        self.rows = 0
        """Good rows so far."""
        self.damage: Damage | None = None
        """Set when `chunks` has come to its end."""
        prefix = _read(file, _PREFIX.size)
        if len(prefix) < _PREFIX.size:
            raise DamagedHeaderError(f"{where}: the journal ends within its header: it holds no row")
        magic, version, length = _PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise DamagedHeaderError(f"{where} is not a journal: it does not begin with {MAGIC.decode()!r}")
        if length > MAX_META_BYTES:
            raise DamagedHeaderError(f"{where}: header of {length} bytes; at most {MAX_META_BYTES} are allowed")
        rest = _read(file, length + _CRC.size)
        if len(rest) < length + _CRC.size:
            raise DamagedHeaderError(f"{where}: the journal ends within its header: it holds no row")
        text, (checksum,) = rest[:length], _CRC.unpack(rest[length:])
        if crc32(text, crc32(prefix)) != checksum:
            raise DamagedHeaderError(f"{where}: the header fails its checksum")
        if version != FORMAT_VERSION:
            raise TraceError(f"{where}: journal format {version}; this release reads {FORMAT_VERSION}")
        self._seed = checksum
        self._start = _PREFIX.size + len(rest)
        found = parse_description(text, where)
        self.description = found | {"crc32_seed": checksum} if isinstance(found, dict) else found
        self.meta: SegmentMeta = check_description(self.description, where)

    def chunks(self) -> Iterator[NDArray[np.void]]:
        """Good rows in order, as structured arrays of `rows_at_once`; then `damage` says how it ended.

        Called again, it goes on after the last good row with what was appended since.
        """
        import numpy as np

        self.damage = None
        dtype = np.dtype(row_fields(self.meta.extra_channels))
        size = dtype.itemsize
        body = size - _CRC.size
        at_once = rows_at_once(size)
        self._file.seek(self._start + self.rows * size)
        while True:
            data = _read(self._file, at_once * size)
            whole = len(data) // size
            view = memoryview(data)
            rows = np.frombuffer(data, dtype, count=whole)
            good = 0
            for checksum in rows["crc32"].tolist():
                at = good * size
                if crc32(view[at : at + body], (self._seed + self.rows + good) & 0xFFFFFFFF) != checksum:
                    break
                good += 1
            self.rows += good
            if good:
                yield rows[:good]
            if good < whole:
                end = self._file.seek(0, os.SEEK_END)
                self.damage = Damage(self.rows, self.rows, end - self._start - self.rows * size)
                return
            if whole < at_once:
                if torn := len(data) - whole * size:
                    self.damage = Damage(self.rows, None, torn)
                return


def rows_at_once(row_bytes: int) -> int:
    """How many rows are read at a time: some 100,000, fewer where they are wide, so that memory stays bounded."""
    return max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // row_bytes))


def parse_description(text: bytes, where: str) -> Any:
    """JSON from a file that nobody vouches for. Raises TraceError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: its description is not JSON: {str(error)[:200]}") from None


def _read(file: IO[bytes], size: int) -> bytes:
    """Exactly `size` bytes, or all that there are."""
    parts = []
    while size > 0 and (part := file.read(min(size, _CHUNK_BYTES))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
