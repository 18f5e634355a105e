"""What was recorded comes back, bit for bit, and says what it is."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_rows import SPEC, append_row, assert_rows, begin

from lbw_sim import Decision, GuardSpec, Telemetry
from lbw_sim.errors import TraceError
from lbw_sim.guard import state_from_data, state_to_data
from lbw_sim.trace import BASE_COLUMNS, collect, columns, read_trace

any_float = st.floats(width=64)
any_row = st.tuples(
    st.lists(any_float, min_size=8, max_size=8),
    st.integers(-128, 127),
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=24),
)


def bits(values: np.ndarray) -> list[object]:
    return [None if np.isnan(v) else struct.pack("<d", v) for v in values.tolist()]


@settings(max_examples=60, deadline=None)
@given(st.lists(any_row, max_size=5))
def test_any_float_integer_and_event_comes_back_bit_for_bit(rows: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recorder = begin(folder, extra_channels=["probe"])
        for step, (floats, code, whole, event) in enumerate(rows):
            loss, lr, norm, elapsed, scale, energy, extra, effective = floats
            seen = Telemetry(step, loss, lr, norm, extra=(extra,))
            ok = recorder.append(
                seen,
                Decision(code, code, scale, energy, code),
                elapsed_s=elapsed,
                effective_lr=effective,
                rolled_back_to=whole,
                event=event,
            )
            assert ok
        in_place = read_trace(folder).to_numpy("all")
        assert recorder.close().path.suffix == ".parquet"
        for found in (in_place, read_trace(folder).to_numpy("all")):
            names = ["loss", "lr", "grad_norm", "elapsed_s", "scale", "energy", "probe", "effective_lr"]
            for i, name in enumerate(names):
                assert bits(found[name]) == bits(np.array([floats[i] for floats, *_ in rows]))
            for name in ("regime", "posture", "reason"):
                assert found[name].tolist() == [code for _, code, _, _ in rows]
            assert found["rolled_back_to"].tolist() == [whole for _, _, whole, _ in rows]
            assert found["event"].tolist() == [event for *_, event in rows]


def test_a_run_of_several_chunks_comes_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbw_sim.trace.journal._CHUNK_ROWS", 64)
    recorder = begin(tmp_path)
    for i in range(1000):
        assert append_row(recorder, i)
    assert_rows(read_trace(tmp_path).to_numpy("all"), 1000)
    assert recorder.close()[:2] == (1000, 0)
    assert_rows(read_trace(tmp_path).to_numpy("all"), 1000)
    assert pq.ParquetFile(recorder.path).num_row_groups == 16


def test_the_parquet_file_uses_the_encodings_that_shrink_telemetry(tmp_path: Path) -> None:
    with begin(tmp_path) as recorder:
        for i in range(100):
            append_row(recorder, i)
    group = pq.ParquetFile(recorder.path).metadata.row_group(0)
    for i, column in enumerate(BASE_COLUMNS):
        found = group.column(i)
        assert found.compression == "ZSTD"
        wanted = {"f8": "BYTE_STREAM_SPLIT", "i8": "DELTA_BINARY_PACKED", "i4": "DELTA_BINARY_PACKED"}
        assert wanted.get(column.dtype, "RLE") in found.encodings
        assert found.has_dictionary_page == (column.dtype in ("i1", "S24"))


def test_every_column_carries_its_unit_and_meaning_and_the_file_its_description(tmp_path: Path) -> None:
    guard = SPEC.build()
    state, _ = guard.step(guard.init(), Telemetry(0, 3.1, nonfinite=0.0))
    facts = collect(seed=3, host=False)
    with begin(tmp_path, mode="active", provenance=facts, guard_state=state_to_data(state)) as recorder:
        append_row(recorder, 0)
    schema = pq.read_schema(recorder.path)
    for column in columns():
        described = schema.field(column.name).metadata
        assert described == {b"unit": column.unit.encode(), b"doc": column.doc.encode(), b"role": column.role.encode()}
    assert json.loads(pq.ParquetFile(recorder.path).metadata.metadata[b"lbw"])["run_id"] == "run"
    meta = read_trace(tmp_path).meta
    assert meta.spec == SPEC
    assert (meta.fingerprint, meta.mode, meta.ended, meta.lost_rows) == (SPEC.fingerprint, "active", "closed", 0)
    assert meta.provenance == facts
    assert state_from_data(guard.init(), meta.guard_state) == state


def test_a_delayed_guard_says_so_in_its_trace(tmp_path: Path) -> None:
    begin(tmp_path, spec=SPEC.with_changes({"delay_steps": 1})).close()
    assert read_trace(tmp_path).meta.delay_steps == 1


def test_a_run_whose_guard_is_not_installed_can_still_be_read(tmp_path: Path) -> None:
    with begin(tmp_path) as recorder:
        append_row(recorder, 0)
    table = pq.read_table(recorder.path, partitioning=None)
    meta = json.loads(table.schema.metadata[b"lbw"])
    meta["spec_toml"] = meta["spec_toml"].replace('"robust_loss"', '"somebody_elses"')
    pq.write_table(table.replace_schema_metadata({"lbw": json.dumps(meta)}), recorder.path)
    trace = read_trace(tmp_path)
    assert_rows(trace.to_numpy(), 1)
    with pytest.raises(Exception, match="somebody_elses"):
        _ = trace.meta.spec


def test_missing_extra_channels_are_nan_and_a_row_that_does_not_fit_is_lost_alone(tmp_path: Path) -> None:
    recorder = begin(tmp_path, extra_channels=["a", "b"])
    decided = Decision(0, 0, 1.0, 0.0, 0)

    def append(step: object, extra: tuple[float, ...]) -> bool:
        return recorder.append(Telemetry(step, extra=extra), decided, elapsed_s=0.0, effective_lr=0.0)  # type: ignore[arg-type]

    assert append(0, (1.0,))
    assert not append(1, (1.0, 2.0, 3.0))
    assert not append("two", ())
    assert not append(2**63, ())
    assert append(3, (1.0, 2.0))
    assert recorder.failure is not None
    assert "does not fit" in recorder.failure
    assert recorder.close()[:2] == (2, 3)
    trace = read_trace(tmp_path)
    assert (trace.meta.lost_rows, trace.meta.failure) == (3, recorder.failure)
    np.testing.assert_array_equal(trace.to_numpy()["b"], [np.nan, 2.0])
    assert trace.channels == ("a", "b")


def test_a_step_that_comes_again_starts_a_new_attempt_told_or_not(tmp_path: Path) -> None:
    with begin(tmp_path) as recorder:
        for step, attempt in [(0, 0), (1, 0), (1, 0), (2, 0), (0, 5), (0, 5), (7, 0)]:
            assert append_row(recorder, step, attempt=attempt)
    assert read_trace(tmp_path).to_numpy("all")["attempt"].tolist() == [0, 0, 1, 1, 5, 6, 6]


def test_an_event_keeps_its_first_24_ascii_characters(tmp_path: Path) -> None:
    with begin(tmp_path) as recorder:
        recorder.append(
            Telemetry(0), Decision(0, 0, 1.0, 0.0, 0), elapsed_s=0.0, effective_lr=0.0, event="naïve " + "x" * 30
        )
    assert read_trace(tmp_path).to_numpy()["event"].tolist() == ["na?ve " + "x" * 18]


def test_closing_twice_gives_the_same_answer_and_a_closed_recorder_counts_what_it_is_given(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    append_row(recorder, 0)
    assert recorder.close() is recorder.close()
    assert not append_row(recorder, 1)
    assert recorder.lost_rows == 1
    assert repr(recorder) == "<Recorder run segment 0: 1 row, 1 lost, closed>"


@pytest.mark.parametrize("run_id", ["", ".." + "/up", "a/b", "a b", "ä", "x" * 129, "a\n", "a\\b", "a\0"])
def test_a_run_id_that_could_leave_the_folder_is_refused(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(TraceError, match="run id"):
        begin(tmp_path, run_id)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_recorded_is_refused_before_training_starts(tmp_path: Path) -> None:
    for wrong, text in [
        ({"mode": "loud"}, "mode 'loud' is not shadow or active"),
        ({"extra_channels": ["loss"]}, "'loss' is a column that every trace has"),
        ({"extra_channels": ["a", "a"]}, "'a' comes twice"),
        ({"extra_channels": ["a b"]}, "'a b' is not a channel name"),
        ({"provenance": {"where": Path("x")}}, "provenance 'where'"),
        ({"guard_state": object()}, "cannot be written as JSON"),
        ({"guard_state": "x" * (5 << 20)}, "at most 4194304 are allowed"),
    ]:
        with pytest.raises(TraceError, match=text):
            begin(tmp_path, **wrong)
    assert not list(tmp_path.rglob("*segment*"))


def test_a_guard_with_extra_channels_gets_its_columns_unasked(tmp_path: Path) -> None:
    code = """
