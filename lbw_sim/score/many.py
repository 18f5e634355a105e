"""Judgement of many guards on one run at once: the counts of `match`, some hundred times faster.

It counts and does not explain: which alarm was worth what, `match` says. The windows are `detection`'s own, asked once
for every row of the run; here is no second set of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lbw_sim.score.detection import VERDICTS, clean_rows, place_labels, verdicts_on
from lbw_sim.trace.labels import Label


class ManyCounts(NamedTuple):
    """What the alarms of several guards on one run are worth. One row per guard."""

    delays_steps: NDArray[np.float64]
    """[guards, scored events in the order of their onset]: as `EventOutcome.delay_steps`; nan where missed."""
    alarms: NDArray[np.int64]
    false_alarms: NDArray[np.int64]
    baited: NDArray[np.int64]
    latched_rows: NDArray[np.int64]

    @property
    def detected(self) -> NDArray[np.int64]:
        """Scored events seen."""
        return np.asarray((~np.isnan(self.delays_steps)).sum(axis=1))


class RunJudge:
    """One labelled run, ready to judge alarms by the thousand.

    `labels`, `steps` and `run_id` as `match` takes them. Raises ScoreError.

    >>> judge = RunJudge([Label(50, 60, "spike")], np.arange(100), "planted")
    >>> two = judge.count(np.array([[48, 70], [5, 6], [52, 53]]), np.array([0, 1, 3]))
    >>> two.delays_steps.tolist(), two.false_alarms.tolist()
    ([[-2.0], [2.0]], [0, 1])
    """

    def __init__(self, labels: Iterable[Label], steps: ArrayLike, run_id: str) -> None:
        self.steps = np.asarray(steps)
        rows = len(self.steps)
        events, benign, _ = place_labels(labels, self.steps, run_id)
        self.scored = [event for event in events if event.label.confidence != "low"]
        verdicts = verdicts_on(np.arange(rows), events, benign)
        clean = clean_rows(rows, events, benign)
        self.clean_rows = int(clean.sum())
        self._false = verdicts == VERDICTS.index("false")
        self._baited = verdicts == VERDICTS.index("baited")
        self._clean_before = np.concatenate([[0], np.cumsum(clean)])

    def count(self, alarm_rows: NDArray[np.int64], alarm_starts: NDArray[np.int64]) -> ManyCounts:
        """Judge the alarms of several guards, as `Replays` holds them.

        `alarm_rows`: (first row, last row) of every alarm, guard after guard, in order and apart; `alarm_starts`: where
        each guard's begin, one entry more than guards.
        """
        guards = len(alarm_starts) - 1
        first, last = alarm_rows[:, 0], alarm_rows[:, 1]
        number = np.diff(alarm_starts)

        def added(values: NDArray[np.int64]) -> NDArray[np.int64]:
            before = np.concatenate([[0], np.cumsum(values)])
            return np.asarray(before[alarm_starts[1:]] - before[alarm_starts[:-1]])

        # alarms of all guards on one line, so that one search finds a place in every guard's own
        stride = len(self.steps) + 2
        guard = np.arange(guards)
        line = np.repeat(guard, number) * stride + first
        delays = np.full((guards, len(self.scored)), np.nan)
        for place, event in enumerate(self.scored if len(first) else ()):
            # the first alarm from the start of the event's own rows on
            at = np.searchsorted(line, guard * stride + max(0, math.ceil(event.onset - event.tolerance)))
            hit = at < alarm_starts[1:]
            hit[hit] = event.own(first[at[hit]])
            delays[hit, place] = self.steps[first[at[hit]]] - event.label.start_step
            # the alarm that is on at the onset: alarms of one guard do not overlap
            at = np.searchsorted(line, guard * stride + event.onset, side="right") - 1
            held = at >= alarm_starts[:-1]
            held[held] = last[at[held]] >= event.onset
            larger = [one for one in self.scored if one.contains(event)]
            held[held] = np.any([one.own(first[at[held]]) for one in larger], axis=0)
            delays[held, place] = np.fmin(delays[held, place], 0.0)
        return ManyCounts(
            delays,
            number,
            added(self._false[first].astype(np.int64)),
            added(self._baited[first].astype(np.int64)),
            added(self._clean_before[last + 1] - self._clean_before[first]),
        )
