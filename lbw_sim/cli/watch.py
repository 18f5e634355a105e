"""`lbw watch`: a run as it goes, from another terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import print_json
from lbw_sim.errors import LbwError

PATIENCE_S = 5.0
"""How long a run whose writer died may take to be resumed before watching it ends."""


def watch(
    run: Annotated[
        Path, typer.Argument(help="The run's folder, or a folder of traces: then the run written to last.")
    ] = Path("traces"),
    run_id: Annotated[str | None, typer.Option("--run", help="Which run of a folder of traces.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print how the run stands, and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.05, max=60.0, help="Seconds between two looks.")] = 0.25,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: one JSON document.")] = False,
) -> None:
    """Follow a run while it is recorded: loss, regime, scale, energy, alarms, and whether its writer lives.

    Read-only: it locks and changes nothing, and may begin before the run does. It ends when the run is closed, or with
    Ctrl-C.
    """
    from rich.console import Console
    from rich.live import Live

    from lbw_sim.watch import RunView, closing_sentence, draw, find_run

    console = Console(width=None if sys.stdout.isatty() else 100)
    found = find_run(run, run_id)
    if once or as_json:
        view = RunView(found or run)
        view.look()
        if view.tail.meta is None:
            where = run if run_id is None else found
            raise LbwError(f"{where}: no run is recorded there yet; without --once it is waited for")
        if as_json:
            print_json(view.facts())
        else:
            console.print(draw(view, console.width))
        return
    view = RunView(found or run)
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                if found is None and (found := find_run(run, run_id)) is not None:
                    view = RunView(found)
                view.look()
                live.update(draw(view, console.width), refresh=True)
                if view.over(patience_s=PATIENCE_S):
                    break
                time.sleep(interval)
        except KeyboardInterrupt:
            pass  # the usual way to leave
    # where nothing can be redrawn, the last picture was printed without the end of its line
    typer.echo(("" if console.is_terminal else "\n") + closing_sentence(view))
    view.tail.close()
