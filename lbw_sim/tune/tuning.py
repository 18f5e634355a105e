"""Tuning: a guard's parameters chosen on some runs, and judged on others.

The score on the runs that chose is never the result: it is shown beside the one on the runs that were held out, with a
warning where the two part. Recorded runs say what a guard would have seen and asked for; what acting does, only
plants are asked, and only as far as they go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.backtest import refuse_repeats
from lbw_sim.errors import BrokenRunsError, TraceError, TuneError
from lbw_sim.guard import GuardSpec
from lbw_sim.replay import Unusable, replay_many, unusable_words
from lbw_sim.replay.compiled import LANES
from lbw_sim.replay.usable import why_unusable
from lbw_sim.score import FALSE_ALARM_BUDGET_PER_10K, RunScore, detection_rows
from lbw_sim.simulate import PlantSpec, drawn_noise, rollouts
from lbw_sim.trace.limitations import refuse
from lbw_sim.tune.caveats import simulated_warnings, warnings_of
from lbw_sim.tune.choose import Objectives, Rule, pareto
from lbw_sim.tune.dispatch import Dispatcher, Tally, stacked
from lbw_sim.tune.executors import Executor, Local
from lbw_sim.tune.ledger import Ledger
from lbw_sim.tune.measure import (
    Arrays,
    Describe,
    Flights,
    Judge,
    JudgedRun,
    fly,
    harm,
    row_means,
)
from lbw_sim.tune.runs import RunFacts, find_runs, plugins_are_loaded
from lbw_sim.tune.search import search as searcher
from lbw_sim.tune.space import Space, search_space
from lbw_sim.tune.split import Split, in_order, rungs, split
from lbw_sim.wording import counted

Progress = Callable[[str, int, int], None]

KEEP = 4
"""Successive halving keeps one candidate in so many."""
HARM_LIMIT = 0.01
"""Most that healthy simulated runs may lose, in nats."""
HELD_OUT_SEED = 1_000_000
"""First seed of the noise that judges."""
RESAMPLES = 2_000
JUDGED = ("tuned", "start", "never")
"""The guards that stand in the result, in the order of a `JudgedRun`."""


class Simulated(NamedTuple):
    """How guards flew with noise that chose nothing. One entry per guard of `JUDGED`."""

    runs: int
    lost_without: int
    """Runs that are lost without a guard."""
    final_loss: tuple[float, ...]
    """Mean, nats."""
    lost: tuple[int, ...]
    harm: tuple[float, ...]
    """nats; nan without a healthy run."""
    against_never: tuple[float, float, float]
    """Tuned minus never: mean, and 95 % interval by bootstrap over seeds. Below 0: the tuned guard ends lower."""
    against_start: tuple[float, float, float]
    """Tuned minus start."""
    left_range: tuple[int, ...]
    """Runs that went where the plant was not calibrated."""


class Tuned(NamedTuple):
    """What a search found, and what that is worth."""

    spec: GuardSpec
    start: GuardSpec
    rule: str
    split: Split
    candidates: int
    """Guards measured on every run of the tuning side, the start included."""
    tried: int
    """Guards measured at all."""
    held_out: list[dict[str, object]]
    """Detection rows, as `detection_rows` gives them, of tuned, start and never on the runs that were held out. The
    result."""
    tuning: list[dict[str, object]]
    """The same on the runs that chose: flattering."""
    energy: dict[str, tuple[float, float]]
    """Guard -> control energy asked for per 1,000 rows: held out, tuning."""
    simulated: Simulated | None
    warnings: tuple[str, ...]
    front: tuple[dict[str, Any], ...]
    """The Pareto set on the tuning runs, the recommended guard first, then by the rule: objectives and parameters."""
    space: Space
    objectives: Objectives
    """Of every candidate that was measured on every run of the tuning side."""
    values: NDArray[np.float64]
    """Their parameters, [candidates, dimensions]."""


def tune(
    traces: Iterable[str | Path],
    start: GuardSpec,
    *,
    candidates: int = 2_048,
    search: str = "sobol",
    halving: bool = False,
    only: Iterable[str] = (),
    fix: Iterable[str] = (),
    split_by: str | None = None,
    held_out: Sequence[str] = (),
    held_out_share: float = 0.3,
    false_alarms_per_10k: float = FALSE_ALARM_BUDGET_PER_10K,
    plants: Sequence[PlantSpec] = (),
    schedules: Mapping[str, NDArray[np.float64]] | None = None,
    seeds: int = 10,
    seed: int = 0,
    name: str = "tuned",
    ledger: Path | None = None,
    workers: Executor | None = None,
    plugins: Iterable[str | Path] = (),
    anyway: bool = False,
    skip_broken: bool = False,
    skip_unusable: bool = False,
    progress: Progress | None = None,
) -> Tuned:
    """Search a guard's parameters on recorded, labelled runs, and judge the best on runs that were put aside.

    `traces`: folders, runs' folders or files, local or as `pyarrow.fs` URIs. `candidates`: guards to try, the start
    included. `plants`, with `schedules` (name -> learning rate per step) and `seeds`: also fly every candidate, closed
    loop. `ledger`: a file of what was measured; with it a search that was killed goes on where it was. `workers`: see
    `executor`; the result does not depend on it. `plugins` have to be loaded in this process already.
    `progress`: called with stage, done and total.

    Raises TuneError, also for runs that hold no row or not what the guard needs, unless `skip_unusable`, which leaves
    them out and warns; TraceError, also for runs whose way of logging rules a score out, unless `anyway`, and for runs
    that cannot be read: all of them at once, unless `skip_broken`, which leaves them out and warns; SpecError;
    SimulateError.
    """
    own = tuple(str(Path(plugin).absolute()) for plugin in plugins)
    plugins_are_loaded(own)
    progress = progress or (lambda stage, done, total: None)
    space = search_space(start, flown=bool(plants), only=only, fix=fix)
    flights = _flights(space.start, plants, schedules, seeds)
    if candidates < 2:
        raise TuneError(f"{counted(candidates, 'candidate is', 'candidates are')} no search; give 2 or more")
    looking = searcher(search, space.start_unit, candidates - 1, seed)
    if halving and search == "cmaes":
        raise TuneError("successive halving drops candidates before they are ranked, and cmaes has to rank all of them")
    with closing(workers or Local()) as executor, Ledger(ledger) as measured:
        facts, unusable, broken = _described(space.start, executor, find_runs(traces), skip_broken, progress)
        left_out = unusable_words(unusable)
        if unusable and not (skip_unusable and facts):
            raise TuneError(
                f"guard {space.start.name!r} cannot be tuned on {len(unusable)} of "
                f"{counted(len(facts) + len(unusable), 'run')}: {'; '.join(left_out)}"
            )
        records = ((run.run_id, run.telemetry_digest) for run in facts)
        refuse_repeats(records, TuneError, "one could choose what the other judges")
        if not anyway:
            refuse([(run.run_id, run.provenance) for run in facts], "score")
        parted = split(sorted(facts, key=lambda r: r.run_id), by=split_by, held_out=held_out, share=held_out_share,
                       seed=seed)  # fmt: skip
        progress("compiling", 0, 1)
        prepare(space.start, flights)
        progress("compiling", 1, 1)

        runs = in_order(parted.tuning, seed)
        stops = rungs(len(runs), halving, KEEP)
        whole = _work(candidates, runs, stops, flights)
        worked = 0

        def report(steps: int) -> None:
            nonlocal worked
            worked += steps
            # in candidates: nobody wants to read of a thousand million steps
            progress("tuning", min(candidates, round(candidates * worked / whole)), candidates)

        dispatcher = Dispatcher(space, executor, measured, flights, own, report)
        rule = Rule(false_alarms_per_10k, HARM_LIMIT)
        values, tally, flown, tried = _searched(dispatcher, looking, rule, runs, stops)
        found = tally.objectives(flown)
        order = rule.order(found)
        dispatcher.report = lambda steps: None
        chosen, chosen_found = _simplified(dispatcher, rule, runs, values[order[0]], found.take(order[:1]), progress)
        spec = space.start.with_changes(space.changes(chosen), name)
        guards = (spec.to_toml(), space.start.to_toml())
        judged = []
        for run in executor.map(Judge(guards, run.path, own) for run in (*parted.held_out, *parted.tuning)):
            judged.append(run)
            progress("judging", len(judged), len(facts))
    out, chose = judged[: len(parted.held_out)], judged[len(parted.held_out) :]
    held_out_rows, tuning_rows = _rows(out, seed), _rows(chose, seed)
    simulated = None if flights is None else _simulated([spec, space.start, GuardSpec.load("never")], flights, seed)
    return Tuned(
        spec=spec,
        start=space.start,
        rule=rule.sentence(flights is not None),
        split=parted,
        candidates=len(values),
        tried=tried,
        held_out=held_out_rows,
        tuning=tuning_rows,
        energy={name: (_energy(out, place), _energy(chose, place)) for place, name in enumerate(JUDGED)},
        simulated=simulated,
        warnings=(
            *warnings_of(
                held_out_rows,
                tuning_rows,
                rule,
                kept=bool(rule.keeps(chosen_found)[0]),
                unchanged=spec.fingerprint == space.start.fingerprint,
            ),
            *(() if simulated is None else simulated_warnings(plants, simulated)),
            *(f"Left out, neither chose nor judged: {what}" for what in (*left_out, *broken)),
        ),
        front=tuple(_front(space, rule, found, values, chosen, chosen_found)),
        space=space,
        objectives=found,
        values=values,
    )


def prepare(start: GuardSpec, flights: Flights | None) -> None:
    """Compile, or load, what the search needs, before threads would do it at once. Warns where that is impossible."""
    columns: dict[str, NDArray[Any]] = {name: np.zeros(1) for name in ("loss", "lr", "nonfinite", *start.build().needs)}
    columns["step"] = np.arange(1)
    list(replay_many([columns], [start] * 2, threads=1, engine="compiled"))
    if flights is not None:
        short = flights._replace(seeds=2, schedules=tuple((n, rates[:1]) for n, rates in flights.schedules[:1]))
        plants = [PlantSpec.from_toml(text) for text in flights.plants]
        rollouts(plants, [start] * 2, {n: np.array(r) for n, r in short.schedules}, drawn_noise(2, 1), threads=1,
                 engine="compiled")  # fmt: skip


def _described(
    start: GuardSpec, executor: Executor, paths: Sequence[str], skip_broken: bool, progress: Progress
) -> tuple[list[RunFacts], list[Unusable], list[TraceError]]:
    """The runs that the guard can see, those that it cannot, and what is wrong with those that cannot be read.

    Raises TraceError; see `tune`.
    """
    guards = [(start.name, start.build())]
    facts: list[RunFacts] = []
    unusable: list[Unusable] = []
    broken: list[TraceError] = []
    for done, run in enumerate(executor.map(Describe(path) for path in paths), start=1):
        progress("reading", done, len(paths))
        if isinstance(run, TraceError):
            broken.append(run)
        elif isinstance(run, Unusable):
            unusable.append(run)
        elif run is not None and (why := why_unusable(run.rows, run.channels, guards)):
            unusable.append(Unusable(run.run_id, why))
        elif run is not None:
            facts.append(run)
    if broken and not (skip_broken and (facts or unusable)):
        raise broken[0] if len(paths) == 1 else BrokenRunsError(broken, len(paths))
    return facts, unusable, broken


def _flights(
    start: GuardSpec, plants: Sequence[PlantSpec], schedules: Mapping[str, NDArray[np.float64]] | None, seeds: int
) -> Flights | None:
    if not plants:
        return None
    if not schedules or seeds < 1:
        raise TuneError("plants need at least one schedule and one seed to be flown")
    if start.tables["envelope"]["max_rollbacks"] > 0:
        raise TuneError(
            f"guard {start.name!r} may roll back, and no plant can fly that: give --fix envelope.max_rollbacks=0, or "
            f"leave the plants out"
        )
    rates = tuple((name, tuple(map(float, lr))) for name, lr in schedules.items())
    return Flights(tuple(plant.to_toml() for plant in plants), rates, 0, seeds)


def _searched(
    dispatcher: Dispatcher, looking: Any, rule: Rule, runs: Sequence[RunFacts], stops: Sequence[int]
) -> tuple[NDArray[np.float64], Tally, Arrays | None, int]:
    """Values, and what was measured, of all candidates that came to the last rung; the start is the first."""
    values = dispatcher.space.start_values[None, :]
    tallies: list[tuple[NDArray[np.float64], Tally, Arrays | None]] = []
    tried = 0
    while True:
        points = looking.ask()
        if not len(points):
            break
        batch = dispatcher.space.values(points)
        # with the first batch, so that it shares its lanes
        batch = batch if tallies else np.vstack([values, batch])
        tried += len(batch)
        places, tally, begin = np.arange(len(batch)), None, 0
        for stop in stops:
            more = dispatcher.watched(batch[places], runs[begin:stop])
            tally = more if tally is None else tally.joined(more)
            begin = stop
            if stop != stops[-1]:
                kept = _best(rule.order(tally.objectives(None)))
                places, tally = places[kept], tally.take(kept)
        assert tally is not None
        flown = dispatcher.flown(batch[places])
        tallies.append((batch[places], tally, flown))
        ranks = np.empty(len(places), np.int64)
        ranks[rule.order(tally.objectives(flown))] = np.arange(len(places))
        own = len(places) - len(points)
        looking.tell(points, ranks[own:] if own >= 0 else ranks)
    flown_all = None if tallies[0][2] is None else stacked([f for _, _, f in tallies if f is not None])
    whole = tallies[0][1]._replace(counts=stacked([tally.counts for _, tally, _ in tallies]))
    return np.vstack([v for v, _, _ in tallies]), whole, flown_all, tried


def _best(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whom halving keeps: a quarter, in whole lanes, and the start whatever it is worth."""
    count = math.ceil(len(order) / KEEP / LANES) * LANES
    return np.array(sorted({0, *order[: max(count, 1)].tolist()}))


