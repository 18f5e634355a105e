"""`lbw show`: what a trace or a guard spec is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import Json, load_traces, print_json


def show(
    what: Annotated[str, typer.Argument(help="A traces folder, a run, a Parquet file, a guard preset or a TOML file.")],
    as_json: Json = False,
) -> None:
    """Show what a trace holds and how it was recorded, or a guard's full spec."""
    from lbw_sim.guard import GuardSpec, preset_names

    path = Path(what)
    if what in preset_names() or path.suffix == ".toml":
        spec = GuardSpec.load(what)
        if as_json:
            print_json({"name": spec.name, "fingerprint": spec.fingerprint, **spec.tables})
        else:
            typer.echo(f"# fingerprint {spec.fingerprint}\n{spec.to_toml()}", nl=False)
        return

    from rich.console import Console

    from lbw_sim.score import CONTROL_COLUMNS, control_rows, control_summary, rich_table
    from lbw_sim.trace import Trace

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
            "guard": meta.spec.name,
            "fingerprint": meta.fingerprint,
            "channels": list(trace.channels),
            "labels": [label._asdict() for label in trace.labels],
            "provenance": dict(meta.provenance),
        }

    runs = load_traces(path)
    if as_json:
        print_json([facts(trace) for trace in runs])
        return
    if len(runs) == 1:
        for name, value in facts(runs[0]).items():
            items = value if isinstance(value, list) else value.items() if isinstance(value, dict) else None
            if items is None or name == "channels":
                typer.echo(f"{name:12}  {', '.join(runs[0].channels) if items is not None else value}")
                continue
            typer.echo(name)
            for item in items:
                line = (
                    " ".join(f"{k}={v}" for k, v in item.items() if v not in (None, ""))
                    if isinstance(item, dict)
                    else (f"{item[0]}: {item[1]}")
                )
                typer.echo(f"    {line}")
    summaries = {trace.run_id: control_summary(trace.to_numpy()) for trace in runs}
    Console().print(rich_table(control_rows(summaries), CONTROL_COLUMNS))
    if any(trace.meta.mode == "shadow" for trace in runs):
        typer.echo(
            "In shadow runs scale, control energy and LR mass are what the guard asked for; nothing was applied."
        )
