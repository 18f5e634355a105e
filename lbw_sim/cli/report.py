"""`lbw report`: recorded runs as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lbw_sim.cli.options import Plugins, load_guards, load_traces, stages
from lbw_sim.errors import LbwError, unknown_name

if TYPE_CHECKING:
    from lbw_sim.guard import GuardSpec
    from lbw_sim.trace import Trace


def report(
    traces: Annotated[
        list[Path] | None, typer.Argument(help="Folders of traces, runs' folders, or Parquet files.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    run: Annotated[list[str] | None, typer.Option("--run", help="Only these run ids; repeat.")] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            "--guard", "-g", help="Show what this guard decides in replay. Without: what was recorded, and the preset "
            "default on runs that no guard watched.",
        ),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option("--rule", help="Replay only these beside it; repeat. Without: every preset.")
    ] = None,
    plugin: Plugins = None,
    details: Annotated[int, typer.Option(min=0, help="Runs that get a section of their own.")] = 12,
    curves: Annotated[
        bool, typer.Option("--curves", help="A curve for the guard and each --rule: all limits x 0.25 to x 4.")
    ] = False,
    grid: Annotated[
        str | None,
        typer.Option(
            help="Learning-rate grid from run ids: a regular expression with the group (?P<peak_lr>...), and if you "
            "like architecture, method, seed. Without: from what the traces say.",
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "",
    include_environment: Annotated[
        bool, typer.Option("--include-environment", help="Also show host, platform, paths and the like.")
    ] = False,
) -> None:  # fmt: skip
    """Write recorded runs as one HTML file: no script, no network, light and dark, prints well.

    Per run the loss with regimes, alarms, scale and control energy, what the guard saw around each alarm, what every
    published rule would have said, budgets, provenance and warnings; over all runs a comparison and, where events are
    labelled, recall against false alarms. Replayed guards saw recorded losses: nothing here is a gain.
    """
    from lbw_sim.guard.spec import preset_names
    from lbw_sim.report import ReportOptions, build_report, write_report

    found: dict[str, Trace] = {}
    for path in traces or ():
        for trace in load_traces(path):
            if trace.run_id in found:
                raise LbwError(f"run {trace.run_id!r} comes twice; a report needs one of each id")
            found[trace.run_id] = trace
    if not found:
        raise LbwError("say which traces: lbw report FOLDER")
    for wanted in run or ():
        if wanted not in found:
            raise LbwError(unknown_name("run", wanted, found))
    chosen = [trace for run_id, trace in found.items() if not run or run_id in run]
    shown = load_guards([guard] if guard else [], plugin)
    rules: dict[str, GuardSpec] = {}
    for spec in load_guards(preset_names() if rule is None else rule, None):
        name = spec.name
        while name in rules:
            name += "'"
        rules[name] = spec
    sweeps = {}
    with stages() as progress:
        if curves:
            from lbw_sim.cli.score import sweep

            wanted_specs = {spec.name: spec for spec in [*load_guards([] if guard else ["default"], None), *shown]}
            wanted_specs |= rules if rule is not None else {}
            for done, (name, spec) in enumerate(wanted_specs.items(), start=1):
                sweeps[name] = sweep(spec, chosen)
                progress("sweeping limits", done, len(wanted_specs))
        made = build_report(
            chosen,
            ReportOptions(
                guard=shown[0] if shown else None, rules=rules, details=details, title=title, grid=grid,
                environment=include_environment, sweeps=sweeps,
            ),
            progress,
        )  # fmt: skip
    write_report(made, out)
    size = len(made.html.encode("utf-8", "replace")) / 1e6
    typer.echo(f"{len(made.runs)} runs, {len(made.detailed)} of them in detail: {out} ({size:.1f} MB)")
