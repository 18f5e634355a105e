"""Open-loop replay and verify, on traces that a recorder really wrote."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lbw_sim.errors import ChannelError, TraceError, VerifyError
from lbw_sim.guard import GuardSpec, state_to_data
from lbw_sim.replay import replay, verify
from lbw_sim.trace import Recorder, journal, read_trace
from lbw_sim.values import Posture, Telemetry

ROWS = 300


def telemetry(seed: int = 0) -> list[Telemetry]:
    """A falling loss with a spike at 150 and a nan at 220."""
    rng = random.Random(seed)
    rows = []
    for step in range(ROWS):
        loss = 2.0 + 3.0 / math.sqrt(1.0 + step / 20.0) + rng.gauss(0.0, 0.03) + (0.8 if 150 <= step < 170 else 0.0)
        loss = math.nan if step == 220 else loss
        bad = 0.0 if math.isfinite(loss) else 1.0
        rows.append(Telemetry(step, loss, 1e-3, rng.uniform(0.5, 1.0), rng.uniform(0.01, 0.02), 64.0, bad))
    return rows


def record(folder: Path, spec: GuardSpec, mode: str = "active", run_id: str = "run", cut: int | None = None) -> Path:
    """Fly a guard over telemetry into a trace; with `cut`, in two segments that resume at that row."""
    guard = spec.build()
    state, before = guard.init(), guard.not_yet
    for part in (range(ROWS),) if cut is None else (range(cut), range(cut, ROWS)):
        start = {"guard": state_to_data(state), "before": state_to_data(before)}
        recorder = Recorder.open(folder, run_id, spec=spec, mode=mode, guard_state=start)  # type: ignore[arg-type]
        for now in telemetry()[part.start : part.stop]:
            state, decision = guard.step(state, guard.seen(now, before))
            before = now
            skipped = mode == "active" and decision.posture == Posture.SKIP
            scale = decision.scale if mode == "active" else 1.0
            recorder.append(
                now, decision, elapsed_s=0.0, effective_lr=0.0 if skipped else now.lr * scale, skipped=skipped
            )
        recorder.close()
    return folder / f"run_id={run_id}"


def alter(run: Path, column: str, row: int, value: object) -> None:
    """Change one value of a Parquet file, and nothing else."""
    (file,) = run.glob("*.parquet")
    table = pq.ParquetFile(file).read()
    values = table[column].to_pylist()
    assert values[row] != value
    values[row] = value
    field = table.schema.field(column)
    index = table.schema.get_field_index(column)
    plain = pa.array(values, type=field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
    array = plain.dictionary_encode().cast(field.type) if pa.types.is_dictionary(field.type) else plain
    pq.write_table(table.set_column(index, field, array), file)


@pytest.mark.parametrize("preset", ["default", "zscore", "cusum", "never"])
@pytest.mark.parametrize("delay_steps", [0, 1])
@pytest.mark.parametrize("mode", ["shadow", "active"])
def test_every_flight_verifies(preset: str, delay_steps: int, mode: str, tmp_path: Path) -> None:
    spec = GuardSpec.load(preset).with_changes({"delay_steps": delay_steps})
    trace = read_trace(record(tmp_path, spec, mode))
    assert verify(trace) == ("run", 1, ROWS, 0)


def test_whoever_waits_for_a_long_verify_hears_of_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[verify.__module__], "_HEARD_ROWS", 7)
    trace = read_trace(record(tmp_path, GuardSpec.load("never")))
    heard: list[int] = []
    verify(trace, heard.append)
    assert heard == [7] * (ROWS // 7) + [ROWS % 7]


@pytest.mark.parametrize("delay_steps", [0, 1])
def test_two_segments_verify_and_read_as_one(delay_steps: int, tmp_path: Path) -> None:
    spec = GuardSpec.load("default").with_changes({"delay_steps": delay_steps})
    whole = read_trace(record(tmp_path / "a", spec))
    parts = read_trace(record(tmp_path / "b", spec, cut=157))
    assert verify(parts) == ("run", 2, ROWS, 0)
    for name, column in whole.to_numpy().items():
        if name == "crc32":  # of the row and its place in its segment
            continue
        np.testing.assert_array_equal(column, parts.to_numpy()[name], err_msg=name)


@pytest.mark.parametrize("row", [99, 100, 250])
def test_a_long_segment_is_verified_part_by_part(row: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(tmp_path, GuardSpec.load("default"))
    monkeypatch.setattr(journal, "_CHUNK_ROWS", 100)
    trace = read_trace(run)
    assert [len(part) for part in trace.segments[0].parts()] == [100, 100, 100]
    assert verify(trace) == ("run", 1, ROWS, 0)
    assert "table" not in vars(trace.segments[0])  # which would hold every row
    alter(run, "loss", row, 9.0)
    with pytest.raises(VerifyError, match=rf"run 'run' segment 0 row {row} does not match its checksum"):
        verify(read_trace(run))
    alter(run, "step", row, row - 2)
    with pytest.raises(TraceError, match=rf"row {row}: step goes {row - 1} -> {row - 2} within one attempt"):
        verify(read_trace(run))


def test_replaying_the_recorded_guard_gives_the_recorded_decisions(tmp_path: Path) -> None:
    spec = GuardSpec.load("default")
    trace = read_trace(record(tmp_path, spec))
    replayed, recorded = replay(trace, spec).columns, trace.to_numpy()
    for name in ("regime", "posture", "scale", "energy", "reason"):
        np.testing.assert_array_equal(replayed[name], recorded[name], err_msg=name)
    assert replayed["scale"].min() < 1.0


def test_another_guard_decides_otherwise_on_the_same_record(tmp_path: Path) -> None:
    trace = read_trace(record(tmp_path, GuardSpec.load("default")))
    assert replay(trace, GuardSpec.load("never")).columns["energy"].max() == 0.0


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [
        ("loss", 10, 2.0),
        ("lr", 299, 2e-3),
        ("grad_norm", 0, 0.7),
        ("update_norm", 123, 0.7),
        ("tokens", 7, 65.0),
        ("nonfinite", 220, 0.0),
        ("elapsed_s", 3, 1.0),
        ("effective_lr", 12, 2e-3),
        ("regime", 155, "STABLE"),
        ("posture", 50, "DAMP"),
        ("scale", 200, 0.3),
        ("energy", 299, 0.0),
        ("reason", 20, "GRANTED"),
        ("skipped", 40, True),
        ("event", 60, "lr_bump"),
    ],
)
def test_an_altered_value_is_refused_and_its_row_named(column: str, row: int, value: object, tmp_path: Path) -> None:
    run = record(tmp_path, GuardSpec.load("default"))
    alter(run, column, row, value)
    with pytest.raises(VerifyError, match=rf"run 'run' segment 0 row {row} "):
        verify(read_trace(run))


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"scale": 0.5}, "recorded scale=0.5; the recorded guard decides scale=1.0"),
        ({"regime": 77}, "recorded regime=77, which is none; the recorded guard decides regime=STABLE"),
    ],
)
def test_a_decision_that_was_wrong_when_it_was_recorded_is_named_with_what_the_guard_decides(
    lie: dict[str, float], message: str, tmp_path: Path
) -> None:
    spec = GuardSpec.load("default")
    guard = spec.build()
    recorder = Recorder.open(tmp_path, "liar", spec=spec, mode="shadow")
    state, before = guard.init(), guard.not_yet
    for now in telemetry():
        state, decision = guard.step(state, guard.seen(now, before))
        before = now
        told = decision._replace(**lie) if now.step == 42 else decision
        recorder.append(now, told, elapsed_s=0.0, effective_lr=now.lr)
    recorder.close()
    with pytest.raises(VerifyError, match=rf"row 42 \(step 42\): {message}"):
        verify(read_trace(tmp_path))


def test_a_flight_that_did_not_do_what_it_decided_is_refused(tmp_path: Path) -> None:
    spec = GuardSpec.load("never")
    recorder = Recorder.open(tmp_path, "odd", spec=spec, mode="active")
    _, decision = spec.build().step(spec.build().init(), Telemetry(-1))
    recorder.append(Telemetry(0, 1.0, 1e-3), decision, elapsed_s=0.0, effective_lr=5e-4)
    recorder.close()
    with pytest.raises(VerifyError, match=r"row 0 \(step 0\): recorded effective_lr=0.0005"):
        verify(read_trace(tmp_path))


def test_a_trace_without_the_needed_channel_is_refused_and_both_are_named(tmp_path: Path) -> None:
    spec = GuardSpec.load("never")
    guard = spec.build()
    recorder = Recorder.open(tmp_path, "blind", spec=spec, mode="shadow")
    for step in range(5):
        now = Telemetry(step, lr=1e-3, grad_norm=1.0)
        recorder.append(now, guard.step(guard.init(), now)[1], elapsed_s=0.0, effective_lr=1e-3)
    recorder.close()
    trace = read_trace(tmp_path)
    assert verify(trace).rows == 5
    with pytest.raises(
        ChannelError, match=r"sensor 'robust_loss' .* needs channel loss, which trace 'blind' does not hold"
    ):
        replay(trace, GuardSpec.load("default"))
