"""Foreign logs as traces: one source per file, found by scanning this folder and recognised by content.

A folder is walked and every run in it imported; what is not recognised, or broken, is listed and not guessed at.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from lbw_sim.errors import TraceError, unknown_name
from lbw_sim.trace.importers.logged import Importer, LoggedRun, run_id_from
from lbw_sim.trace.importers.record import Imported, record
from lbw_sim.trace.labels import Label
from lbw_sim.trace.layout import run_folder_name, run_id_of

__all__ = ["Imported", "Importer", "Imports", "PassedOver", "import_path", "importers"]

HEAD_BYTES = 1 << 20
"""How far a file is looked into to recognise it: some logs begin with the whole source code of the run."""
MOST_FILES = 100_000
_PACKED = (b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
"""How gzip, bzip2, zstd and lz4 begin."""
_CUT_SHORT = (
    "It is compressed, and was cut short, is damaged or still being written: copy it again, or unpack what is there "
    "(gzip -dc, zstd -dc) and import that"
)
READ_ERRORS = (OSError, ValueError, OverflowError, MemoryError, RecursionError, pa.ArrowException)


class PassedOver(NamedTuple):
    """A file that gave no run."""

    path: str
    """Below the folder that was walked."""
    reason: str


class Imports(NamedTuple):
    """What became of a path."""

    runs: tuple[Imported, ...]
    passed_over: tuple[PassedOver, ...]


@cache
def importers() -> dict[str, Importer]:
    """Every importer by name, in the order in which they are asked.

    >>> list(importers())[-1]
    'csv'
    """
    found: list[Importer] = []
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        for value in vars(module).values():
            found += [one for one in (value if isinstance(value, tuple) else [value]) if isinstance(one, Importer)]
    return {importer.name: importer for importer in sorted(found, key=lambda one: (-one.rank, one.name))}


def import_path(
    path: str | Path,
    out: str | Path,
    *,
    source: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[str, Sequence[Label]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Imports:
    """Import every run at or below `path` into the folder of traces `out`.

    `path` is a file, a folder, or an address such as `wandb://entity/project/run`. `source` forces an importer,
    `columns` maps trace columns to names in the source, `labels` are by run id, `progress` hears of sources done and in
    all. What cannot be imported is passed over; TraceError is raised when that leaves nothing of a path that is no
    folder.
    """
    known = importers()
    if source is not None and source not in known:
        raise TraceError(unknown_name("importer", source, known))
    done: list[Imported] = []
    passed: list[PassedOver] = []
    taken: set[str] = set()
    units = list(_units(path, source, passed))
    for number, (importer, files, name) in enumerate(units, start=1):
        try:
            for run in _runs(importer, files, columns or {}, name):
                run_id = _free_id(run.run_id, Path(name), taken)
                taken.add(run_id)
                try:
                    with _one_error(run.source):
                        imported = record(
                            run, out, importer=importer.name, run_id=run_id, labels=(labels or {}).get(run_id)
                        )
                except TraceError as error:
                    passed.append(PassedOver(name, str(error)))
                else:
                    done.append(imported)
        except TraceError as error:
            # the runs of a database that came before it stay
            passed.append(PassedOver(name, str(error)))
        if progress is not None:
            progress(number, len(units))
    if not done and passed and not Path(path).is_dir():
        raise TraceError("; ".join(item.reason for item in passed))
    # the folder that was walked is known, and reasons may be handed on
    above = f"{path}{os.sep}"
    return Imports(tuple(done), tuple(item._replace(reason=item.reason.replace(above, "")) for item in passed))


def _runs(importer: Importer, files: Sequence[Path], columns: Mapping[str, str], name: str) -> Iterator[LoggedRun]:
    with _one_error(name):
        yield from importer.runs(files, columns)


@contextlib.contextmanager
def _one_error(where: str) -> Iterator[None]:
    """Whatever a broken file makes a library raise is one error for the user."""
    try:
        yield
    except READ_ERRORS as error:
        raise TraceError(f"{where} cannot be read: {_said(error)}") from None


def _said(error: Exception) -> str:
    """A library's words in one line, and what to do where a compressed file ends too early."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return f"{text}. {_CUT_SHORT}" if re.search("compress|inflate", text, re.IGNORECASE) else text


