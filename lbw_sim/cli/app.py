"""The command line's table of contents."""

from __future__ import annotations

from typing import Annotated

import typer

from lbw_sim import __version__
from lbw_sim.cli import (
    backtest,
    calibrate,
    compare,
    components,
    demo,
    fork,
    import_,
    label,
    plot,
    record,
    replay,
    report,
    score,
    scrub,
    show,
    simulate,
    stress,
    tune,
    verify,
    watch,
)

app = typer.Typer(
    name="lbw",
    help="Flight recorder and flight simulator for training-stability guards.\n\n"
    "Record a run through a guard, replay it through other guards, see which would have seen what, how late and how "
    "often wrongly. Replay scores detection; it never says what acting would have gained.",
    epilog="Start with: lbw report --import LOGS for runs that you have, or lbw demo, which trains tiny ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lbw-sim {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _paragraphs(text: str) -> str:
    """A docstring without the line breaks of its source, which a terminal of another width would show."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


for module in (
    demo,
    record,
    watch,
    import_,
    show,
    label,
    replay,
    score,
    compare,
    report,
    backtest,
    verify,
    plot,
    calibrate,
    simulate,
    stress,
    tune,
    fork,
    scrub,
    components,
):
    name = module.__name__.rpartition(".")[2]
    # `import` is a word of Python's own
    function = getattr(module, name)
    app.command(name.rstrip("_"), help=_paragraphs(function.__doc__))(function)

command_line = typer.main.get_command(app)
"""All commands, read once: a caller that stays gives many."""
