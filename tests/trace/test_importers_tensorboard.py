"""Event files that torch wrote come back number for number; a broken one gives what can be read, and says what not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from lbw_sim.errors import TraceError
from lbw_sim.replay import verify
from lbw_sim.trace import read_trace, read_traces
from lbw_sim.trace.importers import import_path

pytest.importorskip("tensorboard")
LOSSES = [5.5, math.nan, math.inf, 1e-17, 2.25, 2.125, 0.0]


def write_run(folder: Path, *, new_style: bool = False, first: int = 0, losses: list[float] = LOSSES) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        writer.add_text("note", "hello")
        writer.add_histogram("weights", np.arange(10.0))
        for step, loss in enumerate(losses, start=first):
            writer.add_scalar("train/loss", loss, step, new_style=new_style, walltime=1.7e9 + step)
            writer.add_scalar("eval/loss", 9.0, step, new_style=new_style)
            if step % 2 == 0:
                writer.add_scalar("train/grad_norm", 1.5 * step, step, new_style=new_style, walltime=1.7e9 + step)
    return next(folder.glob("events*"))


@pytest.mark.parametrize("new_style", [False, True], ids=["simple_value", "tensor"])
def test_every_scalar_comes_back_nan_and_infinity_included(new_style: bool, tmp_path: Path) -> None:
    write_run(tmp_path / "logs" / "my run", new_style=new_style)
    found = import_path(tmp_path / "logs", tmp_path / "out")
    (run,) = found.runs
    assert (run.run_id, run.rows, run.importer) == ("my-run", len(LOSSES), "tensorboard")
    assert found.passed_over == ()
    trace = read_trace(tmp_path / "out")
    columns = trace.to_numpy()
    assert columns["step"].tolist() == list(range(len(LOSSES)))
    assert [str(x) for x in columns["loss"].tolist()] == [str(float(np.float32(x))) for x in LOSSES]
    assert columns["nonfinite"].tolist() == [0, 1, 1, 0, 0, 0, 0]
    assert columns["grad_norm"][::2].tolist() == [0.0, 3.0, 6.0, 9.0]
    assert np.isnan(columns["grad_norm"][1::2]).all()
    assert columns["elapsed_s"].tolist() == list(range(len(LOSSES)))
    assert verify(trace).rows == len(LOSSES)
    assert "1 loss is exactly 0: a nan may have been logged as 0" in run.suspicions


def test_numbers_equal_those_of_tensorboards_own_reader(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    random = np.random.default_rng(0)
    write_run(tmp_path / "run", losses=random.lognormal(size=500).tolist())
    import_path(tmp_path / "run", tmp_path / "out")
    theirs = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0})
    theirs.Reload()
    columns = read_trace(tmp_path / "out").to_numpy()
    assert [event.value for event in theirs.Scalars("train/loss")] == columns["loss"].tolist()
    assert [event.step for event in theirs.Scalars("train/loss")] == columns["step"].tolist()


def test_a_resumed_run_is_one_run_whose_last_word_counts(tmp_path: Path) -> None:
    first = write_run(tmp_path / "run", losses=[5.0, 4.0, 3.0])
    first.rename(first.with_name(first.name.replace("events.out.tfevents.", "events.out.tfevents.0")))
    write_run(tmp_path / "run", first=2, losses=[2.5, 2.0])
    (run,) = import_path(tmp_path / "run", tmp_path / "out").runs
    trace = read_trace(tmp_path / "out")
    assert trace.to_numpy()["loss"].tolist() == [5.0, 4.0, 2.5, 2.0]
    assert trace.to_numpy("all")["attempt"].tolist() == [0, 0, 0, 1, 1]
    assert any("the step does not rise at row 4: step 2 -> 2 (1 in all)" in text for text in run.suspicions)


def test_two_writers_of_one_training_make_one_row_a_step_also_when_it_is_resumed(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for part, (start, steps) in enumerate([(1.7e9, range(6)), (1.8e9, range(4, 9))]):
        for tag, value in (("train/loss", 5.0), ("lr", 0.1)):
            with SummaryWriter(str(tmp_path / "run"), filename_suffix=f".{part}.{tag[:2]}") as writer:
                for step in steps:
                    writer.add_scalar(tag, value - part / 16, step, walltime=start + step)
            for file in (tmp_path / "run").glob(f"*.{part}.{tag[:2]}"):
                file.rename(file.with_name(f"events.out.tfevents.{part}{tag[:2]}"))
    import_path(tmp_path / "run", tmp_path / "out")
    trace = read_trace(tmp_path / "out")
    columns = trace.to_numpy()
    assert columns["step"].tolist() == list(range(9))
    assert columns["loss"].tolist() == [5.0] * 4 + [5.0 - 1 / 16] * 5
    assert columns["lr"].tolist() == pytest.approx([0.1] * 4 + [0.1 - 1 / 16] * 5)
    assert trace.to_numpy("all")["attempt"].tolist() == [0] * 6 + [1] * 5


def test_a_torn_tail_is_told_and_what_lies_before_it_is_read(tmp_path: Path) -> None:
    file = write_run(tmp_path / "run")
    data = file.read_bytes()
    file.write_bytes(data[: data.index(b"eval/loss", len(data) // 4) + 4])
    (run,) = import_path(tmp_path / "run", tmp_path / "out").runs
    assert 1 <= run.rows < len(LOSSES)
    assert "it ends within a record after" in run.suspicions[0]


def test_a_flipped_record_is_left_out_and_counted(tmp_path: Path) -> None:
    file = write_run(tmp_path / "run")
    data = bytearray(file.read_bytes())
    at = data.index(b"train/loss", len(data) // 3)
    data[at + 12] ^= 1
    file.write_bytes(bytes(data))
    (run,) = import_path(tmp_path / "run", tmp_path / "out").runs
    assert "1 records fail their checksum" in run.suspicions[0]
    lost = [loss for loss in read_trace(tmp_path / "out").to_numpy()["loss"].tolist() if loss == loss]
    assert len(lost) == len(LOSSES) - 2


def test_after_a_wrong_length_nothing_is_guessed(tmp_path: Path) -> None:
    file = write_run(tmp_path / "run")
    data = bytearray(file.read_bytes())
    start = data.index(b"train/grad_norm", len(data) // 2) - 19 - 2 - 12
    for flipped in range(start, len(data)):
        data[flipped] ^= 0x55
    file.write_bytes(bytes(data))
    (run,) = import_path(tmp_path / "run", tmp_path / "out").runs
    assert "what follows is not read" in run.suspicions[0]


def test_one_folder_per_run_and_the_tags_of_the_hugging_face_trainer_are_known(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for name in ("a", "b"):
        with SummaryWriter(str(tmp_path / "logs" / name / "runs")) as writer:
            for step in (10, 20):
                writer.add_scalar("train/loss", 2.5, step)
                writer.add_scalar("train/epoch", 0.1, step)
    runs = import_path(tmp_path / "logs", tmp_path / "out").runs
    assert [run.run_id for run in runs] == ["runs", "b-runs"]
    assert runs[0].suspicions[0].startswith("each loss is the mean of the 10 steps since the row before")
    assert [trace.run_id for trace in read_traces(tmp_path / "out")] == ["b-runs", "runs"]


def test_more_numbers_than_memory_is_bounded_for_are_left_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbw_sim.trace.importers.tensorboard.MOST_POINTS", 5)
    write_run(tmp_path / "run")
    (run,) = import_path(tmp_path / "run", tmp_path / "out").runs
    assert run.rows == 3
    assert "more than 5 numbers; those that follow are not read" in run.suspicions[0]


def test_the_name_of_the_machine_in_names_of_folder_and_file_is_not_kept(tmp_path: Path) -> None:
    file = write_run(tmp_path / "Nov24_21-59-03_secrethost")
    file = file.rename(file.with_name("events.out.tfevents.1700000000.secrethost.1.0"))
    file.write_bytes(file.read_bytes()[:-3])
    (run,) = import_path(tmp_path, tmp_path / "out").runs
    assert run.run_id == "Nov24_21-59-03"
    assert "event file 1: it ends within a record" in run.suspicions[0]
    for written in (tmp_path / "out").rglob("*.parquet"):
        assert b"secrethost" not in written.read_bytes()


def test_a_folder_without_a_loss_names_its_tags(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run")) as writer:
        writer.add_scalar("score", 2.5, 1)
    (passed,) = import_path(tmp_path / "run", tmp_path / "out").passed_over
    assert "no column looks like the loss: it has step, score. Name it by --loss" in passed.reason
    (run,) = import_path(tmp_path / "run", tmp_path / "out", columns={"loss": "score"}).runs
    assert run.rows == 1
    with pytest.raises(TraceError, match="no column looks like the loss"):
        import_path(next((tmp_path / "run").iterdir()), tmp_path / "out2")
