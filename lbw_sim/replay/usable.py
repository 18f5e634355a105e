"""Which recorded runs guards can be shown: those with a row, and with every channel that each of the guards needs.

It leaves nothing out by itself: whoever does has the list, and says in the result what it does not know of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from lbw_sim.errors import MOST_NAMES
from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.trace import Trace
from lbw_sim.wording import counted, some


class Unusable(NamedTuple):
    """A run that can be read, and of which some work can say nothing."""

    run_id: str
    why: str
    """As the end of a sentence about it: `holds no row`."""


def usable_runs(traces: Sequence[Trace], specs: Sequence[GuardSpec]) -> tuple[list[Trace], list[Unusable]]:
    """The runs on which every one of these guards can be replayed, and the others.

    All guards are judged on the same runs, so what one of them cannot see is kept from all. Raises SpecError when a
    component is not installed, TraceError.

    >>> import tempfile
    >>> from lbw_sim.trace import Recorder, read_traces
    >>> spec = GuardSpec.load("default")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Recorder.open(folder, "killed", spec=spec, mode="shadow").close()
    ...     usable_runs(read_traces(folder), [spec])
    ([], [Unusable(run_id='killed', why='holds no row')])
    """
    guards = [(spec.name, spec.build()) for spec in specs]
    usable, unusable = [], []
    for trace in traces:
        if why := why_unusable(len(trace.table()), trace.channels, guards):
            unusable.append(Unusable(trace.run_id, why))
        else:
            usable.append(trace)
    return usable, unusable


def why_unusable(rows: int, channels: Collection[str], guards: Iterable[tuple[str, Guard]]) -> str:
    """Why a run of so many rows that holds these channels is of no use to guards, given by name; empty: it is.

    >>> why_unusable(200, ["lr"], [("zscore", GuardSpec.load("zscore").build())])
    "holds no loss, which guard 'zscore' needs"
    """
    if not rows:
        return "holds no row"
    for name, guard in guards:
        if missing := guard.missing(channels):
            return f"holds no {' and no '.join(missing)}, which guard {name!r} needs"
    return ""


def unusable_words(unusable: Sequence[Unusable]) -> list[str]:
    """A line for each reason: how many runs, why, and their names.

    >>> unusable_words([Unusable("a", "holds no row"), Unusable("b", "holds no row"), Unusable("c", "is too short")])
    ['2 runs (a, b): each holds no row', '1 run (c): it is too short']
    """
    lines = []
    for why in dict.fromkeys(one.why for one in unusable):
        names = [one.run_id for one in unusable if one.why == why]
        who = "it" if len(names) == 1 else "each"
        lines.append(f"{counted(len(names), 'run')} ({some(names, MOST_NAMES)}): {who} {why}")
    return lines
