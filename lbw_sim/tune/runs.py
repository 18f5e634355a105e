"""Recorded runs as tuning sees them: opened by path, by whichever process works on them, and described once.

Paths are of this machine, of a shared folder, or URIs that `pyarrow.fs` reads. A process keeps a few runs in memory
and opens the others again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from threading import Lock
from typing import Any, NamedTuple

from numpy.typing import NDArray

from lbw_sim.backtest import digest_telemetry
from lbw_sim.errors import TraceError
from lbw_sim.guard import load_plugin
from lbw_sim.replay.usable import Unusable, why_unusable
from lbw_sim.score.many import RunJudge
from lbw_sim.trace import Label, Trace, read_trace, read_traces, run_paths
from lbw_sim.trace.layout import run_id_of

KEPT_ROWS = 4_000_000
"""Rows that a process keeps in memory: about 500 MB with eight channels."""


class RunFacts(NamedTuple):
    """One run, without its rows."""

    path: str
    run_id: str
    rows: int
    """Rows of the final lineage."""
    clean_rows: int
    events: int
    """Labelled events of high or medium confidence."""
    channels: tuple[str, ...]
    digest: str
    """SHA-256 over telemetry and labels: what a measurement of this run depends on."""
    telemetry_digest: str
    provenance: Mapping[str, Any]


class LoadedRun(NamedTuple):
    """One run, ready to be replayed and judged."""

    run_id: str
    columns: dict[str, NDArray[Any]]
    """Only what was measured: a channel without a number is left out, as a guard that needs it has to be refused."""
    judge: RunJudge
    labels: tuple[Label, ...]


def find_runs(traces: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The path of every run that the arguments of a command name: folders, runs' folders, files. Raises TraceError."""
    found: list[str] = []
    for given in [os.fspath(path) for path in traces]:
        # a run's folder under another name, or nothing at all: then it says so
        found += run_paths(given) or [given]
    # relative ones would mean something else to a worker
    return [path if "://" in path else os.path.abspath(path) for path in dict.fromkeys(found)]


def load(path: str) -> LoadedRun | None:
    """A run by path, from memory where it has lately been opened; None when it holds no row. Raises TraceError."""
    with _lock:
        found = _kept.get(path)
        if found is not None:
            _kept.move_to_end(path)
            return found
    trace = _open(path)
    return None if trace is None else _keep(path, trace)


def _keep(path: str, trace: Trace) -> LoadedRun | None:
    columns = trace.to_numpy()
    if not len(columns["step"]):
        return None
    measured = {name: columns[name] for name in ("step", *trace.channels)}
    judge = RunJudge(trace.labels, columns["step"], trace.run_id)
    loaded = LoadedRun(trace.run_id, measured, judge, trace.labels)
    with _lock:
        _kept[path] = loaded
        while len(_kept) > 1 and sum(len(run.judge.steps) for run in _kept.values()) > KEPT_ROWS:
            _kept.popitem(last=False)
    return loaded


def describe(path: str) -> RunFacts | Unusable | None:
    """What there is to know of a run before the search, without a row why it is of no use; None when its folder holds
    no recording. Raises TraceError, ScoreError."""
    trace = _open(path)
    if trace is None:
        return None
    loaded = _keep(path, trace)
    if loaded is None:
        return Unusable(trace.run_id, why_unusable(0, (), ()))
    telemetry = digest_telemetry(trace)
    labels = json.dumps([label._asdict() for label in trace.labels], sort_keys=True)
    return RunFacts(
        path,
        trace.run_id,
        len(loaded.judge.steps),
        loaded.judge.clean_rows,
        len(loaded.judge.scored),
        trace.channels,
        hashlib.sha256(f"{telemetry} {labels}".encode()).hexdigest(),
        telemetry,
        dict(trace.meta.provenance),
    )


def use_plugins(plugins: Iterable[str]) -> None:
    """Load a user's components, once per process: a worker has not been told by the command line."""
    with _lock:
        for plugin in plugins:
            if plugin not in _plugged:
                load_plugin(plugin)
                _plugged.add(plugin)


def plugins_are_loaded(plugins: Iterable[str]) -> None:
    """This process has these already: loaded again, their classes would be others."""
    _plugged.update(plugins)


_kept: OrderedDict[str, LoadedRun] = OrderedDict()
_plugged: set[str] = set()
_lock = Lock()


def _open(path: str) -> Trace | None:
    if run_id_of(PurePath(path.partition("?")[0]).name) is None:
        return read_trace(path)
    # one in which no row was ever recorded is passed over, as in a folder of many
    found = read_traces(path)
    if len(found) > 1:
        raise TraceError(f"{path}: holds {len(found)} runs")
    return found[0] if found else None