def _free_id(run_id: str, name: Path, taken: set[str]) -> str:
    """The run's id, with the folder's name before it where two runs of one import have the same."""
    run_folder_name(run_id)
    if run_id not in taken:
        return run_id
    parent = name.parent.name
    longer = run_id_from(f"{parent}-{run_id}")[:120] if parent.strip(".") else run_id[:120]
    number = 2
    candidate = longer
    while candidate in taken:
        candidate, number = f"{longer}-{number}", number + 1
    return candidate


def _units(
    path: str | Path, source: str | None, passed: list[PassedOver]
) -> Iterator[tuple[Importer, list[Path], str]]:
    """Importer, files and shown name of every source at or below a path. Raises TraceError."""
    scheme, _, rest = str(path).partition("://")
    if rest:
        for importer in importers().values():
            if importer.scheme == scheme:
                yield importer, [Path(rest)], str(path)
                return
        raise TraceError(f"{path}: no importer reads {scheme}://; known: wandb://entity/project/run")
    root = Path(path)
    if not root.exists():
        raise TraceError(f"{path} cannot be read: no such file or folder")
    units: dict[tuple[str, Path], list[Path]] = {}
    files = list(_walk(root, passed)) if root.is_dir() else [root]
    for file in files:
        found = importers()[source] if source is not None else recognise(file)
        if trouble := _trouble(file) if found is None or source is not None else "":
            if not root.is_dir():
                raise TraceError(f"{path}: {trouble}")
            passed.append(PassedOver(str(file.relative_to(root)), trouble))
        elif found is None:
            if not root.is_dir():
                raise TraceError(
                    f"{path}: not recognised as any of {', '.join(importers())}. If it is one of them, say which by "
                    f"--source"
                )
            passed.append(PassedOver(str(file.relative_to(root)), "not recognised"))
        else:
            units.setdefault((found.name, found.unit(file)), []).append(file)
    for (name, unit), members in units.items():
        inside = unit if root not in unit.parents else unit.relative_to(root)
        shown = str(inside) if root.is_dir() and unit != root else unit.resolve().name
        yield importers()[name], members, shown


def _walk(root: Path, passed: list[PassedOver]) -> Iterator[Path]:
    """Files below a folder in a fixed order, without traces of our own and what is hidden.

    Links are not followed; those that lead out of the folder are put on the list, as what they lead to is not read.
    """
    count = 0
    for here, folders, names in os.walk(root):
        for name in sorted([*folders, *names]):
            link = Path(here, name)
            if link.is_symlink() and not name.startswith(".") and root.resolve() not in link.resolve().parents:
                passed.append(PassedOver(str(link.relative_to(root)), "a link, not followed: name what it leads to"))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and run_id_of(name) is None)
        for name in sorted(names):
            file = Path(here) / name
            if not name.startswith(".") and not file.is_symlink() and file.is_file():
                count += 1
                if count > MOST_FILES:
                    raise TraceError(f"{root}: more than {MOST_FILES} files; name a smaller folder")
                yield file


def recognise(file: Path) -> Importer | None:
    """Who reads a file, judged by its first bytes; None: nobody."""
    try:
        with open(file, "rb") as raw:
            head = raw.read(HEAD_BYTES)
        if head.startswith(_PACKED):
            with contextlib.suppress(*READ_ERRORS), pa.input_stream(str(file), compression="detect") as stream:
                head = stream.read(HEAD_BYTES)
    except OSError:
        return None
    head = head.removeprefix(codecs.BOM_UTF8)
    return next((importer for importer in importers().values() if importer.recognises(file, head)), None)


def _trouble(file: Path) -> str:
    """Why nobody can read a file that may well be a log, and what to do; empty: nothing of the kind."""
    try:
        with open(file, "rb") as raw:
            head = raw.read(HEAD_BYTES)
    except OSError:
        return ""
    if head.startswith(_PACKED):
        try:
            with pa.input_stream(str(file), compression="detect") as stream:
                stream.read(HEAD_BYTES)
        except READ_ERRORS as error:
            return f"cannot be unpacked: {_said(error)}"
        return ""
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and 0 in head[:200]
    if marked or _every_other_zero(head[:200]):
        return (
            "text in UTF-16, as > of Windows PowerShell writes it, and UTF-8 is read here: convert it (iconv -f UTF-16 "
            "-t UTF-8 OLD > NEW; in PowerShell: Get-Content OLD | Set-Content -Encoding utf8 NEW)"
        )
    return ""


def _every_other_zero(head: bytes) -> bool:
    """Whether it looks like ASCII, two bytes a letter."""
    return len(head) >= 40 and any(not any(head[at::2]) and 0 not in head[1 - at :: 2] for at in (0, 1))
