"""`lbw score`: who saw what, how late, how often wrongly."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import (
    Guards,
    Json,
    Plugins,
    Traces,
    load_guards,
    load_traces,
    print_json,
    print_table,
    stages,
    until_interrupted,
)

RANDOM_PER_10K = 10.0
"""Alarms per 10,000 rows of the reference that knows nothing."""


def score(
    traces: Traces,
    guard: Guards = ["default", "zscore", "cusum", "never"],
    plugin: Plugins = None,
    families: Annotated[bool, typer.Option("--families", help="A row for every family of runs as well.")] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Draw recall against false alarms into this SVG or PNG file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap over runs.")] = 0,
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
        RunScore,
        detection_rows,
        match,
        oracle_alarms,
        random_alarms,
    )

    specs = load_guards(guard, plugin)
    runs = load_traces(traces)
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
    if not oracle:
        raise typer.Exit(130)
    scores |= references
    rows = detection_rows(scores, seed=seed, families=families)
    if figure is not None:
        from lbw_sim.plots import detection_figure, save

        save(detection_figure(scores, seed=seed), figure)
    if as_json:
        print_json(rows)
    else:
        shown = [row for row in rows if families or row["group"] == "all"]
        columns = [column for column in DETECTION_COLUMNS if families or column.key not in ("group", "runs")]
        print_table(shown, columns)
        typer.echo(f"{len(oracle)} runs. recall: labelled events seen. baited: alarms on benign changes.")
        typer.echo("latched: clean rows spent in alarm. 95 %: bootstrap over runs.")
        typer.echo(f"oracle knows the labels; random raises {RANDOM_PER_10K:g} alarms per 10,000 rows, anywhere.")
