"""Reading runs: segments, attempts, lineages, folders of runs, other tools."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trace_rows import append_row, assert_rows, begin

from lbw_sim import Telemetry
from lbw_sim.errors import BrokenRunsError, TraceError
from lbw_sim.trace import (
    Label,
    TraceWarning,
    columns,
    open_traces,
    read_labels,
    read_trace,
    read_traces,
    recover,
    write_labels,
)
from lbw_sim.trace.parquet import final_rows
from lbw_sim.values import Decision, Regime


def record(folder: Path, run_id: str, steps: range | list[int], **more: object) -> None:
    with begin(folder, run_id, **more) as recorder:
        for step in steps:
            assert append_row(recorder, step)


def test_a_resumed_run_is_a_second_segment_that_overtakes_what_was_lost(tmp_path: Path) -> None:
    record(tmp_path, "run", range(100), guard_state=None)
    record(tmp_path, "run", range(80, 150), guard_state=[1, 2])
    trace = read_trace(tmp_path)
    assert [(s.meta.segment, s.rows, s.meta.guard_state) for s in trace.segments] == [(0, 100, None), (1, 70, [1, 2])]
    assert trace.to_numpy("all")["step"].tolist() == [*range(100), *range(80, 150)]
    assert_rows(trace.to_numpy(), 150)
    assert trace.meta.segment == 1


def test_a_rollback_is_a_second_attempt_that_overtakes_the_first(tmp_path: Path) -> None:
    with begin(tmp_path) as recorder:
        for step in range(10):
            append_row(recorder, step)
        for step in range(4, 8):
            append_row(recorder, step, attempt=1)
        for step in range(6, 12):
            append_row(recorder, step, attempt=2)
    trace = read_trace(tmp_path)
    final = trace.to_numpy("final")
    assert final["step"].tolist() == list(range(12))
    assert final["attempt"].tolist() == [0] * 4 + [1] * 2 + [2] * 6
    assert len(trace.table("all")) == 20
    assert len(trace.to_pandas("final")) == 12


@given(st.lists(st.integers(0, 12), max_size=40))
def test_the_final_lineage_is_what_a_walk_from_the_end_keeps(steps: list[int]) -> None:
    least, kept = 99, []
    for i in reversed(range(len(steps))):
        if steps[i] < least:
            least = steps[i]
            kept.append(i)
    assert np.flatnonzero(final_rows(np.array(steps, np.int64))).tolist() == kept[::-1]


def test_an_extra_channel_that_one_segment_lacks_is_nan_there(tmp_path: Path) -> None:
    record(tmp_path, "run", range(3))
    with begin(tmp_path, extra_channels=["probe"]) as recorder:
        recorder.append(Telemetry(3, extra=(7.0,)), Decision(1, 0, 1.0, 0.0, 0), elapsed_s=0.0, effective_lr=0.0)
    trace = read_trace(tmp_path)
    found = trace.to_numpy()
    assert list(found) == [column.name for column in columns(["probe"])]
    np.testing.assert_array_equal(found["probe"], [np.nan, np.nan, np.nan, 7.0])
    assert trace.channels == ("loss", "lr", "grad_norm", "tokens", "nonfinite", "probe")


def test_pandas_and_arrow_read_the_folder_of_all_runs_as_it_is(tmp_path: Path) -> None:
    record(tmp_path, "first", range(20))
    record(tmp_path, "second", range(30))
    record(tmp_path, "second", range(30, 40))
    write_labels(tmp_path / "run_id=second", [Label(3, 5, "spike")])
    (tmp_path / "run_id=second" / "_segment-007.journal.damaged").write_bytes(b"odds and ends")
    live = begin(tmp_path, "second")
    append_row(live, 40)
    frame = pd.read_parquet(tmp_path)
    assert frame.groupby("run_id", observed=True).size().to_dict() == {"first": 20, "second": 40}
    assert frame["regime"].iloc[:3].tolist() == ["WARMUP", "STABLE", "STRESSED"]
    assert frame["skipped"].dtype == bool
    table = ds.dataset(tmp_path, partitioning="hive").to_table(filter=ds.field("regime") == "SPIKE")
    assert set(table["step"].to_pylist()) == {step for step in range(40) if step % 9 == Regime.SPIKE}
    live.close()


def test_codes_and_names_of_the_enumerations_agree(tmp_path: Path) -> None:
    record(tmp_path, "run", range(99))
    trace = read_trace(tmp_path)
    names = trace.table()["regime"].to_pylist()
    assert [Regime[name] for name in names] == trace.to_numpy()["regime"].tolist()


def test_a_trace_is_found_by_file_run_folder_folder_of_runs_and_uri(tmp_path: Path) -> None:
    record(tmp_path, "one", range(5))
    run = tmp_path / "run_id=one"
    write_labels(run, [Label(1, 2, "spike", source="injected", peak_step=2)])
    for path in (tmp_path, run, run / "segment-000.parquet", str(run), tmp_path.as_uri(), run.as_uri()):
        trace = read_trace(path)
        assert trace.run_id == "one"
        assert trace.labels == (Label(1, 2, "spike", source="injected", peak_step=2),)
        assert_rows(trace.to_numpy(), 5)
    record(tmp_path, "two", range(6))
    with pytest.raises(TraceError, match="say which run by run_id; runs there: one, two"):
        read_trace(tmp_path)
    assert len(read_trace(tmp_path, "two").table()) == 6
    for path, run_id, text in [
        (tmp_path, "three", "no run 'three'; runs there: one, two"),
        (tmp_path, "../one", "run id '../one' is not allowed"),
        (run, "two", "is run 'one', not 'two'"),
        (run / "segment-000.parquet", "two", "is of run 'one', not 'two'"),
        (tmp_path / "nowhere", None, "no such file or folder"),
        ("nonsense://x", None, "cannot be reached"),
    ]:
        with pytest.raises(TraceError, match=text):
            read_trace(path, run_id)


def test_a_journal_is_read_in_place_through_a_uri(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    for i in range(3):
        append_row(recorder, i)
    recorder._release()
    trace = read_trace(tmp_path.as_uri())
    assert_rows(trace.to_numpy(), 3)
    assert trace.meta.ended == "open"
    assert recorder.path.exists()


def test_all_runs_below_a_folder_come_sorted_and_load_their_rows_late(tmp_path: Path) -> None:
    for run_id, folder in [("b", "x"), ("a", "y/z"), ("c", ".")]:
        record(tmp_path / folder, run_id, range(3))
    (tmp_path / "run_id=empty").mkdir()
    traces = read_traces(tmp_path)
    assert [trace.run_id for trace in traces] == ["a", "b", "c"]
    assert [trace.run_id for trace in read_traces(tmp_path.as_uri())] == ["a", "b", "c"]
    for path in tmp_path.rglob("*.parquet"):
        path.unlink()
    with pytest.raises(TraceError, match="was there and is gone"):
        traces[0].table()
    with pytest.raises(TraceError, match="no such file or folder"):
        read_traces(tmp_path / "nowhere")
    with pytest.raises(TraceError, match="no such folder"):
        recover(tmp_path / "nowhere")


def test_a_broken_run_is_named_and_the_others_can_be_had(tmp_path: Path) -> None:
    for run_id in ("good", "cut", "short"):
        record(tmp_path, run_id, range(3))
        (file,) = (tmp_path / f"run_id={run_id}").glob("*.parquet")
        if run_id != "good":
            file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BrokenRunsError, match=r"2 of 3 runs cannot be read: .*run_id=cut.*; .*run_id=short") as refused:
        read_traces(tmp_path)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value), "workers hand errors on"
    traces, broken = open_traces(tmp_path)
    assert [trace.run_id for trace in traces] == ["good"]
    assert len(broken) == 2
    with pytest.raises(TraceError, match=r"cut/segment-000.parquet: not a Parquet file, or cut short"):
        read_traces(tmp_path / "run_id=cut")


def test_a_trace_shows_itself_in_one_line(tmp_path: Path) -> None:
    record(tmp_path, "run", range(1200))
    record(tmp_path, "run", range(1000, 1100))
    write_labels(tmp_path / "run_id=run", [Label(1, 2, "spike")])
    trace = read_trace(tmp_path)
    fingerprint = trace.meta.fingerprint
    assert repr(trace) == f"<Trace run: 1,300 rows, 2 segments, guard {fingerprint} shadow, closed, 1 label>"
    assert repr(trace.segments[0]) == "<Segment 0 of run: 1,200 rows, closed>"


def test_a_lineage_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    record(tmp_path, "run", range(3))
    with pytest.raises(TraceError, match="lineage 'last' is not"):
        read_trace(tmp_path).table("last")  # type: ignore[arg-type]


def test_segments_of_different_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    record(tmp_path, "one", range(3))
    record(tmp_path, "two", range(3))
    (tmp_path / "run_id=two" / "segment-000.parquet").rename(tmp_path / "run_id=one" / "segment-001.parquet")
    with pytest.raises(TraceError, match="segments of several runs: one, two"):
        read_trace(tmp_path, "one")


def test_a_segment_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    for first in (0, 3):
        record(tmp_path, "run", range(first, first + 3))
    run = tmp_path / "run_id=run"
    (run / "segment-002.parquet").write_bytes((run / "segment-001.parquet").read_bytes())
    with pytest.raises(TraceError, match=r"segment-002.parquet: is segment 1 by its own account.*segment-001.parquet"):
        read_trace(run)


def test_a_missing_segment_is_told(tmp_path: Path) -> None:
    for first in (0, 3, 6):
        record(tmp_path, "run", range(first, first + 3))
    run = tmp_path / "run_id=run"
    assert read_trace(run).missing_segments == ()
    (run / "segment-001.parquet").unlink()
    with pytest.warns(TraceWarning, match="segment 1 is missing"):
        trace = read_trace(run)
    assert trace.missing_segments == (1,)
    assert trace.to_numpy()["step"].tolist() == [0, 1, 2, 6, 7, 8]
    assert read_trace(run / "segment-002.parquet").missing_segments == (), "one file was asked for"


def test_a_renamed_run_folder_renames_the_run(tmp_path: Path) -> None:
    record(tmp_path, "one", range(3))
    (tmp_path / "run_id=one").rename(tmp_path / "run_id=uno")
    assert read_trace(tmp_path).run_id == "uno"


def test_a_file_that_another_tool_wrote_anew_with_plain_text_reads_the_same(tmp_path: Path) -> None:
    record(tmp_path, "run", range(50))
    path = tmp_path / "run_id=run" / "segment-000.parquet"
    table = pq.ParquetFile(path).read()
    for name in ("regime", "posture", "reason", "event"):
        plain = table[name].cast("string")
        table = table.set_column(table.column_names.index(name), name, plain)
    pq.write_table(table, path)
    assert_rows(read_trace(tmp_path).to_numpy(), 50)


def test_labels_come_back_as_written_and_bad_ones_are_refused_all_at_once(tmp_path: Path) -> None:
    labels = (Label(3, 9, "divergence", "low", "hindsight", 5, "see the loss"), Label(0, 0, "benign_outlier"))
    assert read_labels(tmp_path) == ()
    write_labels(tmp_path, labels)
    assert read_labels(tmp_path) == labels
    with pytest.raises(TraceError) as caught:
        write_labels(
            tmp_path, [Label(5, 4, "spyke"), Label(0, 9, "spike", "sure", "guess", 12), Label(True, 1, "spike")]
        )
    for text in (
        "label 1: steps 5 to 4", "Did you mean 'spike'", "label 2: peak_step=12 is outside [0, 9]",
        "no confidence named 'sure'", "no source named 'guess'", "label 3: start_step, end_step",
    ):  # fmt: skip
        assert text in str(caught.value)
    assert read_labels(tmp_path) == labels
    assert [path.name for path in tmp_path.iterdir()] == ["_labels.json"]


def test_a_log_that_was_taken_for_a_trace_is_told_of_the_import(tmp_path: Path) -> None:
    (tmp_path / "run.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(TraceError, match="If it is the log of a run, lbw import brings it in"):
        read_trace(tmp_path / "run.csv")
