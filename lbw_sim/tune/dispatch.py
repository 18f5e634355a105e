"""Cuts the work of a search into pieces, hands out those that the ledger does not hold, and adds the answers up.

What comes out does not depend on the pieces, on who did them, or on what was measured before a search was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.guard import GuardSpec
from lbw_sim.replay.compiled import LANES
from lbw_sim.tune.choose import Objectives
from lbw_sim.tune.executors import Executor
from lbw_sim.tune.ledger import Ledger
from lbw_sim.tune.measure import Arrays, Candidates, Flights, Fly, Watch, fly
from lbw_sim.tune.runs import RunFacts
from lbw_sim.tune.space import Space

BATCH = 512
"""Candidates of one piece of work: sixteen lanes' widths."""
PIECE_ROWS = 300_000
"""Rows of the runs of one piece, about: some seconds of work with a full batch."""


class Tally(NamedTuple):
    """What was measured of some candidates, over some runs."""

    counts: Arrays
    events: int
    clean_rows: int
    rows: int

    def joined(self, other: Tally) -> Tally:
        """Over further runs."""
        return Tally(
            _added([self.counts, other.counts]),
            self.events + other.events,
            self.clean_rows + other.clean_rows,
            self.rows + other.rows,
        )

    def take(self, places: NDArray[np.int64]) -> Tally:
        """Of some of the candidates."""
        return self._replace(counts={name: values[places] for name, values in self.counts.items()})

    def objectives(self, flown: Arrays | None) -> Objectives:
        """What they come to."""
        delays = self.counts["delays"]
        seen = (~np.isnan(delays)).sum(axis=1)
        nothing = np.full(len(delays), np.nan)
        median = nothing.copy()
        if delays.shape[1]:
            some = seen > 0
            median[some] = np.nanmedian(delays[some], axis=1)
        return Objectives(
            missed=1.0 - seen / self.events if self.events else nothing,
            false_alarms_per_10k=10_000.0 * self.counts["false_alarms"] / self.clean_rows
            if self.clean_rows
            else nothing,
            delay_steps=median,
            energy=1_000.0 * self.counts["energy"] / self.rows,
            final_loss=nothing if flown is None else flown["final_loss"],
            harm=nothing if flown is None else flown["harm"],
        )


class Dispatcher:
    """Cuts work into pieces, hands out those that the ledger does not hold, and puts the answers together."""

    def __init__(
        self, space: Space, workers: Executor, ledger: Ledger, flights: Flights | None, plugins: tuple[str, ...],
        report: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.space, self.workers, self.ledger, self.flights, self.plugins = space, workers, ledger, flights, plugins
        self.report = report
        self.reference: tuple[float, ...] = ()
        if flights is not None:
            flown = fly([GuardSpec.load("never")], flights, threads=None, engine="auto")
            self.reference = tuple(np.where(flown.lost[0], np.nan, flown.final_loss[0]).tolist())

    def candidates(self, values: NDArray[np.float64]) -> Candidates:
        """Guards by their parameters, [candidates, dimensions], as a worker takes them."""
        dimensions = self.space.dimensions
        return Candidates(
            self.space.start.to_toml(),
            tuple(d.path for d in dimensions),
            tuple(d.info.integer for d in dimensions),
            values,
            self.plugins,
        )

    def watched(self, values: NDArray[np.float64], runs: Sequence[RunFacts]) -> Tally:
        """All of the candidates along all of the runs."""
        batches = [self.candidates(values[i : i + BATCH]) for i in range(0, len(values), BATCH)]
        shards = list(_shards(runs))
        # a run's batches one after another: whoever has opened it has it still
        tasks = [
            Watch(batch, tuple(run.path for run in shard), tuple(run.digest for run in shard))
            for shard in shards for batch in batches
        ]  # fmt: skip
        found: list[list[Arrays]] = [[] for _ in batches]
        for place, (task, one) in enumerate(zip(tasks, self._done(tasks), strict=True)):
            found[place % len(batches)].append(one)
            self.report(len(task.candidates.values) * sum(run.rows for run in shards[place // len(batches)]))
        events, clean_rows, rows = (sum(getattr(run, n) for run in runs) for n in ("events", "clean_rows", "rows"))
        return Tally(stacked([_added(parts) for parts in found]), events, clean_rows, rows)

    def flown(self, values: NDArray[np.float64]) -> Arrays | None:
        """All of the candidates on all plants; None without plants."""
        if self.flights is None:
            return None
        # a rollout of many steps is as much work as a run of that many rows
        size = max(LANES, BATCH * PIECE_ROWS // max(PIECE_ROWS, self.flights.steps) // LANES * LANES)
        tasks = [
            Fly(self.candidates(values[i : i + size]), self.flights, self.reference)
            for i in range(0, len(values), size)
        ]
        found = []
        for task, one in zip(tasks, self._done(tasks), strict=True):
            found.append(one)
            self.report(len(task.candidates.values) * self.flights.steps)
        return stacked(found)

    def _done(self, tasks: Sequence[Watch | Fly]) -> Iterator[Arrays]:
        keys = [task.key for task in tasks]
        kept = [key in self.ledger for key in keys]
        fresh = self.workers.map(task for task, known in zip(tasks, kept, strict=True) if not known)
        for key, known in zip(keys, kept, strict=True):
            found = self.ledger.get(key) if known else None
            if found is None:
                found = next(fresh)
                self.ledger.add(key, found)
            yield found


def _shards(runs: Sequence[RunFacts]) -> Iterator[list[RunFacts]]:
    """Runs in groups of about as many rows, in order; the same whoever works."""
    shard: list[RunFacts] = []
    rows = 0
    for run in runs:
        if shard and rows + run.rows > PIECE_ROWS:
            yield shard
            shard, rows = [], 0
        shard.append(run)
        rows += run.rows
    if shard:
        yield shard


def _added(parts: Sequence[Arrays]) -> Arrays:
    """The same candidates over further runs: sums, and the delays of further events."""
    found = {name: values.copy() for name, values in parts[0].items() if name != "delays"}
    for part in parts[1:]:
        for name, total in found.items():
            total += part[name]
    return {**found, "delays": np.concatenate([part["delays"] for part in parts], axis=1)}


def stacked(parts: Sequence[Arrays]) -> Arrays:
    """Further candidates over the same runs."""
    return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