def _simplified(
    dispatcher: Dispatcher, rule: Rule, runs: Sequence[RunFacts], values: NDArray[np.float64], found: Objectives,
    progress: Progress,
) -> tuple[NDArray[np.float64], Objectives]:  # fmt: skip
    """Put back to the start, one after another, the parameters whose change buys nothing on the tuning runs.

    A parameter that these runs do not reach would otherwise keep a value that chance gave it. Nothing may get worse but
    the energy asked for, which the others buy.
    """
    start = dispatcher.space.start_values
    moved = int((values != start).sum())
    for turn in range(moved):
        progress("simplifying", turn, moved)
        places = np.flatnonzero(values != start)
        trials = np.repeat(values[None, :], len(places), axis=0)
        trials[np.arange(len(places)), places] = start[places]
        each = dispatcher.watched(trials, runs).objectives(dispatcher.flown(trials))
        within = rule.keeps(each) | ~rule.keeps(found)[0]
        over = np.nan_to_num(each.false_alarms_per_10k) > max(
            rule.false_alarms_per_10k, float(np.nan_to_num(found.false_alarms_per_10k[0]))
        )
        good = within & ~over
        for name in ("missed", "delay_steps", "final_loss", "harm"):
            own, their = np.nan_to_num(getattr(found, name)[0]), np.nan_to_num(getattr(each, name))
            good &= their <= own + (1e-4 if name in ("final_loss", "harm") else 0.0)
        if not good.any():
            break
        best = next(place for place in rule.order(each).tolist() if good[place])
        values, found = trials[best], each.take([best])
    progress("simplifying", moved, moved)
    return values, found


