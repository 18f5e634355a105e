"""MLflow's and trackio's databases in the layout that their releases make, and databases that want something else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
import sys
from pathlib import Path

import pytest

from lbw_sim.errors import TraceError
from lbw_sim.trace import read_trace
from lbw_sim.trace.importers import import_path
from lbw_sim.trace.importers.mlflow_files import MLFLOW_FILES

MLFLOW = """
CREATE TABLE runs (run_uuid VARCHAR(32) NOT NULL PRIMARY KEY, name VARCHAR(250), status VARCHAR(9));
CREATE TABLE metrics (
    key VARCHAR(250) NOT NULL, value FLOAT NOT NULL, timestamp BIGINT NOT NULL, run_uuid VARCHAR(32) NOT NULL,
    step BIGINT DEFAULT '0' NOT NULL, is_nan BOOLEAN DEFAULT '0' NOT NULL,
    CONSTRAINT metric_pk PRIMARY KEY (key, timestamp, step, run_uuid, value, is_nan)
);
"""
TRACKIO = """
CREATE TABLE metrics (
    id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp TEXT NOT NULL, run_name TEXT NOT NULL, step INTEGER NOT NULL,
    metrics TEXT NOT NULL
);
"""


def database(path: Path, script: str, table: str = "", rows: list[tuple[object, ...]] | None = None) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(script)
        if rows:
            connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    return path


def mlflow(path: Path) -> Path:
    rows: list[tuple[object, ...]] = []
    for step in range(6):
        rows.append(
            ("train_loss", 0.0 if step == 3 else 3.0 - step / 8, 1_700_000_000_000 + step, "u1", step, step == 3)
        )
        rows.append(("lr", 1e-3, 1_700_000_000_000 + step, "u1", step, False))
        rows.append(("loss", 5.0 + step if step != 2 else sys.float_info.max, 1_700_000_000_000, "u2", step, False))
    database(path, MLFLOW, "metrics", rows)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO runs VALUES ('u1', 'sturdy-owl', 'FINISHED'), ('u2', '', 'RUNNING')")
    return path


def test_both_runs_of_an_mlflow_database_are_read_and_is_nan_is_honoured(tmp_path: Path) -> None:
    file = mlflow(tmp_path / "mlflow.db")
    before = hashlib.sha256(file.read_bytes()).digest()
    runs = import_path(file, tmp_path / "out").runs
    assert [(run.run_id, run.rows, run.importer) for run in runs] == [("sturdy-owl", 6, "mlflow"), ("u2", 6, "mlflow")]
    columns = read_trace(tmp_path / "out", "sturdy-owl").to_numpy()
    assert [str(x) for x in columns["loss"].tolist()] == ["3.0", "2.875", "2.75", "nan", "2.5", "2.375"]
    assert columns["nonfinite"].tolist() == [0, 0, 0, 1, 0, 0]
    assert columns["lr"].tolist() == [1e-3] * 6
    assert read_trace(tmp_path / "out", "u2").to_numpy()["loss"].tolist()[1:4] == [6.0, math.inf, 8.0]
    assert hashlib.sha256(file.read_bytes()).digest() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mlflow.db", "out"], "nothing is made beside it"


def test_rows_that_lie_in_the_write_ahead_log_are_read_too(tmp_path: Path) -> None:
    file = tmp_path / "trackio.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.executescript(TRACKIO)
        for step, loss in enumerate(["2.5", '"NaN"', '"Infinity"', "2.25"]):
            text = f'{{"train/loss": {loss}, "note": "x"}}'
            connection.execute(
                "INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES (?, 'a/b', ?, ?)",
                (f"2025-01-01T00:00:0{step}", step, text),
            )
        connection.commit()
        (run,) = import_path(file, tmp_path / "out").runs
    assert (run.run_id, run.rows, run.importer) == ("a-b", 4, "trackio")
    columns = read_trace(tmp_path / "out").to_numpy()
    assert [str(x) for x in columns["loss"].tolist()] == ["2.5", "nan", "inf", "2.25"]
    assert columns["elapsed_s"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_view_in_place_of_the_table_is_never_run(tmp_path: Path) -> None:
    endless = (
        "CREATE VIEW metrics AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT 'loss' AS key, 1.0 AS value, 0 AS timestamp, 'u' AS run_uuid, i AS step, 0 AS is_nan FROM n"
    )
    file = database(tmp_path / "view.db", endless)
    with pytest.raises(TraceError, match="not recognised"):
        import_path(file, tmp_path / "out")


def test_a_virtual_table_is_not_read(tmp_path: Path) -> None:
    script = "CREATE VIRTUAL TABLE metrics USING fts5(key, value, timestamp, run_uuid, step, is_nan)"
    file = database(tmp_path / "virtual.db", script, "metrics", [("loss", 2.5, 0, "u", 1, 0)])
    with pytest.raises(TraceError, match="not recognised"):
        import_path(file, tmp_path / "out")


def test_a_run_name_is_data_and_not_sql(tmp_path: Path) -> None:
    name = "x'; DROP TABLE metrics; --"
    rows: list[tuple[object, ...]] = [(i, "2025-01-01", name, i, json.dumps({"loss": 2.5})) for i in range(1, 4)]
    file = database(tmp_path / "t.db", TRACKIO, "metrics", rows)
    (run,) = import_path(file, tmp_path / "out").runs
    assert (run.run_id, run.rows) == ("x-DROP-TABLE-metrics-", 3) or run.rows == 3
    assert import_path(file, tmp_path / "again").runs[0].rows == 3


def test_broken_cells_are_refused_by_row_and_other_runs_still_come(tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [(1, "t", "bad", 0, "[1]"), (2, "t", "good", 0, '{"loss": 1.5}')]
    file = database(tmp_path / "t.db", TRACKIO, "metrics", rows)
    found = import_path(tmp_path, tmp_path / "out")
    assert [run.run_id for run in found.runs] == ["good"]
    assert "row 1 of run bad is no JSON object" in found.passed_over[0].reason
    data = bytearray(file.read_bytes())
    data[100:108] = b"\xff" * 8
    file.write_bytes(bytes(data))
    with pytest.raises(TraceError, match=r"cannot be read|not recognised"):
        import_path(file, tmp_path / "out2")


def test_the_file_store_of_mlflow_is_read(tmp_path: Path) -> None:
    metrics = tmp_path / "mlruns" / "0" / "abc123" / "metrics"
    (metrics / "train").mkdir(parents=True)
    (metrics.parent / "meta.yaml").write_text("run_id: abc123\n")
    (metrics / "train" / "loss").write_text("".join(f"{1700000000000 + i} {3.5 - i / 4} {i}\n" for i in range(5)))
    (metrics / "lr").write_text("1700000000000 0.001 0\n1700000000001 nan 1\nnonsense\n")
    (run,) = import_path(tmp_path / "mlruns", tmp_path / "out").runs
    assert (run.run_id, run.rows, run.importer) == ("abc123", 5, "mlflow_files")
    assert read_trace(tmp_path / "out").to_numpy()["loss"].tolist() == [3.5, 3.25, 3.0, 2.75, 2.5]
    assert any("lr: 1 line is not time, value and step" in text for text in run.suspicions)


def test_what_is_beyond_a_limit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = mlflow(tmp_path / "mlflow.db")
    with monkeypatch.context() as limits:
        limits.setattr("lbw_sim.trace.importers.sqlite.MOST_RUNS", 1)
        found = import_path(file, tmp_path / "runs")
    assert [run.run_id for run in found.runs] == ["sturdy-owl"]
    assert "more than 1 runs; those after the first 1 are not read" in found.passed_over[0].reason
    with monkeypatch.context() as limits:
        limits.setattr("lbw_sim.trace.importers.logged.MOST_NAMES", 1)
        found = import_path(file, tmp_path / "names")
    # one that is beyond it may have been the one that was wanted
    assert [run.run_id for run in found.runs] == ["u2"]
    assert "run u1: more than 1 different names were logged" in found.passed_over[0].reason
    metrics = tmp_path / "mlruns" / "0" / "abc123" / "metrics"
    metrics.mkdir(parents=True)
    (metrics.parent / "meta.yaml").write_text("run_id: abc123\n")
    (metrics / "loss").write_text("".join(f"{1700000000000 + i} 2.5 {i}\n" for i in range(5)))
    monkeypatch.setattr("lbw_sim.trace.importers.mlflow_files.MOST_POINTS", 3)
    (run,) = import_path(tmp_path / "mlruns", tmp_path / "points").runs
    assert run.rows == 3
    assert any("loss: 2 numbers after the first 3 not read" in text for text in run.suspicions)


def test_a_metric_is_found_behind_however_many_others(tmp_path: Path) -> None:
    metrics = tmp_path / "mlruns" / "0" / "abc123" / "metrics"
    metrics.mkdir(parents=True)
    (metrics.parent / "meta.yaml").write_text("run_id: abc123\n")
    (metrics / "train_loss").write_text("1700000000000 2.5 0\n")
    others = [metrics / f"layer_{number}" for number in range(12_000)]  # never opened: nobody asks for them
    (run,) = MLFLOW_FILES.runs([*others, metrics / "train_loss"], {})
    assert run.columns == {"loss": "train_loss"}
