"""`lbw replay`: what guards would have decided on recorded runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import (
    Guards,
    Json,
    Plugins,
    SkipBroken,
    Traces,
    check_output,
    load_guards,
    load_usable,
    print_json,
    print_table,
    stages,
    tell_limits,
    until_interrupted,
)
from lbw_sim.errors import LbwError
from lbw_sim.whole_file import write_whole


def replay(
    traces: Traces,
    guard: Guards = ["default"],
    plugin: Plugins = None,
    alarms: Annotated[
        Path | None,
        typer.Option("--alarms", help="Write {run: \\[\\[first step, last step], …]} of one guard to this JSON file."),
    ] = None,
    skip_broken: SkipBroken = False,
    as_json: Json = False,
) -> None:
    """Run recorded telemetry through guards and list their alarms (open loop).

    An alarm is a run of steps in an unsafe regime. The losses are those that were recorded: nothing here says what they
    would have been under these guards.
    """
    from lbw_sim.replay import replay_many
    from lbw_sim.score import Column
    from lbw_sim.values import Regime

    specs = load_guards(guard, plugin)
    if alarms is not None and len(specs) != 1:
        raise LbwError(f"--alarms writes the alarms of one guard, and --guard names {len(specs)}")
    if alarms is not None:
        check_output(alarms)
    loaded = load_usable([traces], specs, skip_broken)
    runs = loaded.runs
    tell_limits(runs, "replay")
    limits = {trace.run_id: [limitation.key for limitation in trace.limitations] for trace in runs}
    with stages() as progress:
        work = replay_many(
            runs, specs, progress=lambda done, total: progress("replaying", done, total), max_alarms=sys.maxsize
        )
        replays = list(until_interrupted(work))
    rows, spans = [], {}
    for place, spec in enumerate(specs):
        for found in replays:
            steps, alarmed = found.steps.tolist(), found.alarms(place)
            spans[found.run_id] = [[steps[first], steps[last]] for first, last in alarmed]
            rows.append(
                {
                    "guard": spec.name,
                    "run": found.run_id,
                    "steps": len(steps),
                    "alarms": len(alarmed),
                    "first": steps[alarmed[0][0]] if alarmed else None,
                    "regime": Regime(int(found.first_regime[place])).name if alarmed else None,
                    "unsafe_steps": int(found.unsafe_steps[place]),
                    "requested_energy": float(found.requested_energy[place]),
                    "limitations": limits[found.run_id],
                    "left_out": None,
                }
            )
    if alarms is not None:
        write_whole(alarms, json.dumps(spans, indent=1) + "\n")
    if as_json:
        nothing = dict.fromkeys(rows[0])
        rows += [
            nothing | {"guard": spec.name, "run": run_id, "left_out": why}
            for spec in specs
            for run_id, why in loaded.unusable
        ]
        print_json(rows)
        return
    columns = [
        Column("guard", "guard"), Column("run", "run"), Column("steps", "steps", "d"), Column("alarms", "alarms", "d"),
        Column("first", "first,\nstep", "d"), Column("regime", "as"), Column("unsafe_steps", "unsafe\nsteps", "d"),
        Column("requested_energy", "energy\nasked for", ".1f"),
    ]  # fmt: skip
    print_table(rows, columns)
    loaded.tell()
