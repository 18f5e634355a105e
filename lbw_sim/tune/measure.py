"""The pieces that a search is cut into: some candidates on some runs, or on some simulated runs.

A piece is all that a worker needs: numbers, names and paths. What it gives does not depend on who works on it, or when,
or how many at once; so it can be kept under the hash of what was asked, and asked again after a worker has died.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

import lbw_sim
from lbw_sim.errors import TraceError
from lbw_sim.guard import GuardSpec
from lbw_sim.replay import Unusable, replay_many
from lbw_sim.score import DetectionCounts, RunScore, match
from lbw_sim.score.detection import never_alarms
from lbw_sim.simulate import PlantSpec, drawn_noise, rollouts
from lbw_sim.simulate.rollout import Engine
from lbw_sim.tune.runs import RunFacts, describe, load, use_plugins
from lbw_sim.values import Action, Noise

Arrays = dict[str, NDArray[Any]]
Given = TypeVar("Given", covariant=True)


class Task(Protocol[Given]):
    """Something that can be done anywhere."""

    def do(self) -> Given: ...


class Candidates(NamedTuple):
    """Guards that differ from one in some parameters."""

    start_toml: str
    names: tuple[str, ...]
    """Dotted paths, one per column."""
    whole: tuple[bool, ...]
    """Which of them are whole numbers."""
    values: NDArray[np.float64]
    """[candidates, names]."""
    plugins: tuple[str, ...] = ()

    def specs(self) -> list[GuardSpec]:
        """The guards."""
        use_plugins(self.plugins)
        start = GuardSpec.from_toml(self.start_toml)
        return [
            start.with_changes({n: int(v) if w else v for n, w, v in zip(self.names, self.whole, row, strict=True)})
            for row in self.values.tolist()
        ]

    def about(self) -> list[object]:
        """Everything that their decisions depend on."""
        tables = GuardSpec.from_toml(self.start_toml).tables
        return [lbw_sim.__version__, tables, self.names, self.values.tolist(), [_content(p) for p in self.plugins]]


class Watch(NamedTuple):
    """Candidates along recorded runs: open loop."""

    candidates: Candidates
    runs: tuple[str, ...]
    """Paths."""
    digests: tuple[str, ...]
    """Of telemetry and labels."""

    @property
    def key(self) -> str:
        """Equal exactly when the same is asked. Where the runs lie does not count."""
        return _hash(["watch", *self.candidates.about(), self.digests])

    def do(self) -> Arrays:
        """Per candidate, added up over the runs; delays of every event, run after run."""
        wanted = self.candidates.specs()
        # a lone one would be compiled anew, without lanes
        specs = wanted * 2 if len(wanted) == 1 else wanted
        loaded = [run for path in self.runs if (run := load(path)) is not None]
        sums = {name: np.zeros(len(specs), np.int64) for name in ("false_alarms", "baited", "latched_rows", "alarms")}
        energy, delays = np.zeros(len(specs)), [np.empty((len(specs), 0))]
        # small pieces too: there are many of them, and the kernel is there
        replays = replay_many(
            [run.columns for run in loaded], specs, threads=1, max_alarms=sys.maxsize, engine="compiled"
        )
        for run, found in zip(loaded, replays, strict=True):
            counts = run.judge.count(found.alarm_rows, found.alarm_starts)
            for name, total in sums.items():
                total += getattr(counts, name)
            energy += found.requested_energy
            delays.append(counts.delays_steps)
        arrays = {**sums, "energy": energy, "delays": np.concatenate(delays, axis=1)}
        return {name: values[: len(wanted)] for name, values in arrays.items()}


class Flights(NamedTuple):
    """Simulated runs: every plant, schedule and seed."""

    plants: tuple[str, ...]
    """TOML texts."""
    schedules: tuple[tuple[str, tuple[float, ...]], ...]
    """Name and learning rate per step."""
    first_seed: int
    seeds: int

    @property
    def runs(self) -> int:
        """How many runs one guard flies."""
        return len(self.plants) * len(self.schedules) * self.seeds

    @property
    def steps(self) -> int:
        """Steps of all these runs together."""
        return len(self.plants) * self.seeds * sum(len(rates) for _, rates in self.schedules)


class Flown(NamedTuple):
    """What came of some guards. Arrays are [guards, plants × schedules × seeds]."""

    final_loss: NDArray[np.float64]
    """Expected loss of the last step; of a run that diverged or was cut, that of untrained weights, or its last one if
    that is higher. nats"""
    lost: NDArray[np.bool_]
    """Diverged, cut or damaged for good."""
    energy: NDArray[np.float64]
    left_range: NDArray[np.bool_]


def fly(guards: Sequence[GuardSpec], flights: Flights, *, threads: int | None, engine: Engine) -> Flown:
    """Fly guards, closed loop; `threads` and `engine` as of `rollouts`. Raises ChannelError, SimulateError."""
    plants = [PlantSpec.from_toml(text) for text in flights.plants]
    schedules = {name: np.array(rates) for name, rates in flights.schedules}
    longest = max(len(rates) for rates in schedules.values())
    noise = drawn_noise(flights.seeds, longest, flights.first_seed)
    flown = rollouts(plants, guards, schedules, noise, threads=threads, engine=engine)
    untrained = np.array([untrained_loss(text) for text in flights.plants])[:, None, None, None]
    ended = flown.ended != "completed"
    final = np.where(np.isfinite(flown.final_loss), flown.final_loss, untrained)
    final = np.where(ended, np.maximum(final, untrained), final)

    def by_guard(values: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(values, 1, 0).reshape(len(guards), flights.runs)

    return Flown(by_guard(final), by_guard(ended | flown.dead), by_guard(flown.energy), by_guard(flown.left_range))


@cache
def untrained_loss(plant_toml: str) -> float:
    """The loss that a plant shows before its first update; nats."""
    plant = PlantSpec.from_toml(plant_toml).build()
    # nothing was learned: no learning rate, and the update left out
    return float(plant.step(plant.init(), Action(0.0, 1.0), Noise(0.0, 0.0))[1].expected_loss)


class Fly(NamedTuple):
    """Candidates on plants: closed loop."""

    candidates: Candidates
    flights: Flights
    reference: tuple[float, ...]
    """Final loss of every run without a guard; nan where that run was lost, and so is no healthy one."""

    @property
    def key(self) -> str:
        """Equal exactly when the same is asked."""
        return _hash(["fly", *self.candidates.about(), *self.flights, self.reference])

    def do(self) -> Arrays:
        """Per candidate, means over the simulated runs."""
        flown = fly(self.candidates.specs(), self.flights, threads=1, engine="compiled")
        return {
            "final_loss": row_means(flown.final_loss),
            "harm": harm(flown.final_loss, np.array(self.reference)),
            "lost": flown.lost.sum(axis=1),
            "left_range": flown.left_range.sum(axis=1),
            "flown_energy": row_means(flown.energy),
        }


def harm(final_loss: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean loss, in nats, by which healthy runs end higher than without a guard; a gain on one makes up for no other.

    >>> harm(np.array([[2.0, 2.2, 9.0]]), np.array([2.1, 2.1, np.nan])).round(3).tolist()
    [0.05]
    """
    healthy = ~np.isnan(reference)
    if not healthy.any():
        return np.full(len(final_loss), np.nan)
    return row_means(np.maximum(0.0, final_loss[:, healthy] - reference[healthy]))


