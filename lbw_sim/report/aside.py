"""Has some of the page's sections drawn in a second process: drawing works on one core only.

For long reports on a machine with a second core. Whatever goes wrong there, the sections are drawn here as if it had
not been tried; what stands on the page does not depend on it.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from lbw_sim.cores import usable_cores

FEWEST_SECTIONS = 6
FEWEST_ROWS = 100_000
"""Below these a report is done in a few seconds anyway, and a process takes one of them to start."""
_PROGRAM = """\
import pickle, sys
import lbw_sim.report.build
draw, tasks = pickle.load(sys.stdin.buffer)
pickle.dump([draw(*task) for task in tasks], sys.stdout.buffer)
"""


class Aside:
    """A process that has loaded what drawing needs, and waits to be told what to draw. Close it."""

    def __init__(self) -> None:
        self._drawn = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=self._drawn, stderr=subprocess.DEVNULL
        )

    def begin(self, draw: Any, tasks: Sequence[tuple[Any, ...]]) -> None:
        """Hand over the work: a function that a module holds, and its arguments, one tuple per call."""
        assert self._process.stdin is not None
        # it may have died: `result` finds out
        with contextlib.suppress(OSError, pickle.PicklingError, AttributeError, TypeError), self._process.stdin as to:
            pickle.dump((draw, tasks), to, protocol=pickle.HIGHEST_PROTOCOL)

    def result(self) -> list[Any] | None:
        """What the calls gave, in order, once all are done; None when something went wrong."""
        if self._process.wait() != 0:
            return None
        self._drawn.seek(0)
        found: list[Any] = pickle.load(self._drawn)
        return found

    def close(self) -> None:
        """End the process, at work or not."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._drawn.close()


def worth_it(sections: int, rows: int) -> bool:
    """Whether drawing so many sections of runs with so many rows in all takes longer than starting a process, and there
    is a core for it."""
    return sections >= FEWEST_SECTIONS and rows >= FEWEST_ROWS and usable_cores() > 1
