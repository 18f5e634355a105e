"""The finished runs of a suite or a fork, and what each was flown with; written as they end, for one at a time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lbw_sim.errors import StressError
from lbw_sim.ledger import add_line, read_lines
from lbw_sim.trace.journal import lock

LEDGER = "runs.ledger"


class Ledger:
    """A line of JSON per run, each with its checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, dict[str, Any]]:
        """Key -> what is stored, the last word counting. A line that was torn or altered counts as no run."""
        found: dict[str, dict[str, Any]] = {}
        if not self.path.exists():
            return found
        try:
            with self.path.open("rb") as file:
                lines = [said for _, said in read_lines(file) if said is not None]
        except OSError as error:
            raise StressError(f"cannot read the ledger {self.path}: {error}") from None
        for line in lines:
            entry = json.loads(line)
            found[entry["key"]] = {"stamp": entry["stamp"], "run": entry["run"]}
        return found

    def add(self, key: str, stamp: dict[str, str], run: dict[str, Any]) -> None:
        """Append one run; it is on disk when this returns."""
        line = json.dumps({"key": key, "stamp": stamp, "run": run}, separators=(",", ":"))
        try:
            with self.path.open("ab+") as file:
                add_line(file, line.encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise StressError(f"cannot write the ledger {self.path}: {error}") from None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep a second one out of the folder. Raises StressError."""
        try:
            file = self.path.open("ab")
        except OSError as error:
            raise StressError(f"cannot write the ledger {self.path}: {error}") from None
        with file:
            # where there are no locks, nothing keeps two apart
            if lock(file.fileno()) is False:
                raise StressError(f"another command is at work in {self.path.parent}; give this one another folder")
            yield
