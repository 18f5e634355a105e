"""`lbw compare`: two guards on the same runs, and where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import (
    Json,
    ManyTraces,
    Plugins,
    SkipBroken,
    check_figure,
    load_by_id,
    load_guards,
    print_json,
    print_table,
    stages,
)
from lbw_sim.wording import counted, some


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A guard: preset name or TOML file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other guard.")],
    traces: ManyTraces,
    plugin: Plugins = None,
    gap: Annotated[
        int, typer.Option(min=0, help="Differences with at most this many equal rows between them are one place.")
    ] = 10,
    most: Annotated[int, typer.Option(min=1, help="Places listed; --json has all of them.")] = 40,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Draw the runs that differ into this SVG, PNG or PDF file.")
    ] = None,
    skip_broken: SkipBroken = False,
    as_json: Json = False,
) -> None:
    """Replay two guards over the same runs and list every place where they decide differently (open loop).

    Also says which parameters differ. Exit code as of diff: 0 the same decisions on every row, 1 some differ, 2 an
    error. Both guards are shown the losses that were recorded: a difference is one of decisions, not of outcomes.
    """
    from lbw_sim.replay import NotCompared, RunDifference, compare_guards
    from lbw_sim.score import Column

    if figure is not None:
        check_figure(figure)
    spec_a, spec_b = load_guards([a, b], plugin)
    names = (spec_a.name, spec_b.name) if spec_a.name != spec_b.name else (f"{spec_a.name} (A)", f"{spec_b.name} (B)")
    found, _ = load_by_id(traces, None, skip_broken)
    with stages() as progress:
        work = compare_guards(
            list(found.values()), spec_a, spec_b, gap_rows=gap,
            progress=lambda done, total: progress("replaying", done, total),
        )  # fmt: skip
        results = list(work)
    compared = [item for item in results if isinstance(item, RunDifference)]
    left_out = [item for item in results if isinstance(item, NotCompared)]
    differing = [item for item in compared if item.episodes]
    parameters = [{"parameter": path, "a": ours, "b": theirs} for path, ours, theirs in spec_a.differences(spec_b)]
    places = sum(len(item.episodes) for item in compared)
    if figure is not None and differing:
        from lbw_sim.plots import save
        from lbw_sim.plots.difference import RunRows, difference_figure

        rows = [
            RunRows(item.run_id, found[item.run_id].to_numpy(), item.alarms,
                    [(episode.first_row, episode.last_row) for episode in item.episodes])
            for item in differing
        ]  # fmt: skip
        save(difference_figure(names, rows), figure)
    if as_json:
        print_json(
            {
                "guards": [{"name": s.name, "fingerprint": s.fingerprint} for s in (spec_a, spec_b)],
                "parameters": parameters,
                "runs_compared": len(compared),
                "runs_differing": len(differing),
                "places": places,
                "rows": sum(len(item.steps) for item in compared),
                "rows_differing": sum(item.rows_differing for item in compared),
                "not_compared": [item._asdict() for item in left_out],
                "runs": [
                    {
                        "run_id": item.run_id, "rows": len(item.steps), "rows_differing": item.rows_differing,
                        "alarms": [len(alarms) for alarms in item.alarms], "requested_energy": item.requested_energy,
                        "episodes": [episode._asdict() for episode in item.episodes],
                    }
                    for item in differing
                ],
            }
        )  # fmt: skip
        raise typer.Exit(1 if places else 0)
    if parameters:
        # of components that are not the same, their names say more than their parameters
        other = [str(row["parameter"]).removesuffix("name") for row in parameters if _is_name(row["parameter"])]
        shown = [
            {**row, "a": _word(row["a"]), "b": _word(row["b"])}
            for row in parameters
            if _is_name(row["parameter"]) or not str(row["parameter"]).startswith(tuple(other))
        ]
        print_table(shown, [Column("parameter", "parameter"), Column("a", names[0]), Column("b", names[1])])
    else:
        typer.echo("The two specs are the same, to the last parameter.")
    listed = [
        {
            "run": item.run_id,
            "steps": f"{e.first_step}-{e.last_step}" if e.first_step != e.last_step else f"{e.first_step}",
            "rows": e.rows,
            "kind": e.kind,
            "a": _side(e.regimes[0], e.lowest_scale[0]),
            "b": _side(e.regimes[1], e.lowest_scale[1]),
        }
        for item in compared
        for e in item.episodes
    ]
    if listed:
        columns = [
            Column("run", "run"), Column("steps", "steps"), Column("rows", "rows", "d"),
            Column("kind", "differ in what"), Column("a", names[0]), Column("b", names[1]),
        ]  # fmt: skip
        kinds = {"acts": "it does", "names": "it sees", "reasons": "the reason"}
        print_table([{**row, "kind": kinds[str(row["kind"])]} for row in listed[:most]], columns)
        if len(listed) > most:
            typer.echo(f"{counted(len(listed) - most, 'further place')}: --most {len(listed)} lists them")
    for missing in dict.fromkeys(item.missing for item in left_out):
        mine = [item.run_id for item in left_out if item.missing == missing]
        typer.echo(f"Not compared, for want of {', '.join(missing)}: {some(mine, 5)}")
    rows_differing = sum(item.rows_differing for item in compared)
    if places:
        typer.echo(
            f"Decisions change at {counted(places, 'place')} in {len(differing)} of {counted(len(compared), 'run')} "
            f"({rows_differing} of {counted(sum(len(item.steps) for item in compared), 'row')})."
        )
        raise typer.Exit(1)
    typer.echo(f"The same decisions on every row of {counted(len(compared), 'run')}.")


def _is_name(parameter: object) -> bool:
    return str(parameter).endswith(".name")


def _word(value: object) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _side(regimes: tuple[str, ...], scale: float) -> str:
    names = ", ".join(name.lower() for name in regimes)
    return f"{names}; scale down to {scale:.2f}" if scale < 1.0 else names
