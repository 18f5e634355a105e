"""`lbw plot`: figures of recorded runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import (
    Plugins,
    SkipBroken,
    Traces,
    check_output,
    leaving_out,
    load_by_id,
    load_guards,
    watched,
)
from lbw_sim.wording import counted


def plot(
    traces: Traces,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures.")] = Path("figures"),
    run: Annotated[list[str] | None, typer.Option("--run", help="Only these run ids; repeat.")] = None,
    guard: Annotated[
        str | None, typer.Option("--guard", "-g", help="Draw what this guard decides in replay, not what was recorded.")
    ] = None,
    plugin: Plugins = None,
    skip_broken: SkipBroken = False,
    file_format: Annotated[str, typer.Option("--format", help="svg, png or pdf.")] = "svg",
) -> None:
    """Draw one figure per run (loss, regimes, scale, control energy, events) and one that compares them."""
    from lbw_sim.errors import LbwError, unknown_name
    from lbw_sim.plots import comparison_figure, run_figure, save, stretches_given_up
    from lbw_sim.replay import replay as replay_trace
    from lbw_sim.replay import usable_runs

    if file_format not in ("svg", "png", "pdf"):
        raise LbwError(unknown_name("figure format", file_format, ("svg", "png", "pdf")))
    spec = load_guards([guard], plugin)[0] if guard else None
    check_output(out / f"comparison.{file_format}")
    chosen, _ = load_by_id([traces], run, skip_broken)
    runs, unusable = usable_runs(list(chosen.values()), [spec] if spec is not None else [])
    leaving_out(unusable, len(chosen))
    drawn = {}
    for trace in watched(runs, "drawing"):
        columns, given_up = trace.to_numpy(), stretches_given_up(trace.to_numpy("all"))
        title = f"{trace.run_id}: guard {trace.meta.guard_name}"
        if spec is not None:
            columns = columns | replay_trace(trace, spec).columns
            title = f"{trace.run_id}: guard {spec.name}, replayed"
            given_up = ()  # the recorded acts are not this guard's
        mode = trace.meta.mode if spec is None else "shadow"
        drawn[trace.run_id] = columns
        figure = run_figure(columns, trace.labels, title, mode=mode, given_up=given_up)
        save(figure, out / f"{trace.run_id}.{file_format}")
    if len(drawn) > 1:
        save(comparison_figure(drawn), out / f"comparison.{file_format}")
    typer.echo(f"{counted(len(drawn) + (len(drawn) > 1), 'figure')} in {out}")
