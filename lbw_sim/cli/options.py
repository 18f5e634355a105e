"""Arguments and options that several commands share, and how their values are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from lbw_sim.guard import GuardSpec
    from lbw_sim.score import Column
    from lbw_sim.trace import Trace

T = TypeVar("T")

Traces = Annotated[
    str, typer.Argument(help="A folder of traces, one run's folder or one Parquet file; a path, or a URI: s3://…")
]
ManyTraces = Annotated[
    list[str], typer.Argument(help="Folders of traces, runs' folders or Parquet files; paths, or URIs: s3://…")
]
Guards = Annotated[
    list[str], typer.Option("--guard", "-g", help="Preset name or TOML file; repeat for several guards.")
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="Python file or folder with components of your own; runs its code."),
]
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Also where the way in which a run was logged does not support it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def load_guards(names: Iterable[str], plugins: Iterable[Path] | None) -> list[GuardSpec]:
    """The specs that the options name, after loading the plugins that they may need."""
    from lbw_sim.guard import GuardSpec, load_plugin

    for plugin in plugins or ():
        load_plugin(plugin)
    return [GuardSpec.load(name) for name in names]


def load_traces(path: str) -> list[Trace]:
    """Every run at or below a path or URI. Raises TraceError when there is none."""
    from lbw_sim.trace import read_trace, read_traces

    # a run's folder under another name, or nothing at all: then it says so
    return read_traces(path) or [read_trace(path)]


def tell_limits(runs: Sequence[Trace], use: str, anyway: bool = False) -> None:
    """Say on standard error what these runs cannot show; refuse a use that they rule out, unless the user insists.

    Raises TraceError.
    """
    from lbw_sim.trace.limitations import refuse, summary

    facts = [(trace.run_id, trace.meta.provenance) for trace in runs]
    if not anyway:
        refuse(facts, use)
    for line in summary(facts):
        print(f"note: {line}", file=sys.stderr)


def until_interrupted(items: Iterable[T]) -> Iterator[T]:
    """The items; Ctrl-C ends them, so that what was finished is still shown. Says so on standard error."""
    try:
        yield from items
    except KeyboardInterrupt:
        print("lbw: interrupted; what follows is what was finished", file=sys.stderr)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per stage of long work, on standard error: call with stage, done and total."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, TaskID] = {}

    def report(stage: str, done: int, total: int) -> None:
        # not before: a bar without a stage leaves an empty line above an error
        bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        yield report
    finally:
        if tasks:
            bars.stop()


def watched(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, as one stage of `stages`."""
    with stages() as progress:
        for done, item in enumerate(items, start=1):
            yield item
            progress(what, done, len(items))


def print_table(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> None:
    """A table on standard output; into a file or a pipe it is as wide as it needs to be."""
    from rich.console import Console

    from lbw_sim.score import rich_table

    width = None if sys.stdout.isatty() else 1000
    Console(width=width).print(rich_table(rows, columns))


def print_json(document: Any) -> None:
    """One JSON document on standard output; nan and infinite become null, as JSON has neither."""
    from lbw_sim.score import jsonable

    sys.stdout.write(json.dumps(jsonable(document), indent=2) + "\n")
