"""`lbw verify`: does replay give the bits that flew?"""

from __future__ import annotations

import typer

from lbw_sim.cli.options import Json, Plugins, Traces, load_traces, print_json, watched
from lbw_sim.errors import VerifyError


def verify(traces: Traces, plugin: Plugins = None, as_json: Json = False) -> None:
    """Rebuild each run's guard from its own trace, replay it and demand equal bits.

    Exit code 0: every row of every run is what its guard decides. 1: some run is not; its first wrong row is named.
    """
    from lbw_sim.guard import load_plugin
    from lbw_sim.replay import Verified
    from lbw_sim.replay import verify as verify_trace

    for path in plugin or ():
        load_plugin(path)
    found: list[Verified | VerifyError] = []
    runs = load_traces(traces)
    for trace in watched(runs, "verifying"):
        try:
            found.append(verify_trace(trace))
        except VerifyError as error:
            found.append(error)
    failures = [str(item) for item in found if isinstance(item, VerifyError)]
    verified = [item for item in found if isinstance(item, Verified)]
    rows = sum(item.rows for item in verified)
    if as_json:
        print_json({"verified": [item._asdict() for item in verified], "failures": failures, "rows": rows})
    else:
        for failure in failures:
            typer.echo(f"DIFFERS  {failure}")
        typer.echo(f"{len(verified)} of {len(runs)} runs verified: {rows} rows, every decision equal to the last bit")
    if failures:
        raise typer.Exit(1)
