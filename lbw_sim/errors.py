"""The error tree: what went wrong, said to the person who can mend it.

Every error meant for a user derives from `LbwError`: the command line prints its text on one line and exits with 2.
`assert` is for this package's own invariants only. Nothing here is ever raised into a live training loop.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LbwError(Exception):
    """A fault that its reader can mend: the text says who, what came, what is allowed and what to do."""


class ParameterError(LbwError):
    """A component was given a parameter that it does not have, or a value outside its declared range."""


class ComponentError(LbwError):
    """A component is unknown, or does not keep the contract of its kind."""


class SpecError(LbwError):
    """A guard specification cannot be read, or does not describe a guard."""


class ChannelError(LbwError):
    """A guard needs a telemetry channel that a trace or a training loop does not deliver."""


class TraceError(LbwError):
    """A trace file is damaged, is not a trace, or does not hold what was asked of it."""


class BrokenRunsError(TraceError):
    """Of several runs, some cannot be read.

    >>> str(BrokenRunsError([TraceError("b.parquet: cut short")], 3))
    '1 of 3 runs cannot be read: b.parquet: cut short'
    """

    def __init__(self, faults: Sequence[TraceError], runs: int) -> None:
        """`faults`: what is wrong with each of them; `runs`: how many were to be read."""
        super().__init__(faults, runs)
        self.faults, self.runs = tuple(faults), runs

    def __str__(self) -> str:
        return f"{len(self.faults)} of {self.runs} runs cannot be read: {'; '.join(map(str, self.faults))}"


class VerifyError(LbwError):
    """A recorded decision is not the one that the recorded guard takes on the recorded telemetry."""


class LiveError(LbwError):
    """The guard cannot be attached to this optimizer, or was given something it cannot record."""


class StressError(LbwError):
    """A stress experiment was asked for something that it cannot run."""


class EvidenceError(LbwError):
    """A back-test report is damaged, is of another guard, or cannot be read: it allows nothing."""


class SimulateError(LbwError):
    """A plant cannot be calibrated or flown on what was given, or a plant file does not describe one."""


class TuneError(LbwError):
    """A guard cannot be tuned on these runs or in this way, or a library that the search asks for is not installed."""


class ScoreError(LbwError):
    """A run cannot be judged or drawn: rows out of order, a column missing, or a label that no scorer knows."""


MOST_NAMES = 50
"""That an error lists."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not there, with the nearest one that is.

    >>> unknown_name("analyzer", "cusun", ["cusum", "never"])
    "no analyzer named 'cusun'. Known: cusum, never. Did you mean 'cusum'?"
    >>> unknown_name("run", "x", map(str, range(1000, 3000)))[-23:]
    '1049 and 1,950 further.'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    told = ", ".join(names[:MOST_NAMES]) or "none"
    # of thousands of runs a screenful would hide the sentence before it
    more = f" and {len(names) - MOST_NAMES:,} further." if len(names) > MOST_NAMES else "."
    return f"no {what} named {name!r}. Known: {told}{more}{hint}"
