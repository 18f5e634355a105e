"""Arguments and options that several commands share, and how their values are read."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from lbw_sim.errors import BrokenRunsError, LbwError, TraceError, unknown_name
from lbw_sim.wording import counted, printable

if TYPE_CHECKING:
    from lbw_sim.guard import GuardSpec
    from lbw_sim.replay import Unusable
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
    list[str],
    typer.Option("--guard", "-g", help="Preset name or TOML file; repeat for several. lbw components lists presets."),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", help="Python file or folder with components of your own; runs its code."),
]
SkipBroken = Annotated[
    bool,
    typer.Option("--skip-broken", help="Leave out runs that cannot be read; each is named on standard error."),
]
Anyway = Annotated[
    bool,
    typer.Option("--anyway", help="Also judge runs whose logs hold means or samples only; without, they are refused."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def load_guards(names: Iterable[str], plugins: Iterable[Path] | None) -> list[GuardSpec]:
    """The specs that the options name, after loading the plugins that they may need."""
    from lbw_sim.guard import GuardSpec, load_plugin

    for plugin in plugins or ():
        load_plugin(plugin)
    return [GuardSpec.load(name) for name in names]


def described(paths: Iterable[str]) -> tuple[list[Trace], list[TraceError]]:
    """Every run at or below these paths or URIs, without its rows, and what is wrong with those that cannot be opened.

    Raises TraceError when a path leads to no run.
    """
    from lbw_sim.trace import open_traces, read_trace

    found: list[Trace] = []
    broken: list[TraceError] = []
    for path in paths:
        here, faults = open_traces(path)
        # a run's folder under another name, or nothing at all: then it says so
        found += here if here or faults else [read_trace(path)]
        broken += faults
    return found, broken


def load_traces(paths: Iterable[str], skip_broken: bool) -> list[Trace]:
    """Every run at or below these paths or URIs, with its rows.

    Runs that cannot be read are refused, all at once, or named on standard error and left out. Raises TraceError, also
    when no run is there.
    """
    return refusing(*open_all(paths), skip_broken)[0]


def load_by_id(paths: Iterable[str], only: Iterable[str] | None, skip_broken: bool) -> tuple[dict[str, Trace], int]:
    """The same by run id, and how many were left out. With `only` these runs, whatever is wrong with the others.

    Raises TraceError; LbwError when two runs have one id, or when none has one of `only`.
    """
    found, broken = described(paths)
    named: dict[str, Trace] = {}
    for trace in found:
        if trace.run_id in named:
            raise LbwError(f"run {trace.run_id!r} comes twice; give one of each id")
        named[trace.run_id] = trace
    if only:
        if unknown := [run_id for run_id in only if run_id not in named]:
            # it may be one of those
            refusing(found, broken, skip_broken)
            raise LbwError(unknown_name("run", unknown[0], named))
        found, broken = [named[run_id] for run_id in named if run_id in only], []
    whole, left_out = refusing(*_whole(found, broken), skip_broken)
    return {trace.run_id: trace for trace in whole}, left_out


def open_all(paths: Iterable[str]) -> tuple[list[Trace], list[TraceError]]:
    """As `described`, with the rows: a run whose rows cannot be read is among the broken ones."""
    return _whole(*described(paths))


def refusing(found: list[Trace], broken: Sequence[TraceError], skip_broken: bool) -> tuple[list[Trace], int]:
    """The runs that can be read, and how many cannot: these are named on standard error.

    Raises TraceError for those instead, unless `skip_broken`, or when no run can be read.
    """
    if broken and (not skip_broken or not found):
        runs = len(found) + len(broken)
        raise broken[0] if runs == 1 else BrokenRunsError(broken, runs)
    for fault in broken:
        print(f"left out: {fault}", file=sys.stderr)
    return found, len(broken)


def _whole(found: Sequence[Trace], broken: Sequence[TraceError]) -> tuple[list[Trace], list[TraceError]]:
    """Those whose rows can be read too; they are needed anyway, and a fault is told before the work."""
    whole, faults = [], list(broken)
    for trace in watched(found, "reading", transient=True):
        try:
            trace.table()
        except TraceError as error:
            faults.append(error)
        else:
            whole.append(trace)
    return whole, faults


class Loaded(NamedTuple):
    """The runs of a command, and those of which its result says nothing."""

    runs: list[Trace]
    unusable: list[Unusable]
    unread: int
    """How many cannot be read."""

    def tell(self) -> None:
        """Say under a table what is not in it."""
        from lbw_sim.replay import unusable_words

        for words in unusable_words(self.unusable):
            typer.echo(f"Left out, {words}.")
        if self.unread:
            typer.echo(f"Left out, {counted(self.unread, 'run')} that could not be read.")


def load_usable(paths: Iterable[str], specs: Sequence[GuardSpec], skip_broken: bool) -> Loaded:
    """As `load_traces`, without the runs that one of these guards cannot see; each is named on standard error.

    Raises LbwError also when none is left.
    """
    from lbw_sim.replay import usable_runs

    runs, unread = refusing(*open_all(paths), skip_broken)
    usable, unusable = usable_runs(runs, specs)
    leaving_out(unusable, len(runs))
    return Loaded(usable, unusable, unread)


def leaving_out(unusable: Sequence[Unusable], of: int) -> None:
    """Say on standard error which runs are not used, of how many. Raises LbwError when none is left."""
    from lbw_sim.replay import unusable_words

    words = unusable_words(unusable)
    if unusable and len(unusable) == of:
        raise LbwError(f"no run can be used: {'; '.join(words)}")
    for line in words:
        print(f"left out: {line}", file=sys.stderr)
    if unusable:
        print(f"{len(unusable)} of {counted(of, 'run')} left out; the others are used", file=sys.stderr)


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
    """The items; Ctrl-C ends them, so that what was finished is still shown. Says so on standard error.

    Where nothing was finished yet, the interrupt goes on: an empty table would look like a result.
    """
    finished = 0
    try:
        for item in items:
            finished += 1
            yield item
    except KeyboardInterrupt:
        if not finished:
            raise
        print("lbw: interrupted; what follows is what was finished", file=sys.stderr)


def check_output(path: Path) -> None:
    """Refuse an output file that could not be written, before the work and not after it. Raises LbwError."""
    if path.is_dir():
        raise LbwError(f"{path} is a folder; name a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise LbwError(f"{path} cannot be written: {folder} is a file")
    if not os.access(folder, os.W_OK):
        raise LbwError(f"{path} cannot be written: {folder} is not yours to write")


def check_figure(path: Path) -> None:
    """The same for a figure, by its name as well. Raises LbwError."""
    from lbw_sim.plots import check_name

    check_name(path)
    check_output(path)


@contextmanager
def stages(transient: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per stage of long work, on standard error: call with stage, done and total.

    `transient`: nothing of it stays.
    """
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

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # a log file has no use for bars
    bars = Progress(*columns, console=console, disable=not console.is_terminal, transient=transient)
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