def row_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of every row, whatever else stands in the array: numpy adds up in another order for another shape."""
    total = np.zeros(len(values))
    for column in values.T:
        total = total + column
    return np.asarray(total / values.shape[1])


class Describe(NamedTuple):
    """One run, looked at before the search."""

    path: str

    def do(self) -> RunFacts | Unusable | TraceError | None:
        """None: it holds no recording. A TraceError: it cannot be read; given, not raised, as there may be others."""
        try:
            return describe(self.path)
        except TraceError as error:
            return error


class JudgedRun(NamedTuple):
    """Some guards on one run, as the score's tables take it."""

    scores: tuple[RunScore, ...]
    """One per guard, and one of a guard without any alarm; counts only."""
    energy: tuple[float, ...]


class Judge(NamedTuple):
    """Whole guards on one run, judged by `match` itself."""

    guards: tuple[str, ...]
    """TOML texts."""
    run: str
    plugins: tuple[str, ...] = ()

    def do(self) -> JudgedRun:
        """One score per guard."""
        use_plugins(self.plugins)
        specs = [GuardSpec.from_toml(text) for text in self.guards]
        run = load(self.run)
        if run is None:
            nothing = RunScore("", (), (), DetectionCounts())
            return JudgedRun((nothing,) * (len(specs) + 1), (0.0,) * (len(specs) + 1))
        (found,) = replay_many([run.columns], specs, threads=1, max_alarms=sys.maxsize, engine="compiled")
        alarms: list[Sequence[tuple[int, int]]] = [
            *(found.alarms(place) for place in range(len(specs))),
            never_alarms(),
        ]
        scores = [match(listed, run.labels, found.steps, run.run_id) for listed in alarms]
        return JudgedRun(
            tuple(score._replace(events=(), alarms=()) for score in scores), (*found.requested_energy.tolist(), 0.0)
        )


@cache
def _content(plugin: str) -> str:
    """Hash of a user's components: their version may have been forgotten."""
    path = Path(plugin)
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _hash(about: object) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
