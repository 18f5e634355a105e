"""`lbw tune`: a guard's parameters chosen on some runs and judged on others."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lbw_sim.cli.options import (
    Anyway,
    Json,
    ManyTraces,
    Plugins,
    SkipBroken,
    load_guards,
    print_json,
    print_table,
    say_next,
    stages,
)
from lbw_sim.errors import TuneError
from lbw_sim.wording import counted, some, typed

if TYPE_CHECKING:
    from lbw_sim.tune import Tuned
    from lbw_sim.tune.files import Written

RUNS = "Which runs choose, which judge"
SEARCH = "Search"
FLY = "Simulated runs"


def tune(
    traces: ManyTraces,
    out: Annotated[Path, typer.Option("--out", "-o", help="The guard, as a TOML file; the rest is put beside it.")],
    guard: Annotated[
        str, typer.Option("--guard", "-g", help="Where the search starts: a preset's name or a TOML file.")
    ] = "default",
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="Search these alone: a path such as analyzer.spike_sd, a table, or a pattern; repeat.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option("--fix", help="Leave these alone, or set one: path=value; repeat.", rich_help_panel=SEARCH),
    ] = None,
    candidates: Annotated[
        int, typer.Option("--candidates", "-n", min=2, help="Guards to try.", rich_help_panel=SEARCH)
    ] = 2_048,
    search: Annotated[
        str,
        typer.Option("--search", help="sobol, random (needs no scipy) or cmaes.", rich_help_panel=SEARCH),
    ] = "sobol",
    halving: Annotated[
        bool,
        typer.Option(
            "--halving",
            help="Successive halving: a sixteenth of the runs first, the best quarter goes on.",
            rich_help_panel=SEARCH,
        ),
    ] = False,
    false_alarms: Annotated[
        float, typer.Option(min=0.0, help="Budget per 10,000 clean rows.", rich_help_panel=SEARCH)
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, the search and the bootstrap.")] = 0,
    split_by: Annotated[
        str | None,
        typer.Option(
            "--split-by",
            help="run, family, provenance:KEY, or a pattern searched in the run id. Default: family where there are "
            "three or more, else run.",
            rich_help_panel=RUNS,
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", help="A group that judges and does not choose; repeat.", rich_help_panel=RUNS),
    ] = None,
    held_out_share: Annotated[
        float, typer.Option(help="Share of the groups that judge, where none is named.", rich_help_panel=RUNS)
    ] = 0.3,
    plant: Annotated[
        list[str] | None,
        typer.Option("--plant", help="Also fly every guard on this plant; repeat.", rich_help_panel=FLY),
    ] = None,
    schedule: Annotated[
        list[str], typer.Option("--schedule", help="As of lbw simulate; repeat.", rich_help_panel=FLY)
    ] = ["cosine:0.01"],
    steps: Annotated[int, typer.Option(help="Steps of constant and cosine.", rich_help_panel=FLY)] = 400,
    warmup: Annotated[int, typer.Option(help="Warm-up steps of cosine.", rich_help_panel=FLY)] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the noise.", rich_help_panel=FLY)] = 10,
    executor: Annotated[
        str, typer.Option("--executor", help="local, or ray: a cluster by RAY_ADDRESS, else workers here.")
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Threads, or Ray workers started here.")] = None,
    ledger: Annotated[
        Path | None,
        typer.Option("--ledger", help="Keeps what was measured, so that a killed search goes on. Default: OUT.ledger"),
    ] = None,
    study: Annotated[
        Path | None, typer.Option("--study", help="Also keep an Optuna study: .db for SQLite, else a journal.")
    ] = None,
    plugin: Plugins = None,
    anyway: Anyway = False,
    skip_broken: SkipBroken = False,
    as_json: Json = False,
) -> None:
    """Search a guard's parameters on labelled runs; judge the best on runs that were held out.

    Writes OUT, and beside it OUT with .tune.json (what it was tuned on, and all scores) and .pareto.csv. Without plants
    sensor and analyzer are searched; with them the policy too. Next comes lbw backtest, on runs that this has not seen.
    """
    from lbw_sim.simulate import PlantSpec
    from lbw_sim.tune import executor as make_executor
    from lbw_sim.tune import tune as tune_guard
    from lbw_sim.tune import write
    from lbw_sim.tune.study import keep_study, require_optuna

    (start,) = load_guards([guard], plugin)
    if not out.resolve().parent.is_dir():
        raise TuneError(f"{out}: its folder is not there, so the guard could not be written")
    if study is not None:
        require_optuna()
    plants = [PlantSpec.load(one) for one in plant or ()]
    rates = {}
    if plants:
        from lbw_sim.cli.simulate import rates_of

        rates = dict(rates_of(text, steps, warmup) for text in schedule)
    ledger = ledger or out.with_suffix(".ledger")
    try:
        with stages() as progress:
            tuned = tune_guard(
                traces, start, candidates=candidates, search=search, halving=halving, only=only or (), fix=fix or (),
                split_by=split_by, held_out=held_out or (), held_out_share=held_out_share,
                false_alarms_per_10k=false_alarms, plants=plants, schedules=rates, seeds=seeds, seed=seed,
                name=out.stem, ledger=ledger, workers=make_executor(executor, workers), plugins=plugin or (),
                anyway=anyway, skip_broken=skip_broken, skip_unusable=True, progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        print(f"lbw: interrupted; the same command goes on with what {ledger} holds", file=sys.stderr)
        raise typer.Exit(130) from None
    command = shlex.join(["lbw", *sys.argv[1:]])
    about = {"search": search, "halving": halving, "seed": seed}
    made = write(tuned, out, command=command, about=about)
    if study is not None:
        keep_study(tuned, study, name=out.stem)
    _report(tuned, command, made, as_json, about)


def _report(tuned: Tuned, command: str, made: Written, as_json: bool, about: dict[str, Any]) -> None:
    if as_json:
        from lbw_sim.tune.files import facts

        print_json(facts(tuned, command, about))
    else:
        _print(tuned)
    for warning in tuned.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not as_json:
        typer.echo(f"{made.guard}: guard {tuned.spec.fingerprint}; the whole account is in {made.facts}.")
        typer.echo(f"{made.front}: {counted(len(tuned.front) - 1, 'guard')} of the Pareto set, to choose from instead.")
        say_next(f"lbw backtest {typed(made.guard)} TRACES", when="Next, on runs that this has not seen")


def _print(tuned: Tuned) -> None:
    from lbw_sim.score import DETECTION_COLUMNS, Column
    from lbw_sim.tune.tuning import JUDGED

    hidden = ("guard", "group", "runs", "latched_share")
    columns = [Column("side", "runs"), Column("guard", "guard")]
    columns += [column for column in DETECTION_COLUMNS if column.key not in hidden]
    columns.append(Column("energy", "energy\nper 1k", ".1f"))
    rows: list[dict[str, Any]] = []
    for side, place, found in (("held out", 0, tuned.held_out), ("tuning", 1, tuned.tuning)):
        rows += [
            {**row, "side": side, "energy": tuned.energy[str(row["guard"])][place]}
            for row in found
            if row["group"] == "all" and (side == "held out" or row["guard"] == "tuned")
        ]
    print_table(rows, columns)
    split = tuned.split
    typer.echo(
        f"{counted(len(split.tuning), 'run')} chose, {counted(len(split.held_out), 'judges', 'judge')} (split by "
        f"{split.by}; held out: {some(split.held_out_groups, 8)})."
    )
    typer.echo(f"The result is the line held out; that of tuning flatters. Rule: {tuned.rule}.")
    changed = tuned.start.differences(tuned.spec)
    print_table(
        [{"path": path, "start": before, "tuned": now} for path, before, now in changed],
        [Column("path", f"changed, of {len(tuned.space.dimensions)}"), Column("start", tuned.start.name, "g"),
         Column("tuned", "tuned", "g")],
    )  # fmt: skip
    if tuned.simulated is not None:
        flown = tuned.simulated
        shown = ("final_loss", "lost", "harm", "left_range")
        print_table(
            [
                {"guard": name, **{key: getattr(flown, key)[place] for key in shown}}
                for place, name in enumerate(JUDGED)
            ],
            [Column("guard", f"simulated,\n{counted(flown.runs, 'run')}"),
             Column("final_loss", "final loss,\nmean", ".4f"), Column("lost", "lost", "d"),
             Column("harm", "harm to\nhealthy", ".4f"),
             Column("left_range", "left\nrange", "d")],
        )  # fmt: skip
        for name, (mean, low, high) in (("start", flown.against_start), ("never", flown.against_never)):
            typer.echo(f"tuned ends {mean:+.4f} nats ({low:+.4f} to {high:+.4f}) against {name}, with fresh noise.")
        typer.echo("What a plant says is as good as its calibration; it never is evidence for a real run.")
