"""`lbw score`: who saw what, how late, how often wrongly."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lbw_sim.cli.options import (
    Anyway,
    Guards,
    Json,
    Plugins,
    SkipBroken,
    Traces,
    check_figure,
    load_guards,
    load_usable,
    print_json,
    print_table,
    say_next,
    stages,
    tell_limits,
    until_interrupted,
)
from lbw_sim.wording import counted, typed

if TYPE_CHECKING:
    from lbw_sim.guard import GuardSpec
    from lbw_sim.score import RunScore
    from lbw_sim.trace import Trace

RANDOM_PER_10K = 10.0
"""Alarms per 10,000 rows of the reference that knows nothing."""
LIMIT_FACTORS = tuple(2.0 ** (step / 4) for step in range(-8, 9))
"""What a curve multiplies a guard's limits with."""


def score(
    traces: Traces,
    guard: Guards = ["default", "zscore", "cusum", "never"],
    plugin: Plugins = None,
    families: Annotated[bool, typer.Option("--families", help="A row for every family of runs as well.")] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Draw recall against false alarms into this SVG, PNG or PDF file.")
    ] = None,
    curves: Annotated[
        bool, typer.Option("--curves", help="With --figure: a curve per guard, all its limits x 0.25 to x 4.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap over runs.")] = 0,
    anyway: Anyway = False,
    skip_broken: SkipBroken = False,
    as_json: Json = False,
) -> None:
    """Replay guards over labelled runs and judge their alarms.

    Recall and delay over labelled events, false alarms per 10,000 clean rows, alarms on benign shifts, and the control
    that each guard asks for; 95 % intervals by bootstrap over runs. Detection only: not what acting would have gained.
    JSON also holds VUS-PR and affiliation precision and recall: means over runs.
    """
    from lbw_sim.replay import replay_many
    from lbw_sim.score import (
        DETECTION_COLUMNS,
        detection_rows,
        match,
        oracle_alarms,
        random_alarms,
    )

    if figure is not None:
        check_figure(figure)
    specs = load_guards(guard, plugin)
    loaded = load_usable([traces], specs, skip_broken)
    runs = loaded.runs
    tell_limits(runs, "score", anyway)
    scores: dict[str, list[RunScore]] = {spec.name: [] for spec in specs}
    references: dict[str, list[RunScore]] = {"oracle": [], "random": []}
    oracle, chance = references.values()
    with stages() as progress:
        work = replay_many(
            runs, specs, progress=lambda done, total: progress("scoring", done, total), max_alarms=sys.maxsize
        )
        # not strict: an interrupted sweep has fewer results than there are runs
        for place_of_run, (found, trace) in enumerate(zip(until_interrupted(work), runs, strict=False)):
            about = (trace.labels, found.steps, trace.run_id)
            for place, spec in enumerate(specs):
                scores[spec.name].append(match(found.alarms(place), *about, ranges=as_json))
            oracle.append(match(oracle_alarms(*about), *about, ranges=as_json))
            guesses = random_alarms(len(found.steps), per_10k=RANDOM_PER_10K, seed=seed + place_of_run)
            chance.append(match(guesses, *about, ranges=as_json))
    scores |= references
    rows = detection_rows(scores, seed=seed, families=families)
    if figure is not None:
        from lbw_sim.plots import detection_figure, save

        sweeps = {spec.name: sweep(spec, runs) for spec in specs if curves}
        save(detection_figure(scores, seed=seed, sweeps=sweeps), figure)
    if as_json:
        left_out = [one._asdict() for one in loaded.unusable]
        print_json([row | {"left_out": left_out} for row in rows])
    else:
        shown = [row for row in rows if families or row["group"] == "all"]
        columns = [column for column in DETECTION_COLUMNS if families or column.key not in ("group", "runs")]
        print_table(shown, columns)
        loaded.tell()
        typer.echo(f"{counted(len(oracle), 'run')}. recall: labelled events seen. baited: alarms on benign changes.")
        typer.echo("latched: clean rows spent in alarm. 95 %: bootstrap over runs.")
        if not any(trace.labels for trace in runs):
            typer.echo("None of these runs is labelled: recall is unknown, and every row counts as clean.")
        typer.echo(f"oracle knows the labels; random raises {RANDOM_PER_10K:g} alarms per 10,000 rows, anywhere.")
        if not any(trace.labels for trace in runs):
            say_next(f"lbw label {typed(traces)} --propose", when="A start with labels")


def sweep(spec: GuardSpec, runs: Sequence[Trace]) -> list[list[RunScore]]:
    """The runs' scores at each of `LIMIT_FACTORS`."""
    from lbw_sim.replay import replay_many
    from lbw_sim.score import match

    specs = [spec.with_limits_times(factor) for factor in LIMIT_FACTORS]
    settings: list[list[RunScore]] = [[] for _ in specs]
    for found, trace in zip(replay_many(runs, specs, max_alarms=sys.maxsize), runs, strict=True):
        for place, scored in enumerate(settings):
            scored.append(match(found.alarms(place), trace.labels, found.steps, trace.run_id))
    return settings
