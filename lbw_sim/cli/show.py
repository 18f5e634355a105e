"""`lbw show`: what a trace or a guard spec is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import Json, SkipBroken, load_traces, print_json, print_table
from lbw_sim.wording import printable


def show(
    what: Annotated[str, typer.Argument(help="A traces folder, a run, a Parquet file, a guard preset or a TOML file.")],
    skip_broken: SkipBroken = False,
    as_json: Json = False,
) -> None:
    """Show what a trace holds and how it was recorded, or a guard's full spec."""
    from lbw_sim.errors import LbwError, unknown_name
    from lbw_sim.guard import GuardSpec, preset_names

    if what in preset_names() or what.endswith(".toml"):
        spec = GuardSpec.load(what)
        if as_json:
            print_json({"name": spec.name, "fingerprint": spec.fingerprint, **spec.tables})
        else:
            typer.echo(f"# fingerprint {spec.fingerprint}\n{spec.to_toml()}", nl=False)
        return

    from lbw_sim.score import CONTROL_COLUMNS, Column, control_rows, control_summary
    from lbw_sim.trace import Trace
    from lbw_sim.trace.ancestry import ancestry_rows

    def facts(trace: Trace) -> dict[str, object]:
        meta = trace.meta
        return {
            "run_id": trace.run_id,
            "rows": trace.table().num_rows,
            "segments": len(trace.segments),
            "ended": meta.ended,
            "lost_rows": sum(segment.meta.lost_rows or 0 for segment in trace.segments),
            "mode": meta.mode,
            "delay_steps": meta.delay_steps,
            "guard": meta.guard_name,
            "fingerprint": meta.fingerprint,
            "channels": list(trace.channels),
            "limitations": [limitation.text for limitation in trace.limitations],
            "labels": [label._asdict() for label in trace.labels],
            "provenance": dict(meta.provenance),
        }

    if "/" not in what and not Path(what).exists():
        raise LbwError(f"no traces folder here and {unknown_name('guard preset or TOML file', what, preset_names())}")
    runs = load_traces([what], skip_broken)
    if as_json:
        print_json([facts(trace) for trace in runs])
        return
    if len(runs) == 1:
        (trace,) = runs
        control = control_summary(trace.to_numpy(), trace.to_numpy("all"))
        for name, value in (facts(trace) | control._asdict()).items():
            if name in ("labels", "limitations", "provenance"):
                continue
            text = (
                ", ".join(value) if isinstance(value, list) else f"{value:.4g}" if isinstance(value, float) else value
            )
            typer.echo(f"{name:20}  {printable(str(text))}")
        for label in trace.labels:
            typer.echo(
                f"{'label':20}  {label.kind} in steps {label.start_step}-{label.end_step}, {label.confidence} "
                f"confidence, {label.source}{f': {printable(label.note)}' if label.note else ''}"
            )
        for name, value in trace.meta.provenance.items():
            if value is not None:
                typer.echo(f"{printable(name):20}  {printable(str(value))}")
        for limitation in trace.limitations:
            typer.echo(f"{'limitation':20}  {printable(limitation.text)}")
    else:
        summaries = [(trace.run_id, control_summary(trace.to_numpy())) for trace in runs]
        shown = [column for column in CONTROL_COLUMNS if column.key not in ("mean_scale", "rollbacks")]
        print_table(control_rows(summaries), shown)
        typer.echo("energy: sum of (1 - scale)^2. active: steps with scale below 1. switches: changes of regime.")
        typer.echo("stress: steps in an unsafe regime.")
        if forked := ancestry_rows(runs):
            columns = [
                Column("trunk", "trunk"), Column("fork_step", "forked\nat step", "d"), Column("branch", "branch"),
                Column("last_loss", "loss at\nthe end", ".4f"), Column("difference", "minus\noff", "+.4f"),
            ]  # fmt: skip
            print_table(forked, columns)
            typer.echo("loss at the end: mean training loss over the last tenth of a branch's steps.")
    if any(trace.meta.mode == "shadow" for trace in runs):
        typer.echo(
            "In shadow runs scale, control energy and LR mass are what the guard asked for; nothing was applied."
        )
