"""Imports metrics out of SQLite: MLflow's database and trackio's.

The file is opened read-only and nothing beside it is made or changed. Only plain tables are read, by fixed statements;
a view or a virtual table of the same name is refused, for it would run what its maker wrote.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lbw_sim.errors import TraceError
from lbw_sim.trace.importers.logged import (
    MOST_POINTS,
    Importer,
    LoggedRun,
    Series,
    facts_of_tags,
    find_columns,
    find_series,
    names_in,
    pieces,
    rows_by_step,
    rows_of,
    run_id_from,
)

_MAGIC = b"SQLite format 3\0"
_LONGEST_CELL = 1 << 20
_LONGEST_READ_S = 300.0
MOST_RUNS = 10_000

MLFLOW_COLUMNS = {"run_uuid", "key", "value", "timestamp", "step", "is_nan"}
TRACKIO_COLUMNS = {"timestamp", "run_name", "metrics"}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that can only read. Raises TraceError."""
    with contextlib.ExitStack() as stack:
        log = path.with_name(path.name + "-wal")
        if log.is_file() and log.stat().st_size:
            # rows that were not merged yet; reading them in place would write beside the file
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            shutil.copyfile(log, folder / "copy.db-wal")
            path = Path(shutil.copyfile(path, folder / "copy.db"))
            address = f"file:{quote(str(path))}?mode=ro"
        else:
            address = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
        try:
            connection = sqlite3.connect(address, uri=True)
            stack.callback(connection.close)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_CELL)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.text_factory = lambda data: data.decode("utf-8", "replace")
            end = time.monotonic() + _LONGEST_READ_S
            # a file that is built to be read for ever is left after a while
            connection.set_progress_handler(lambda: time.monotonic() > end, 100_000)
            yield connection
        except sqlite3.Error as error:
            raise TraceError(f"{path.name}: the database cannot be read: {str(error)[:200]}") from None


def table_columns(connection: sqlite3.Connection, table: str) -> set[str]:
    """The columns of a plain table; empty when there is none of that name."""
    found = connection.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ? AND rootpage > 0", (table,)
    ).fetchall()
    if not found:
        return set()
    return {str(row[1]) for row in connection.execute("SELECT * FROM pragma_table_info(?)", (table,)).fetchmany(1000)}


def _holds(path: Path, head: bytes, wanted: set[str]) -> bool:
    if head[:16] != _MAGIC:
        return False
    with contextlib.suppress(TraceError, OSError), opened(path) as connection:
        return wanted <= table_columns(connection, "metrics")
    return False


