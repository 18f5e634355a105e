"""A file or folder on this machine, or where `pyarrow.fs` reads: `s3://`, `gs://`, `hdfs://`, `file://`. Read-only.

A store that does not answer is given up on after seconds, not after the minutes or quarter of an hour that its client
would take: a command says what is wrong while somebody is still looking.
"""

from __future__ import annotations

import copy
import os
import posixpath
from dataclasses import dataclass
from typing import IO, Any, Literal, NoReturn

import pyarrow as pa
from pyarrow import fs as arrow_fs

from lbw_sim.errors import TraceError

GIVE_UP_S = 10
"""Seconds after which Google's client stops trying; by itself it takes 15 minutes."""
Kind = Literal["file", "folder", "nothing"]
_KINDS: dict[Any, Kind] = {arrow_fs.FileType.File: "file", arrow_fs.FileType.Directory: "folder"}
_BUCKETS = ("s3://", "gs://", "gcs://")
_ERRORS = (pa.ArrowException, OSError)


@dataclass(frozen=True)
class Place:
    """Where something lies, or may lie."""

    system: Any
    path: str
    scheme: str
    """With its colon and slashes, as in `s3://`; empty: a path of this machine."""

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Place:
        """From a path, or a URI with the options that pyarrow takes after its question mark. Raises TraceError.

        >>> str(Place.of("s3://bucket/traces?region=eu-west-1"))
        's3://bucket/traces'
        """
        text = os.fspath(path)
        scheme, found, rest = text.partition("://")
        if not found:
            return cls(arrow_fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)), "")
        uri = text
        if scheme in ("gs", "gcs") and "retry_limit_seconds=" not in rest:
            uri += f"{'&' if '?' in rest else '?'}retry_limit_seconds={GIVE_UP_S}"
        try:
            system, inside = arrow_fs.FileSystem.from_uri(uri)
        except (*_ERRORS, ImportError) as error:
            _refuse(text, "reached", error)
        if isinstance(system, arrow_fs.S3FileSystem):
            # made from a URI it tries ten times, 99 s before an endpoint that never answers; its copy tries three
            # times, as one made by keywords does
            system = copy.copy(system)
        return cls(system, inside.rstrip("/"), f"{scheme}://")

    @property
    def local(self) -> bool:
        """Whether it is a path of this machine, not a URI."""
        return not self.scheme

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def parent(self) -> Place:
        """The folder that it lies in."""
        return Place(self.system, posixpath.dirname(self.path), self.scheme)

    def below(self, name: str) -> Place:
        """What has this name in the folder."""
        return Place(self.system, posixpath.join(self.path, name), self.scheme)

    def kind(self) -> Kind:
        """What is there. Raises TraceError when nobody can tell."""
        self._refuse_bytes()
        try:
            return _KINDS.get(self.system.get_file_info(self.path).type, "nothing")
        except _ERRORS as error:
            _refuse(self, "reached", error)

    def nothing(self) -> str:
        """What to say where `kind` finds nothing."""
        bucket = self.path.partition("/")[0]
        if self.scheme in _BUCKETS and Place(self.system, bucket, self.scheme).kind() == "nothing":
            return f"there is no bucket {bucket!r}"
        return "no such file or folder"

    def listing(self) -> tuple[list[str], list[str]]:
        """Names of the files and of the folders here. Raises TraceError."""
        try:
            if self.local:
                # pyarrow falls over a name that is no text, whosever file it is
                with os.scandir(self.path) as entries:
                    there = [(entry.name, entry.is_file(), entry.is_dir()) for entry in entries]
                return [name for name, file, _ in there if file], [name for name, _, folder in there if folder]
            found = self.system.get_file_info(arrow_fs.FileSelector(self.path))
        except _ERRORS as error:
            _refuse(self, "listed", error)
        files = [info.base_name for info in found if info.type == arrow_fs.FileType.File]
        return files, [info.base_name for info in found if info.type == arrow_fs.FileType.Directory]

    def open(self) -> IO[bytes]:
        """Raises FileNotFoundError, for a file may be finished and gone; TraceError otherwise."""
        self._refuse_bytes()
        try:
            file: IO[bytes] = self.system.open_input_file(self.path)
        except FileNotFoundError:
            raise
        except _ERRORS as error:
            _refuse(self, "read", error)
        return file

    def read(self, most: int) -> bytes:
        """The first `most` bytes. Raises as `open` does."""
        try:
            with self.open() as file:
                return file.read(most)
        except FileNotFoundError:
            raise
        except _ERRORS as error:
            _refuse(self, "read", error)

    def _refuse_bytes(self) -> None:
        """Python reads any name that a disk may hold, pyarrow only text."""
        try:
            self.path.encode()
        except UnicodeEncodeError:
            raise TraceError(
                f"{self.path!r}: a name that is no UTF-8 here cannot be opened: rename it, or run under a locale of "
                f"UTF-8 (LC_ALL=C.UTF-8)"
            ) from None

    def __str__(self) -> str:
        return f"{self.scheme}{self.path}"


def _refuse(place: Place | str, what: str, error: Exception) -> NoReturn:
    text = " ".join(str(error).split())[:300]
    if any(word in text for word in ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")):
        text += " Credentials are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE of ~/.aws"
    raise TraceError(f"{place}: cannot be {what}: {text}") from None
