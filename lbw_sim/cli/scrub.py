"""`lbw scrub`: traces without what tells where they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import Json, SkipBroken, Traces, load_traces, print_json, watched
from lbw_sim.wording import counted


def scrub(
    traces: Traces,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the copies; the originals stay as they are.")],
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="Keep this key of the provenance as well; repeat.")
    ] = None,
    skip_broken: SkipBroken = False,
    as_json: Json = False,
) -> None:
    """Copy traces without host name, paths, time and environment, to hand them on.

    Rows, checksums, guard and labels stay equal to the bit: `lbw verify` holds for the copy. Run ids and numbers are
    not changed, and notes that people wrote on labels go.
    """
    from lbw_sim.trace.scrub import scrub as scrub_trace

    runs = load_traces([traces], skip_broken)
    done = [scrub_trace(trace, out, keep=keep or ()) for trace in watched(runs, "copying")]
    removed = sorted({key for item in done for key in item.removed})
    if as_json:
        print_json({"runs": [item._asdict() for item in done], "removed": removed})
        return
    typer.echo(f"{counted(len(done), 'run')}, {counted(sum(item.rows for item in done), 'row')} in {out}")
    typer.echo(f"removed: {', '.join(removed) or 'nothing'}. Kept besides rows, guard and labels: how it was measured.")