def watched(items: Sequence[T], what: str, transient: bool = False) -> Iterator[T]:
    """The items, as one stage of `stages`."""
    with stages(transient) as progress:
        for done, item in enumerate(items, start=1):
            yield item
            progress(what, done, len(items))


def print_table(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> None:
    """A table on standard output; into a file or a pipe it is as wide as it needs to be.

    In a terminal that is too narrow for it, each row is a block of lines: no figure is cut off.
    """
    from rich.console import Console

    from lbw_sim.score import rich_table

    console = Console(width=None if sys.stdout.isatty() else 1000)
    table = rich_table(rows, columns)
    if console.measure(table, options=console.options.update(width=1000)).maximum <= console.width:
        console.print(table)
        return
    titles = [column.title.replace("-\n", "").replace("\n", " ") for column in columns]
    width = max(len(title) for title in titles)
    for row in rows:
        print()
        for title, column in zip(titles, columns, strict=True):
            print(f"{title:{width}}  {printable(column.cell(row))}")
    print()


def say_next(*commands: str, when: str = "Next") -> None:
    """Commands to go on with, each whole on a line of its own, whatever the terminal's width: so it can be copied."""
    typer.echo(f"{when}:")
    for command in commands:
        typer.echo(f"  {command}")


def print_json(document: Any) -> None:
    """One JSON document on standard output; nan and infinite become null, as JSON has neither."""
    from lbw_sim.score import jsonable

    sys.stdout.write(json.dumps(jsonable(document), indent=2) + "\n")
