"""Two guards on the same records: where their decisions differ, step by step, grouped into episodes.

Open loop: both are shown the losses that were recorded. After the first step at which they act differently, a real run
under one of them would not have been a real run under the other; so a difference says what is decided, never what
would have come of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.errors import ChannelError
from lbw_sim.guard import GuardSpec
from lbw_sim.replay.compiled import replay_many
from lbw_sim.trace import Trace
from lbw_sim.trace.alarms import unsafe_rows
from lbw_sim.values import Regime
from lbw_sim.wording import counted

GAP_ROWS = 10
"""Differences with at most this many equal rows between them are one episode."""
KINDS = ("acts", "names", "reasons")


class Episode(NamedTuple):
    """One stretch of a run in which two guards decide differently. Of each pair the first is of guard A."""

    first_row: int
    last_row: int
    first_step: int
    last_step: int
    rows: int
    """Rows that differ; equal ones between them not counted."""
    kind: str
    """`acts`: another posture or scale; `names`: only another regime; `reasons`: only another reason."""
    regimes: tuple[tuple[str, ...], tuple[str, ...]]
    """Regimes of the differing rows, in order of appearance."""
    lowest_scale: tuple[float, float]
    alarm_rows: tuple[int, int]
    """Rows in an unsafe regime."""


class RunDifference(NamedTuple):
    """Two guards along one run."""

    run_id: str
    steps: NDArray[np.int64]
    episodes: tuple[Episode, ...]
    rows_differing: int
    alarms: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
    """(first row, last row) of the alarms of each."""
    requested_energy: tuple[float, float]
    """Control energy asked for."""


class NotCompared(NamedTuple):
    """A run that lacks a channel that one of the guards needs."""

    run_id: str
    missing: tuple[str, ...]


def compare_guards(
    traces: Sequence[Trace],
    a: GuardSpec,
    b: GuardSpec,
    *,
    gap_rows: int = GAP_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[RunDifference | NotCompared]:
    """Every run in order. Control energy is not compared: it is the sum of what the scales were.

    Raises ChannelError when no run holds what the two guards need, SpecError when a component is not installed.
    """
    needs = set(a.build().needs) | set(b.build().needs)
    fit = [trace for trace in traces if needs <= set(trace.channels)]
    if traces and not fit:
        needed = ", ".join(sorted(needs))
        raise ChannelError(
            f"guards {a.name!r} and {b.name!r} need {needed}; none of {counted(len(traces), 'run')} holds them"
        )
    found = iter(replay_many(fit, [a, b], rows=True, progress=progress))
    for trace in traces:
        if trace not in fit:
            yield NotCompared(trace.run_id, tuple(sorted(needs - set(trace.channels))))
            continue
        replays = next(found)
        assert replays.decided is not None
        episodes, differing = _episodes(replays.steps, *replays.decided, gap_rows=gap_rows)
        yield RunDifference(
            trace.run_id,
            replays.steps,
            episodes,
            differing,
            (tuple(replays.alarms(0)), tuple(replays.alarms(1))),
            (float(replays.requested_energy[0]), float(replays.requested_energy[1])),
        )


def _episodes(
    steps: NDArray[np.int64], a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]], *, gap_rows: int
) -> tuple[tuple[Episode, ...], int]:
    differs = {name: a[name] != b[name] for name in ("regime", "posture", "scale", "reason")}
    any_differs = np.logical_or.reduce(list(differs.values()))
    rows = np.flatnonzero(any_differs)
    if not len(rows):
        return (), 0
    cuts = np.flatnonzero(np.diff(rows) > gap_rows + 1) + 1
    episodes = []
    for mine in np.split(rows, cuts):
        acts = bool((differs["posture"] | differs["scale"])[mine].any())
        kind = "acts" if acts else "names" if differs["regime"][mine].any() else "reasons"

        def names(decided: dict[str, NDArray[Any]], mine: NDArray[Any] = mine) -> tuple[str, ...]:
            return tuple(Regime(int(code)).name for code in dict.fromkeys(decided["regime"][mine].tolist()))

        first, last = int(mine[0]), int(mine[-1])
        here = slice(first, last + 1)
        episodes.append(
            Episode(
                first, last, int(steps[first]), int(steps[last]), len(mine), kind, (names(a), names(b)),
                (float(a["scale"][here].min()), float(b["scale"][here].min())),
                (int(unsafe_rows(a["regime"][here]).sum()), int(unsafe_rows(b["regime"][here]).sum())),
            )
        )  # fmt: skip
    return tuple(episodes), len(rows)
