"""`lbw label`: what is known to have happened in recorded runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lbw_sim.cli.options import (
    Json,
    SkipBroken,
    Traces,
    check_figure,
    load_by_id,
    print_json,
    print_table,
    watched,
)
from lbw_sim.trace.labels import KINDS
from lbw_sim.wording import counted

if TYPE_CHECKING:
    from lbw_sim.trace import Label


def label(
    traces: Traces,
    run: Annotated[list[str] | None, typer.Option("--run", help="Only these run ids; repeat.")] = None,
    propose: Annotated[
        bool, typer.Option("--propose", help="Show beside them what the whole run's loss suggests; writes nothing.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write the proposals that overlap no label; labels there are not touched.")
    ] = False,
    add: Annotated[
        tuple[str, int, int] | None,
        typer.Option(
            "--add",
            metavar="KIND START END",
            help=f"Add a hand label to one run; steps, inclusive. Kinds: {', '.join(KINDS)}.",
        ),
    ] = None,
    confidence: Annotated[str, typer.Option(help="Of the added label: high, medium, or low (not scored).")] = "high",
    note: Annotated[str, typer.Option(help="Words to keep with the added label.")] = "",
    remove: Annotated[
        int | None, typer.Option("--remove", help="Remove one run's label by its number; never an injected one.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Draw one run with its labels into this SVG, PNG or PDF file.")
    ] = None,
    skip_broken: SkipBroken = False,
    as_json: Json = False,
) -> None:
    """Show, propose, add and remove the labels of recorded runs.

    Proposals read the loss of the whole run, ahead as well as back. They can't tell a change of data from a divergence.
    """
    import numpy as np

    from lbw_sim.errors import LbwError
    from lbw_sim.score import Column, hindsight
    from lbw_sim.trace import Label, write_labels

    if figure is not None:
        check_figure(figure)
    found, _ = load_by_id([traces], run, skip_broken)
    chosen = list(found.values())
    if len(chosen) != 1 and (add is not None or remove is not None or figure is not None):
        raise LbwError(f"--add, --remove and --figure are for one run, not {len(chosen)}; say which by --run")

    shown: list[dict[str, object]] = []
    changes: list[str] = []
    for trace in watched(chosen, "labelling") if propose or write else chosen:
        labels, columns = list(trace.labels), None
        if remove is not None:
            if not 1 <= remove <= len(labels):
                raise LbwError(f"{trace.run_id} has no label {remove}; it has {len(labels)}, numbered from 1")
            if labels[remove - 1].source == "injected":
                raise LbwError(f"label {remove} of {trace.run_id} was injected: it is exact, and stays")
            changes.append(f"removed from {trace.run_id}: {_words(labels.pop(remove - 1))}")
        if add is not None:
            kind, start, end = add
            columns = trace.to_numpy()
            if not len(columns["step"]):
                raise LbwError(f"{trace.run_id} holds no row: there is no step to label")
            first, last = int(columns["step"][0]), int(columns["step"][-1])
            if end < first or start > last:
                raise LbwError(f"{trace.run_id} holds steps {first} to {last}; the label is of {start} to {end}")
            labels.append(Label(start, end, kind, confidence, "hand", None, note))
            changes.append(f"added to {trace.run_id}: {_words(labels[-1])}")
        proposals: tuple[Label, ...] = ()
        if propose or write:
            columns = trace.to_numpy() if columns is None else columns
            # a loss that was not measured is no nan that the run had
            measured = ~np.isnan(columns["loss"]) | (columns["nonfinite"] == 1.0)
            proposals = hindsight.propose(columns["step"][measured], columns["loss"][measured])
        if write:
            fresh = hindsight.unknown_so_far(proposals, labels)
            labels += fresh
            changes += [f"added to {trace.run_id}: {_words(item)}" for item in fresh]
            proposals = tuple(item for item in proposals if item not in fresh)
        if labels != list(trace.labels):
            write_labels(_folder_of(traces, trace.run_id), labels)
        if figure is not None:
            from lbw_sim.plots import run_figure, save, stretches_given_up

            given_up = stretches_given_up(trace.to_numpy("all"))
            drawn = [*labels, *proposals]
            save(
                run_figure(trace.to_numpy(), drawn, trace.run_id, mode=trace.meta.mode, given_up=given_up), figure
            )  # fmt: skip
        shown += [
            {"run": trace.run_id, "number": number, **item._asdict()}
            for number, item in [*enumerate(labels, start=1), *((None, item) for item in proposals)]
        ]

    if as_json:
        print_json({"labels": shown, "changes": changes})
        return
    print_table(shown, [
        Column("run", "run"), Column("number", "#", "d"), Column("kind", "kind"), Column("start_step", "start", "d"),
        Column("end_step", "end", "d"), Column("peak_step", "peak", "d"), Column("confidence", "confidence"),
        Column("source", "source"), Column("note", "note"),
    ])  # fmt: skip
    if any(row["number"] is None for row in shown):
        typer.echo("Without a number: proposed, not written.")
    for change in changes:
        typer.echo(change)
    typer.echo(
        f"{counted(len(chosen), 'run')}, {counted(sum(row['number'] is not None for row in shown), 'label')}, "
        f"{counted(len(changes), 'change')}"
    )


def _words(item: Label) -> str:
    return f"{item.kind} in steps {item.start_step}-{item.end_step}, {item.confidence} confidence, {item.source}"


def _folder_of(traces: str, run_id: str) -> Path:
    """The folder of a run that was found at or below `traces`. Raises LbwError."""
    from lbw_sim.errors import LbwError
    from lbw_sim.trace.layout import local_path, run_folder_name
    from lbw_sim.trace.store import run_paths

    top = local_path(traces, "labels are written")
    if top.is_file():
        return top.parent
    folders = [folder for path in run_paths(top) if (folder := Path(path)).name == run_folder_name(run_id)]
    if len(folders) != 1:
        raise LbwError(f"{traces} holds run {run_id!r} {len(folders)} times; name the folder of the one you mean")
    return folders[0]
