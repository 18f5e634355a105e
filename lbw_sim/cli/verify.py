"""`lbw verify`: does replay give the bits that flew?"""

from __future__ import annotations

import typer

from lbw_sim.cli.options import Json, Plugins, Traces, described, print_json, stages
from lbw_sim.errors import TraceError, VerifyError
from lbw_sim.wording import counted


def verify(traces: Traces, plugin: Plugins = None, as_json: Json = False) -> None:
    """Rebuild each run's guard from its own trace, replay it and demand equal bits.

    Exit code 0: every row of every run is what its guard decides. 1: some run is not, is not whole, or cannot be read;
    its first wrong row, its missing segments, or what is wrong with its file, is named.
    """
    from lbw_sim.guard import load_plugin
    from lbw_sim.replay import Verified
    from lbw_sim.replay import verify as verify_trace

    for path in plugin or ():
        load_plugin(path)
    verified: list[Verified] = []
    differing: list[str] = []
    # without their rows, of which only some are held at a time
    runs, broken = described([traces])
    unreadable = [str(fault) for fault in broken]
    total = sum(segment.rows for trace in runs for segment in trace.segments)
    done = 0
    with stages() as progress:

        def heard(rows: int) -> None:
            nonlocal done
            done += rows
            progress("verifying rows", done, total)

        for trace in runs:
            end = done + sum(segment.rows for segment in trace.segments)
            try:
                verified.append(verify_trace(trace, heard))
            except VerifyError as error:
                differing.append(str(error))
            except TraceError as error:
                unreadable.append(str(error))
            # the rest of a run that differs is not looked at
            heard(end - done)
    rows = sum(item.rows for item in verified)
    passed = {item.run_id for item in verified}
    uncounted = [
        trace.run_id for trace in runs
        if trace.run_id in passed and any(segment.meta.rows is None for segment in trace.segments)
    ]  # fmt: skip
    if as_json:
        print_json(
            {
                "verified": [item._asdict() for item in verified],
                "failures": [*differing, *unreadable],
                "rows": rows,
                "rows_at_the_end_unknown": uncounted,
            }
        )
    else:
        for failure in differing:
            typer.echo(f"DIFFERS  {failure}")
        for failure in unreadable:
            typer.echo(f"UNREADABLE  {failure}")
        typer.echo(
            f"{len(verified)} of {counted(len(runs) + len(broken), 'run')} verified: {counted(rows, 'row')}, every "
            "decision equal to the last bit"
        )
        if uncounted:
            typer.echo(
                f"{counted(len(uncounted), 'run')} of these, alive or finished by an earlier release, "
                f"{'does' if len(uncounted) == 1 else 'do'} not say how many rows there were: a cut at the end would "
                "not show"
            )
    if differing or unreadable:
        raise typer.Exit(1)