def _mlflow_runs(files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    for path in files:
        problems: list[str] = []
        with opened(path) as connection:
            found = _runs_of(connection, "run_uuid", path.name, problems)
        for (run_uuid,) in found:
            try:
                yield _mlflow_run(path, str(run_uuid), columns)
            except TraceError as error:
                # other runs of the same database may be whole
                problems.append(str(error))
        if problems or not found:
            raise TraceError("; ".join(problems[:3]) or f"{path.name}: its table of metrics is empty")


def _runs_of(connection: sqlite3.Connection, key: str, where: str, problems: list[str]) -> list[tuple[Any, ...]]:
    """What tells the runs in a table of metrics apart, as many as are read; whether there are more is a problem."""
    found = connection.execute(f"SELECT DISTINCT {key} FROM metrics ORDER BY {key}").fetchmany(MOST_RUNS + 1)
    if len(found) > MOST_RUNS:
        problems.append(f"{where}: more than {MOST_RUNS} runs; those after the first {MOST_RUNS} are not read")
    return found[:MOST_RUNS]


def _mlflow_run(path: Path, run_uuid: str, columns: Mapping[str, str]) -> LoggedRun:
    where = f"{path.name}, run {run_uuid[:40]}"
    lost: list[str] = []
    with opened(path) as connection:
        name = None
        if {"run_uuid", "name"} <= table_columns(connection, "runs"):
            (name,) = connection.execute("SELECT name FROM runs WHERE run_uuid = ?", (run_uuid,)).fetchone() or (None,)
        keys = connection.execute("SELECT DISTINCT key FROM metrics WHERE run_uuid = ?", (run_uuid,))
        mapping = find_series(names_in(({str(key): None} for (key,) in keys), where), columns, where)
        series = {}
        points = 0
        for trace_name, key in mapping.items():
            one = series[trace_name] = Series()
            for value, is_nan, step, at in connection.execute(
                "SELECT value, is_nan, step, timestamp FROM metrics WHERE run_uuid = ? AND key = ? "
                "ORDER BY timestamp, step",
                (run_uuid, key),
            ):
                points += 1
                if points > MOST_POINTS:
                    raise TraceError(f"{where}: more than {MOST_POINTS} numbers")
                if not isinstance(step, int) or not 0 <= step < 1 << 53 or not isinstance(value, (int, float)):
                    lost.append("values that are no numbers, or have no step")
                    continue
                one.add(0, step, _mlflow_value(float(value), bool(is_nan)), _seconds(at))
    rows = rows_by_step(series, where)
    run_id = run_id_from(str(name)[:100] if name else run_uuid)
    lost[:] = dict.fromkeys(lost)
    return LoggedRun(run_id, path.name, mapping, lambda: pieces(rows), lost=lost, files=[path])


def _mlflow_value(value: float, is_nan: bool) -> float:
    """MLflow has no place for nan, whose value it stores as 0, nor for infinity, for which it stores the largest."""
    if is_nan:
        return float("nan")
    return value if abs(value) < sys.float_info.max else float("inf") if value > 0 else float("-inf")


def _seconds(milliseconds: Any) -> float:
    return milliseconds / 1000.0 if isinstance(milliseconds, (int, float)) else 0.0


def _trackio_runs(files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    for path in files:
        problems: list[str] = []
        with opened(path) as connection:
            there = table_columns(connection, "metrics")
            project = "project_name" if "project_name" in there else "''"
            found = _runs_of(connection, f"{project}, run_name", path.name, problems)
        for project_name, run_name in found:
            history = partial(_trackio_history, path, there, project_name, run_name)
            where = f"{path.name}, run {str(run_name)[:60]}"
            try:
                names = names_in(history(), where)
                mapping = find_columns(names, columns, where)
            except TraceError as error:
                problems.append(str(error))
                continue
            rows = partial(rows_of, history, mapping, where)
            run_id = run_id_from(str(run_name).replace("/", "-"))
            yield LoggedRun(run_id, path.name, mapping, rows, facts=facts_of_tags(names), files=[path])
        if problems or not found:
            raise TraceError("; ".join(problems[:3]) or f"{path.name}: its table of metrics is empty")


def _trackio_history(path: Path, there: set[str], project: Any, run: Any) -> Iterator[dict[str, Any]]:
    """Rows in the order of logging. Releases without a step column number them as they come."""
    step = "step" if "step" in there else "NULL"
    order = "id" if "id" in there else "rowid"
    where = "project_name = ? AND run_name = ?" if "project_name" in there else "? = '' AND run_name = ?"
    with opened(path) as connection:
        for number, (at, logged_step, text) in enumerate(
            connection.execute(
                f"SELECT timestamp, {step}, metrics FROM metrics WHERE {where} ORDER BY {order}", (project, run)
            )
        ):
            try:
                row = json.loads(text)
            except (TypeError, ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise TraceError(f"{path.name}: row {number + 1} of run {str(run)[:60]} is no JSON object")
            numbers = {name: _plain(value) for name, value in row.items()}
            row = {name: value for name, value in numbers.items() if value is not None}
            row.setdefault("step", number if logged_step is None else logged_step)
            with contextlib.suppress(TypeError, ValueError):
                row["timestamp"] = datetime.fromisoformat(at).timestamp()
            yield row


def _plain(value: Any) -> float | None:
    """A number, also one written as text, as trackio writes nan; None: something else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


MLFLOW = Importer(
    name="mlflow",
    reads="MLflow's SQLite database (table metrics; is_nan is honoured)",
    recognises=lambda path, head: _holds(path, head, MLFLOW_COLUMNS),
    runs=_mlflow_runs,
    rank=10,
)
TRACKIO = Importer(
    name="trackio",
    reads="trackio's SQLite database; its Parquet export is read as csv",
    recognises=lambda path, head: _holds(path, head, TRACKIO_COLUMNS),
    runs=_trackio_runs,
    rank=9,
)
