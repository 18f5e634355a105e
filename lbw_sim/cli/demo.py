"""`lbw demo`: the whole story in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for traces, guard.toml, figures, summary.md.")
    ] = Path("demo"),
) -> None:
    """Train tiny GPTs for real, record, replay, choose a guard, verify it and fly it on fresh seeds.

    Takes some minutes on two cores and needs no download. Says where the guard loses.
    """
    import time

    from rich.console import Console
    from rich.markdown import Markdown

    from lbw_sim.cli.options import say_next, stages
    from lbw_sim.errors import LbwError
    from lbw_sim.wording import typed

    if out.exists() and any(out.iterdir()):
        raise LbwError(f"{out} is not empty: name another folder with --out, or remove it")
    started_s = time.monotonic()
    with stages() as progress:
        from lbw_sim.demo import run

        found = run(out, progress)
    console = Console()
    console.print(Markdown(found.summary))
    seconds = time.monotonic() - started_s
    typer.echo(f"\nWritten to {out} in {seconds:.0f} s: summary.md, guard.toml, figures/, traces/")
    recorded = typed(out / "traces" / "recorded")
    say_next(f"lbw show {recorded}", f"lbw score {recorded} --families", when="Look closer")
