"""`lbw report`: recorded runs as one HTML page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lbw_sim.cli.options import Plugins, SkipBroken, check_output, leaving_out, load_by_id, load_guards, stages
from lbw_sim.errors import LbwError
from lbw_sim.wording import counted, typed

if TYPE_CHECKING:
    from lbw_sim.guard import GuardSpec
    from lbw_sim.trace.importers import PassedOver

MOST_LISTED = 10
"""Files that were not imported, named on standard error."""


def report(
    traces: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of traces, runs' folders or Parquet files; paths, or URIs: s3://… Or the folder of one lbw "
            "stress."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    import_: Annotated[
        list[str] | None,
        typer.Option("--import", help="First import this file or folder of logs, as lbw import does; repeat."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", help="With --import: keep the imported traces in this folder.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="With --import: JSON file of hand labels, as lbw import takes.")
    ] = None,
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
    skip_broken: SkipBroken = False,
    plugin: Plugins = None,
    details: Annotated[int, typer.Option(min=0, help="Runs that get a section of their own.")] = 12,
    moments: Annotated[int, typer.Option(min=0, help="Alarms and missed events shown close up in each of these.")] = 4,
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
    labelled, recall against false alarms. Replayed guards saw recorded losses: nothing here is a gain. Of a folder that
    lbw stress wrote it shows the suite: findings, tables, sensitivity to the learning rate, ranks.
    """
    from lbw_sim.guard import GuardSpec
    from lbw_sim.replay import usable_runs
    from lbw_sim.report import ReportOptions, build_report, showable, write_report
    from lbw_sim.report.build import FALLBACK
    from lbw_sim.score.stress_results import is_suite

    check_output(out)
    suites = [Path(path) for path in traces or () if is_suite(Path(path))]
    if suites:
        _suite(suites, list(traces or ()), bool(import_), out, title)
        return
    if not traces and not import_:
        raise LbwError("say which traces: lbw report FOLDER, or lbw report --import FOLDER_OF_LOGS")
    if not import_ and (keep is not None or labels is not None):
        raise LbwError("--keep and --labels go with --import, which is not there")
    shown = load_guards([guard] if guard else [], plugin)
    rules = _rules(rule)
    with ExitStack() as stack:
        folders, passed_over = list(traces or ()), []
        if import_:
            folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lbw-report-")))
            with stages() as progress:
                passed_over = _import(import_, folder, labels, progress)
            folders.append(str(folder))
        found, left_out = load_by_id(folders, run, skip_broken)
        guard_shown = shown[0] if shown else None
        chosen, unusable = showable(list(found.values()), guard_shown, GuardSpec.load(FALLBACK))
        leaving_out(unusable, len(found))
        progress = stack.enter_context(stages())
        sweeps = {}
        if curves:
            from lbw_sim.cli.score import sweep

            swept = {spec.name: spec for spec in shown or load_guards(["default"], None)}
            swept |= rules if rule is not None else {}
            for done, (name, spec) in enumerate(swept.items(), start=1):
                # as the page's own figures of a rule: from the runs that it can work on
                if seen := usable_runs(chosen, [spec])[0]:
                    sweeps[name] = sweep(spec, seen)
                progress("sweeping limits", done, len(swept))
        made = build_report(
            chosen,
            ReportOptions(
                guard=guard_shown, rules=rules, details=details, moments=moments, title=title,
                grid=grid, environment=include_environment, sweeps=sweeps, passed_over=len(passed_over),
                left_out=left_out, unusable=unusable,
            ),
            progress,
        )  # fmt: skip
    write_report(made, out)
    for item in passed_over[:MOST_LISTED]:
        typer.echo(f"not imported: {item.path}: {item.reason}", err=True)
    if len(passed_over) > MOST_LISTED:
        typer.echo(f"not imported: {len(passed_over) - MOST_LISTED} more files; lbw import lists them", err=True)
    size = len(made.html.encode("utf-8", "replace")) / 1e6
    typer.echo(f"{counted(len(made.runs), 'run')}, {len(made.detailed)} of them in detail: {out} ({size:.1f} MB)")


def _suite(suites: list[Path], named: list[str], imports: bool, out: Path, title: str) -> None:
    """The page of a stress suite, which is a page of its own."""
    from lbw_sim.report import Report, write_report
    from lbw_sim.report.suite import suite_page
    from lbw_sim.score.stress_results import read_suite

    if len(named) > 1 or imports:
        raise LbwError(
            f"{suites[0]} is a stress suite, and a page shows one suite and nothing else; its runs' own page is "
            f"lbw report {typed(suites[0] / 'traces')}"
        )
    suite = read_suite(suites[0])
    write_report(Report(suite_page(suite, title), (), ()), out)
    typer.echo(f"stress suite {suite.facts.preset}, {counted(suite.facts.finished_runs, 'run')}: {out}")


def _rules(names: list[str] | None) -> dict[str, GuardSpec]:
    """Guards by a name of their own; every preset where none is named."""
    from lbw_sim.guard.spec import preset_names

    rules: dict[str, GuardSpec] = {}
    for spec in load_guards(preset_names() if names is None else names, None):
        name = spec.name
        while name in rules:
            name += "'"
        rules[name] = spec
    return rules


def _import(
    sources: list[str], folder: Path, labels: Path | None, progress: Callable[[str, int, int], None]
) -> list[PassedOver]:
    """Import logs into a folder of traces; what was passed over."""
    from lbw_sim.trace.importers import import_path
    from lbw_sim.trace.importers.hand_labels import read_hand_labels

    known = read_hand_labels(labels) if labels is not None else None
    passed_over: list[PassedOver] = []
    for source in sources:
        found = import_path(
            source, folder, labels=known, progress=lambda done, total: progress("importing", done, total)
        )
        passed_over += found.passed_over
        if not found.runs:
            reasons = "; ".join(f"{item.path}: {item.reason}" for item in found.passed_over[:3])
            raise LbwError(f"no run was found in {source}{f' ({reasons})' if reasons else ''}")
    return passed_over
