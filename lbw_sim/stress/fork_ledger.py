"""What a folder holds of a fork already: which runs were flown to their end, and with what; for one fork at a time.

A run that was killed begins anew. One that is there and was not begun by a fork, or with another guard, loop or
release, is never taken away, and never taken for one of this fork.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lbw_sim import __version__
from lbw_sim.errors import StressError
from lbw_sim.stress.run_ledger import Ledger
from lbw_sim.trace.layout import run_folder_name
from lbw_sim.wording import some

LEDGER = "_forks.ledger"
CHECKPOINTS = "_checkpoints-"
"""How the names of folders begin that a killed fork leaves."""
MOST_NAMED = 5

Stamp = dict[str, str]


class Forked:
    """The runs of a fork as they end."""

    def __init__(self, ledger: Ledger, stamps: Mapping[str, Stamp]) -> None:
        """Use `forked_in`."""
        self._ledger, self._stamps = ledger, stamps
        self.finished: dict[str, dict[str, Any]] = {}
        """Run id -> what it came to."""

    def add(self, run_id: str, what: dict[str, Any]) -> None:
        """A run has come to its end and is recorded. Raises StressError."""
        self._ledger.add(run_id, self._stamps[run_id], what)
        self.finished[run_id] = what

    def __contains__(self, run_id: str) -> bool:
        return run_id in self.finished


@contextlib.contextmanager
def forked_in(folder: Path, stamps: Mapping[str, Stamp]) -> Iterator[Forked]:
    """The runs of this fork that `folder` holds, after taking away what a killed one left of the others.

    `stamps`: run id -> what that run has to have been flown with to count. Raises StressError when another fork is at
    work there, or when the folder holds one of these runs and it is not of this fork.
    """
    ledger = Ledger(folder / LEDGER)
    if not ledger.path.exists():
        _refuse_others(folder, [run_id for run_id in stamps if _there(folder, run_id)])
    folder.mkdir(parents=True, exist_ok=True)
    with ledger.held():
        stored = ledger.read()
        _refuse_others(folder, [run_id for run_id in stamps if run_id not in stored and _there(folder, run_id)])
        found = Forked(ledger, stamps)
        for run_id, stamp in stamps.items():
            known = stored.get(run_id)
            if known is None or not known["run"] or not _there(folder, run_id):
                continue
            if known["stamp"] != stamp:
                other = sorted(key for key in {**known["stamp"], **stamp} if known["stamp"].get(key) != stamp.get(key))
                raise StressError(
                    f"{folder} holds {run_id} of another fork (not the same: {', '.join(other)}); fork into another "
                    f"folder"
                )
            found.finished[run_id] = known["run"]
        for scratch in folder.glob(f"{CHECKPOINTS}*"):
            shutil.rmtree(scratch, ignore_errors=True)
        for run_id, stamp in stamps.items():
            if run_id not in found:
                shutil.rmtree(folder / run_folder_name(run_id), ignore_errors=True)
                # that it was begun by a fork: only so may it be taken away
                ledger.add(run_id, stamp, {})
        yield found


def common_stamp() -> Stamp:
    """Versions: runs of others say nothing about these."""
    return {"lbw_sim": __version__, "torch": str(torch.__version__)}


def loop_stamp(loop: object) -> Stamp:
    """The file that a training loop stands in; what that imports is not looked at."""
    while isinstance(loop, partial):
        loop = loop.func
    try:
        file = inspect.getsourcefile(loop if inspect.isroutine(loop) else type(loop))
        text = b"" if file is None else Path(file).read_bytes()
    except (TypeError, OSError):
        text = b""
    return {"loop": hashlib.sha256(text).hexdigest()[:16]}


def _there(folder: Path, run_id: str) -> bool:
    return (folder / run_folder_name(run_id)).exists()


def _refuse_others(folder: Path, there: list[str]) -> None:
    if there:
        raise StressError(f"{folder} holds {some(there, MOST_NAMED)} already; fork into another folder")