def _simulated(guards: Sequence[GuardSpec], flights: Flights, seed: int) -> Simulated:
    """The guards with other noise than that of the search."""
    fresh = flights._replace(first_seed=HELD_OUT_SEED + flights.first_seed)
    flown = fly(guards, fresh, threads=None, engine="auto")
    never = len(guards) - 1
    reference = np.where(flown.lost[never], np.nan, flown.final_loss[never])
    by_seed = flown.final_loss.reshape(len(guards), -1, fresh.seeds).mean(axis=1)
    drawn = np.random.default_rng((seed, 4)).integers(fresh.seeds, size=(RESAMPLES, fresh.seeds))

    def against(other: int) -> tuple[float, float, float]:
        difference = by_seed[0] - by_seed[other]
        low, high = np.quantile(difference[drawn].mean(axis=1), [0.025, 0.975])
        return float(difference.mean()), float(low), float(high)

    return Simulated(
        runs=fresh.runs,
        lost_without=int(flown.lost[never].sum()),
        final_loss=tuple(row_means(flown.final_loss).tolist()),
        lost=tuple(flown.lost.sum(axis=1).tolist()),
        harm=tuple(harm(flown.final_loss, reference).tolist()),
        against_never=against(never),
        against_start=against(1),
        left_range=tuple(flown.left_range.sum(axis=1).tolist()),
    )


