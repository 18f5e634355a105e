"""`lbw import`: runs that were logged elsewhere, as traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import Json, print_json, say_next, stages
from lbw_sim.wording import counted, typed

MOST_LINES = 30


def _list_sources(wanted: bool) -> None:
    if wanted:
        from lbw_sim.trace.importers import importers

        for name, importer in importers().items():
            typer.echo(f"{name:16}  {importer.reads}")
        raise typer.Exit


def import_(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Files, folders of logs, or wandb://entity/project/run.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of traces to add to.")] = Path("traces"),
    source: Annotated[str | None, typer.Option("--source", help="Read as this, whatever it looks like.")] = None,
    sources: Annotated[
        bool, typer.Option("--sources", callback=_list_sources, is_eager=True, help="List what can be read.")
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="JSON file of hand labels: {run id: [{start_step, end_step, kind}]}."),
    ] = None,
    step: Annotated[str | None, typer.Option(help="Column that holds the step.")] = None,
    loss: Annotated[str | None, typer.Option(help="Column, or tag, that holds the training loss.")] = None,
    lr: Annotated[str | None, typer.Option(help="Column that holds the learning rate.")] = None,
    grad_norm: Annotated[str | None, typer.Option(help="Column that holds the gradient norm.")] = None,
    update_norm: Annotated[str | None, typer.Option(help="Column that holds the update norm.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Column that holds the tokens of one step.")] = None,
    elapsed_s: Annotated[str | None, typer.Option(help="Column that holds the time in seconds.")] = None,
    as_json: Json = False,
) -> None:
    """Import logged runs as traces that can be replayed, scored and drawn.

    The kind of a file is recognised by its content: TensorBoard, Hugging Face, W&B, MLflow, trackio, Lightning, CSV,
    JSON lines, Parquet, and the text logs of nanoGPT, modded-nanogpt, llm.c, Megatron-LM, torchtitan, OLMo-core and
    MLPerf. A folder is walked. Columns are found by their usual names, or named by options. No guard watched these
    runs: they are recorded under the guard `never`, in shadow, and what their logs cannot show is said.
    """
    from lbw_sim.errors import LbwError
    from lbw_sim.trace.importers import Imported, PassedOver, import_path
    from lbw_sim.trace.importers.hand_labels import read_hand_labels
    from lbw_sim.trace.limitations import by_text

    named = {
        "step": step, "loss": loss, "lr": lr, "grad_norm": grad_norm, "update_norm": update_norm, "tokens": tokens,
        "elapsed_s": elapsed_s,
    }  # fmt: skip
    columns = {name: column for name, column in named.items() if column is not None}
    known = read_hand_labels(labels) if labels is not None else {}
    runs: list[Imported] = []
    passed: list[PassedOver] = []
    with stages() as progress:
        for number, path in enumerate(paths, start=1):
            found = import_path(
                path, out, source=source, columns=columns, labels=known,
                progress=None if len(paths) > 1 else lambda done, total: progress("importing", done, total),
            )  # fmt: skip
            runs += found.runs
            passed += found.passed_over
            if len(paths) > 1:
                progress("importing", number, len(paths))
    if labels is not None:
        # among the logs, most likely; it was read, though not as one of them
        passed = [item for item in passed if not any(_same(Path(path, item.path), labels) for path in paths)]
    labelled = sum(len(known.get(run.run_id, ())) for run in runs)
    if known and not {run.run_id for run in runs} & set(known):
        typer.echo(f"lbw: {labels} labels none of these runs; it knows {', '.join(sorted(known)[:20])}", err=True)
    if as_json:
        print_json(
            {
                "runs": [{**run._asdict(), "path": str(run.path)} for run in runs],
                "passed_over": [item._asdict() for item in passed],
            }
        )
    else:
        for line in by_text((run.run_id, run.suspicions) for run in runs):
            typer.echo(f"note: {line}")
        for item in passed[:MOST_LINES]:
            typer.echo(f"not imported: {item.path}: {item.reason}")
        if len(passed) > MOST_LINES:
            typer.echo(f"not imported: {len(passed) - MOST_LINES} more files; --json lists them all")
        kinds = ", ".join(sorted({run.importer for run in runs}))
        typer.echo(
            f"{counted(len(runs), 'run')}, {counted(sum(run.rows for run in runs), 'row')}"
            + (f", {counted(labelled, 'label')}" if known else "")
            + f" in {out}"
            + (f" ({kinds})" if runs else "")
        )
        if runs:
            say_next(f"lbw replay {typed(out)}")
    if not runs:
        raise LbwError(f"no run was found in {', '.join(paths)}")


def _same(path: Path, other: Path) -> bool:
    return path.exists() and path.samefile(other)
