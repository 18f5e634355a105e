"""Compiled kernels and where they are kept: machine code beside its text, in a file named by the text's own hash.

So a kernel can never be stale: whatever is edited, in whichever file, either changes the text, and with it the name, or
changes nothing. What lies under a name is not trusted: it is compared with the text first.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from lbw_sim.replay.symbolic import CannotInline
from lbw_sim.whole_file import write_whole


@cache
def cache_folder() -> Path:
    """Where kernels are kept: `$LBW_CACHE`, else `$XDG_CACHE_HOME/lbw-sim`, else `~/.cache/lbw-sim`.

    A folder of this process's own, removed at its end, when that cannot be written.
    """
    named = os.environ.get("LBW_CACHE")
    folder = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lbw-sim"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        own = Path(tempfile.mkdtemp(prefix="lbw-sim-"))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        return own


def kernel_file(text: str) -> Path:
    """The file that a kernel's text is kept in."""
    return cache_folder() / f"kernel_{hashlib.sha256(text.encode()).hexdigest()[:24]}.py"


@cache
def compiled(text: str) -> Callable[..., None]:
    """The machine code of a kernel's text, from the cache or made now, in half a second to one. Raises CannotInline."""
    from numba.core.errors import NumbaError

    file = kernel_file(text)
    # never trust what lies there under this name: it may have been cut short or edited
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_whole(file, text)
    spec = importlib.util.spec_from_file_location(f"lbw_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except NumbaError as error:
        raise CannotInline(f"{file} does not compile: {str(error).splitlines()[0]}") from error
    return module.kernel  # type: ignore[no-any-return]


@cache
def versions() -> str:
    """Of the compiler: they stand in every text, for another one makes other code."""
    # without importing them: that takes longer than many a replay
    return ", ".join(f"{name} {version(name)}" for name in ("numba", "llvmlite"))
