"""Files that are there whole or not at all: a full disk or a kill leaves the one that was there before."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path


def write_whole(path: str | Path, content: str | bytes, *, errors: str = "strict") -> None:
    """Write a file at one stroke, text in UTF-8. Raises OSError, and then nothing is changed.

    A link, and what is no file (`/dev/stdout`, a pipe), is written to where it leads, not replaced. `errors`: as in
    `str.encode`, for characters that cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder, "note.txt"), "hello")
    ...     os.listdir(folder), Path(folder, "note.txt").read_text()
    (['note.txt'], 'hello')
    """
    path = Path(path)
    data = content.encode(errors=errors) if isinstance(content, str) else content
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(data)
        return
    # short, for the name may be as long as names can be; threads may write beside each other
    partial = path.with_name(f".{os.getpid()}.{threading.get_ident()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        error.filename = str(path)
        raise