import sys
from lbw_sim import GuardSpec, Telemetry
from lbw_sim.guard import load_plugin, sensor
from lbw_sim.trace import Recorder, read_trace
load_plugin(sys.argv[1])
spec = GuardSpec.from_toml(open(sys.argv[2]).read())
Recorder.open(sys.argv[3], "a", spec=spec, mode="shadow").close()
print(read_trace(sys.argv[3]).meta.extra_channels)
try:
    Recorder.open(sys.argv[3], "b", spec=spec, mode="shadow", extra_channels=["other"])
except Exception as error:
    print(error)
"""
    (tmp_path / "mine.py").write_text(
        "from lbw_sim.guard import sensor\nfrom lbw_sim.values import Signals\n"
        "@sensor(version=1, emits=('loss',), extra=('gain',))\nclass Gainful:\n"
        "    def init(self): return ()\n"
        "    def step(self, state, telemetry): return state, Signals(loss=telemetry.loss)\n"
    )
    never = GuardSpec.load("never").to_toml()
    head, tail = never.split("[sensor]")
    (tmp_path / "guard.toml").write_text(
        head + '[sensor]\nname = "gainful"\nversion = 1\n\n[analyzer]' + tail.split("[analyzer]")[1]
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "mine.py", tmp_path / "guard.toml", tmp_path / "traces"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert first == "('gain',)"
    assert "expects extra channels gain first" in second


def test_recording_starts_without_loading_numpy_pyarrow_pandas_or_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from trace_rows import append_row, begin; append_row(begin(sys.argv[1]), 0);"
        "print([m for m in ('numpy', 'pyarrow', 'pandas', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{Path.cwd()}:{Path(__file__).parent}"},
    )
    assert done.stdout.strip() == "[]"


def test_collected_provenance_is_data_and_leaves_the_host_out_when_asked() -> None:
    with_host, without = collect(seed=5, corpus="x", seed_note=None), collect(host=False)
    assert {"started_at", "python", "platform", "cpu_count", "git_revision", "device", "world_size"} <= without.keys()
    assert "host" in with_host
    assert "host" not in without
    assert (with_host["seed"], with_host["corpus"], without["seed"]) == (5, "x", None)
    assert json.loads(json.dumps(with_host)) == with_host
