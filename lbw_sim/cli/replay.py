"""`lbw replay`: what guards would have decided on recorded runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import (
    Guards,
    Json,
    Plugins,
    Traces,
    load_guards,
    load_traces,
    print_json,
    print_table,
    watched,
)
from lbw_sim.errors import LbwError


def replay(
    traces: Traces,
    guard: Guards = ["default"],
    plugin: Plugins = None,
    alarms: Annotated[
        Path | None,
        typer.Option("--alarms", help="Write {run: [[first step, last step], …]} of one guard to this JSON file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run recorded telemetry through guards and list their alarms (open loop).

    An alarm is a run of steps in an unsafe regime. The losses are those that were recorded: nothing here says what they
    would have been under these guards.
    """
    from lbw_sim.replay import replay as replay_trace
    from lbw_sim.score import Column, find_alarms, unsafe_rows
    from lbw_sim.values import Regime

    specs = load_guards(guard, plugin)
    if alarms is not None and len(specs) != 1:
        raise LbwError(f"--alarms writes the alarms of one guard, and --guard names {len(specs)}")
    rows, spans = [], {}
    runs = load_traces(traces)
    work = [(spec, trace) for spec in specs for trace in runs]
    for spec, trace in watched(work, "replaying"):
        decided = replay_trace(trace, spec).columns
        steps = decided["step"].tolist()
        found = find_alarms(unsafe_rows(decided["regime"]))
        spans[trace.run_id] = [[steps[first], steps[last]] for first, last in found]
        rows.append(
            {
                "guard": spec.name,
                "run": trace.run_id,
                "steps": len(steps),
                "alarms": len(found),
                "first": steps[found[0].start_row] if found else None,
                "regime": Regime(int(decided["regime"][found[0].start_row])).name if found else None,
                "unsafe_steps": int(unsafe_rows(decided["regime"]).sum()),
                "requested_energy": float(decided["energy"][-1]) if steps else 0.0,
            }
        )
    if alarms is not None:
        alarms.write_text(json.dumps(spans, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(rows)
        return
    columns = [
        Column("guard", "guard"), Column("run", "run"), Column("steps", "steps", "d"), Column("alarms", "alarms", "d"),
        Column("first", "first,\nstep", "d"), Column("regime", "as"), Column("unsafe_steps", "unsafe\nsteps", "d"),
        Column("requested_energy", "energy\nasked for", ".1f"),
    ]  # fmt: skip
    print_table(rows, columns)
