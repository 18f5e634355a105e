"""Which moments of a run deserve a close look, and what the guard saw around each: chosen and told as values.

It judges no alarm: that was done in `findings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.report.findings import RunFindings
from lbw_sim.report.sight import Sight
from lbw_sim.values import Reason, Regime, name_of

OFFSETS = (-2, -1, 0, 1, 2, 5)
"""Rows of the table, counted from where the moment begins."""
MOST_SIGNALS = 3
PREFERRED = ("loss_z", "loss_rise", "grad_ratio", "loss_trend", "oscillation", "update_ratio", "probe_gain")

VERDICTS = {
    "event": "on a labelled event",
    "ignored": "on an event of low confidence, not counted",
    "baited": "on a change labelled benign",
    "false": "where no event is labelled",
    "missed": "labelled, and no alarm",
    "": "not judged",
}


class Moment(NamedTuple):
    """A stretch of rows."""

    first_row: int
    last_row: int
    verdict: str
    """A key of `VERDICTS`."""
    kind: str
    """The label's kind of a missed event; else the regime in which the alarm began."""

    @property
    def alarm(self) -> bool:
        """Whether it is an alarm; else an event without one."""
        return self.verdict != "missed"


class Numbers(NamedTuple):
    """The table beside a moment."""

    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[float | str, ...]], ...]
    """(offset from the moment's first row, values)."""
    deciding: str
    """The signal by which the analyzer decided, when that can be told."""
    evidence: float
    """Its value at the moment's first row, or whatever the analyzer gave as evidence; nan: nothing."""


def choose(run: RunFindings, regimes: NDArray[Any], most: int) -> list[Moment]:
    """At most `most` moments, in order: missed events, the first alarm of each verdict, the longest others."""
    judged = [
        Moment(
            alarm.start_row,
            alarm.end_row,
            alarm.verdict if run.judged else "",
            Regime(int(regimes[alarm.start_row])).name,
        )
        for alarm in run.score.alarms
    ]
    missed = [Moment(e.onset_row, e.end_row, "missed", e.kind) for e in run.score.events if not e.detected]
    first = list({moment.verdict: moment for moment in reversed(judged)}.values())
    longest = sorted(judged, key=lambda moment: moment.first_row - moment.last_row)
    # half of the room at most for what was missed: the alarms are what the guard did
    room = max(most - len(judged), most // 2)
    wanted = list(dict.fromkeys([*missed[:room], *first, *longest]))
    return sorted(wanted[:most])


def numbers(moment: Moment, columns: Mapping[str, NDArray[Any]], sight: Sight | None) -> Numbers:
    """What was measured, seen and decided in the rows around the start of a moment."""
    row = moment.first_row
    deciding, evidence = "", float("nan")
    shown: dict[str, NDArray[Any]] = {"step": columns["step"], "loss": columns["loss"]}
    if np.isfinite(columns["grad_norm"]).any():
        shown["grad_norm"] = columns["grad_norm"]
    if sight is not None:
        deciding, evidence = sight.deciding(row), float(sight.evidence[row])
        names = [name for name in PREFERRED if name in sight.signals and name != deciding]
        if deciding in sight.signals:
            names.insert(0, deciding)
        shown |= {name: sight.signals[name] for name in names[:MOST_SIGNALS]}
    shown["scale"] = columns["scale"]
    rows: list[tuple[int, tuple[float | str, ...]]] = []
    for offset in OFFSETS:
        if 0 <= (at := row + offset) < len(columns["step"]):
            reason = name_of(Reason, int(columns["reason"][at])).lower().replace("_", " ")
            regime = name_of(Regime, int(columns["regime"][at])).lower()
            rows.append((offset, (*(float(values[at]) for values in shown.values()), regime, reason)))
    return Numbers((*shown, "regime", "last word"), tuple(rows), deciding, evidence)
