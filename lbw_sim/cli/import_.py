"""`lbw import`: runs that were logged elsewhere, as traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import Json, print_json
from lbw_sim.errors import LbwError, unknown_name


def import_(
    source: Annotated[str, typer.Argument(help="What the files are: csv (CSV, TSV, JSON lines or Parquet).")],
    files: Annotated[list[Path], typer.Argument(help="One file per run; its name becomes the run id.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of traces to add to.")] = Path("traces"),
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="JSON file of hand labels: {run id: [{start_step, end_step, kind}]}."),
    ] = None,
    step: Annotated[str | None, typer.Option(help="Column that holds the step.")] = None,
    loss: Annotated[str | None, typer.Option(help="Column that holds the training loss.")] = None,
    lr: Annotated[str | None, typer.Option(help="Column that holds the learning rate.")] = None,
    grad_norm: Annotated[str | None, typer.Option(help="Column that holds the gradient norm.")] = None,
    update_norm: Annotated[str | None, typer.Option(help="Column that holds the update norm.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Column that holds the tokens of one step.")] = None,
    elapsed_s: Annotated[str | None, typer.Option(help="Column that holds the time in seconds.")] = None,
    as_json: Json = False,
) -> None:
    """Import logged runs as traces that can be replayed, scored and drawn.

    Columns are found by their usual names, or named by options. No guard watched these runs: they are recorded under
    the guard `never`, in shadow, with imported=1 in their provenance.
    """
    from rich.progress import track

    from lbw_sim.trace.importers.csv import import_csv, run_id_from
    from lbw_sim.trace.importers.hand_labels import read_hand_labels

    if source != "csv":
        raise LbwError(unknown_name("importer", source, ["csv"]))
    named = {
        "step": step, "loss": loss, "lr": lr, "grad_norm": grad_norm, "update_norm": update_norm, "tokens": tokens,
        "elapsed_s": elapsed_s,
    }  # fmt: skip
    columns = {name: column for name, column in named.items() if column is not None}
    ids = [run_id_from(file) for file in files]
    twice = sorted({run_id for run_id in ids if ids.count(run_id) > 1})
    if twice:
        raise LbwError(f"two files give the run id {', '.join(twice)}; rename one of them")
    known = read_hand_labels(labels) if labels is not None else {}
    if known and not set(ids) & set(known):
        raise LbwError(f"{labels} labels none of these runs; it knows {', '.join(sorted(known)[:20])}")
    imported = [
        import_csv(file, out, columns=columns, labels=known.get(run_id))
        for file, run_id in track(list(zip(files, ids, strict=True)), "importing", transient=True, disable=as_json)
    ]
    if as_json:
        print_json([{**item._asdict(), "path": str(item.path)} for item in imported])
        return
    for item in imported:
        for suspicion in item.suspicions:
            typer.echo(f"{item.run_id}: {suspicion}")
    typer.echo(f"{len(imported)} runs, {sum(item.rows for item in imported)} rows in {out}. Next: lbw score {out}")