def _rows(judged: Sequence[JudgedRun], seed: int) -> list[dict[str, object]]:
    scores: dict[str, Sequence[RunScore]] = {
        name: [run.scores[place] for run in judged] for place, name in enumerate(JUDGED)
    }
    return detection_rows(scores, seed=seed)


def _energy(judged: Sequence[JudgedRun], guard: int) -> float:
    rows = sum(run.scores[guard].counts.rows for run in judged)
    return 1_000.0 * math.fsum(run.energy[guard] for run in judged) / rows if rows else math.nan


def _front(
    space: Space, rule: Rule, found: Objectives, values: NDArray[np.float64], chosen: NDArray[np.float64],
    chosen_found: Objectives,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The recommended guard, and the Pareto set in the order of the rule."""
    front = pareto(found)
    members = [(chosen, chosen_found, 0)]
    members += [(values[front[place]], found, int(front[place])) for place in rule.order(found.take(front))]
    for number, (row, measured, place) in enumerate(members):
        objectives = {name: float(getattr(measured, name)[place]) for name in measured.used()}
        parameters = dict(zip((d.path for d in space.dimensions), _plain(space, row), strict=True))
        yield {"recommended": number == 0, **objectives, **parameters}


def _plain(space: Space, row: NDArray[np.float64]) -> list[float]:
    return [int(v) if d.info.integer else float(v) for d, v in zip(space.dimensions, row, strict=True)]


def _work(candidates: int, runs: Sequence[RunFacts], stops: Sequence[int], flights: Flights | None) -> float:
    """Candidate-steps of the whole search."""
    total, begin, left = 0.0, 0, candidates
    for stop in stops:
        total += left * sum(run.rows for run in runs[begin:stop])
        begin = stop
        if stop != stops[-1]:
            left = math.ceil(left / KEEP / LANES) * LANES
    return max(1.0, total + left * (0 if flights is None else flights.steps))
