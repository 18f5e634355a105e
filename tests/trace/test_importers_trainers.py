"""Logs that real trainers wrote: the Hugging Face Trainer, Lightning's CSVLogger, wandb offline."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from lbw_sim.errors import TraceError
from lbw_sim.replay import verify
from lbw_sim.trace import read_trace
from lbw_sim.trace.importers import import_path

WANDB = """
import math, sys, wandb
run = wandb.init(project="p", mode="offline", dir=sys.argv[1], settings=wandb.Settings(console="off"))
for step in range(40):
    loss = {5: math.nan, 6: math.inf, 7: -math.inf}.get(step, 3.0 + 0.1 / (step + 1))
    run.log({"train/loss": loss, "lr": 1e-3, "table": "x" * 3000, "nested": {"a": 1}})
    if step % 10 == 0:
        run.log({"eval/loss": 3.0})
run.finish()
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("wandb")
    folder = tmp_path_factory.mktemp("wandb")
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(folder)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (file,) = folder.rglob("*.wandb")
    return file


def test_an_offline_file_of_wandb_comes_back_row_for_row(offline: Path, tmp_path: Path) -> None:
    (run,) = import_path(offline, tmp_path / "out").runs
    assert (run.rows, run.importer) == (40, "wandb")
    trace = read_trace(tmp_path / "out")
    columns = trace.to_numpy()
    wanted = [{5: math.nan, 6: math.inf, 7: -math.inf}.get(step, 3.0 + 0.1 / (step + 1)) for step in range(40)]
    assert [str(x) for x in columns["loss"].tolist()] == [str(x) for x in wanted]
    assert columns["lr"].tolist() == [1e-3] * 40
    assert (np.diff(columns["elapsed_s"]) >= 0).all()
    assert verify(trace).rows == 40


def test_a_torn_or_flipped_wandb_file_is_read_as_far_as_it_goes(offline: Path, tmp_path: Path) -> None:
    data = offline.read_bytes()
    assert len(data) > 3 * (32 << 10), "records go over the edges of blocks"
    torn = tmp_path / "torn.wandb"
    torn.write_bytes(data[: len(data) // 2])
    (run,) = import_path(torn, tmp_path / "out").runs
    assert 5 < run.rows < 40
    assert any("ends within record" in text for text in run.suspicions)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    (tmp_path / "flipped.wandb").write_bytes(bytes(flipped))
    (run,) = import_path(tmp_path / "flipped.wandb", tmp_path / "out").runs
    assert run.rows == 39
    assert any("1 records fail their checksum" in text for text in run.suspicions)


@pytest.mark.parametrize("left", [0, 1, 6, 7])
def test_a_record_of_wandb_begins_a_block_where_the_last_one_left_no_room(left: int, tmp_path: Path) -> None:
    def framed(data: bytes) -> bytes:
        return struct.pack("<IHB", crc32(data, crc32(b"\x01")), len(data), 1) + data

    def row(step: int) -> bytes:
        items = b"".join(
            b"\x0a" + bytes([len(name) + len(text) + 5]) + b"\x0a" + bytes([len(name)]) + name
            + b"\x82\x01" + bytes([len(text)]) + text
            for name, text in ((b"loss", b"2.5"), (b"_step", str(step).encode()))
        )  # fmt: skip
        return b"\x12" + bytes([len(items)]) + items

    begun = b":W&B\xe1\xbe\x00" + framed(row(1))
    room = (32 << 10) - len(begun) - 7 - left
    # another kind of record, of the length that leaves so much
    begun += framed(
        b"\x22" + bytes([room - 4 & 0x7F | 0x80, room - 4 >> 7 & 0x7F | 0x80, room - 4 >> 14]) + bytes(room - 4)
    )
    data = begun + (bytes(left) if left < 7 else b"") + framed(row(2))
    if left == 7:
        # room for a head and nothing else: an empty first part, as LevelDB's writer does
        whole = row(2)
        data = begun + struct.pack("<IHB", crc32(b"", crc32(b"\x02")), 0, 2)
        data += struct.pack("<IHB", crc32(whole, crc32(b"\x04")), len(whole), 4) + whole
    (tmp_path / "run.wandb").write_bytes(data)
    (run,) = import_path(tmp_path / "run.wandb", tmp_path / "out").runs
    assert run.suspicions == ()
    assert read_trace(tmp_path / "out").to_numpy()["step"].tolist() == [1, 2]


def test_an_export_of_wandb_is_known_and_a_sample_of_500_rows_suspected(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    step = np.arange(500) * 7
    table = pa.table({"_step": step, "_timestamp": 1.7e9 + step, "train/loss": 3 + np.sin(step) / 7})
    pq.write_table(table, tmp_path / "export.parquet")
    (run,) = import_path(tmp_path / "export.parquet", tmp_path / "out").runs
    assert (run.importer, run.rows) == ("wandb", 500)
    assert any("exactly 500 rows, as the sampled history of W&B has" in text for text in run.suspicions)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_step_of_the_trainer_goes_before_the_count_of_log_calls(ending: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    # as the Hugging Face Trainer logs to W&B: a mean over 10 steps each, and an evaluation after every second one
    rows: dict[str, list[float | None]] = {name: [] for name in ("_step", "_timestamp", "train/loss", "eval/loss")}
    rows |= {"train/global_step": [], "train/epoch": []}
    for call in range(30):
        evaluation = call % 3 == 2
        step = 10 * (2 * (call // 3) + min(1 + call % 3, 2))
        loss = 3.0 - math.sqrt(step) / 30.0
        for name, value in zip(
            rows, (call, 1.7e9 + call, None if evaluation else loss, loss if evaluation else None, step, step / 100),
            strict=True,
        ):  # fmt: skip
            rows[name].append(value)
    table, file = pa.table(rows), tmp_path / f"export.{ending}"
    pq.write_table(table, file) if ending == "parquet" else pyarrow.csv.write_csv(table, file)
    (run,) = import_path(file, tmp_path / "out").runs
    assert read_trace(tmp_path / "out").to_numpy()["step"].tolist() == list(range(10, 210, 10))
    assert run.suspicions[0].startswith("each loss is the mean of the 10 steps since the row before")
    (counted,) = import_path(file, tmp_path / "counted", columns={"step": "_step"}).runs
    assert counted.rows == 20


def test_an_address_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="expected wandb://entity/project/run"):
        import_path("wandb://only/two", tmp_path / "out")
    with pytest.raises(TraceError, match="no importer reads ftp://"):
        import_path("ftp://a/b/c", tmp_path / "out")


def train(folder: Path, every: int) -> Path:
    """A real Trainer run of 12 steps whose loss is nan at step 5."""
    import torch
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))
            self.calls = 0

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, Any]:
            self.calls += 1
            loss = (self.weight * x).square().mean() + 1.0
            return {"loss": loss * (math.nan if self.calls == 5 else 1.0)}

    arguments = TrainingArguments(
        str(folder), max_steps=12, logging_steps=every, save_steps=6, per_device_train_batch_size=1, report_to=[],
        disable_tqdm=True, use_cpu=True, max_grad_norm=1.0,
    )  # fmt: skip
    rows = [{"x": torch.ones(3) * (1 + i / 8), "labels": torch.zeros(1)} for i in range(12)]
    Trainer(model=Model(), args=arguments, train_dataset=rows).train()  # type: ignore[arg-type]
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_state_of_a_real_trainer_comes_back_and_says_what_it_hides(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    train(tmp_path / "each", 1)
    train(tmp_path / "means", 3)
    found = import_path(tmp_path, tmp_path / "out")
    runs = {run.run_id: run for run in found.runs}
    assert {name: run.rows for name, run in runs.items()} == {"each": 12, "means": 4}
    assert all(run.importer == "hugging_face" for run in runs.values())
    state = json.loads((tmp_path / "means" / "checkpoint-12" / "trainer_state.json").read_text())
    logged = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert read_trace(tmp_path / "out", "means").to_numpy()["loss"].tolist() == logged
    each, means = runs["each"].suspicions, runs["means"].suspicions
    assert means[0].startswith(
        "each loss is the mean of the 3 steps since the row before: a spike of one step shows 1/3"
    )
    assert not any("mean of" in text for text in each)
    for texts in (each, means):
        assert any("the logger does not show nan" in text for text in texts)
    assert "8 losses are exactly 0: a nan may have been logged as 0" in each, "the Trainer logged the nan as 0.0"


@pytest.mark.parametrize(("own", "checkpoint", "rows"), [(5, 9, 9), (12, 9, 12), (9, 9, 9)])
def test_of_a_resumed_run_that_died_the_newest_state_is_imported(
    own: int, checkpoint: int, rows: int, tmp_path: Path
) -> None:
    """The first training ended and wrote the folder's own state; the second got as far as a checkpoint."""
    for folder, steps in ((tmp_path / "run", own), (tmp_path / "run" / "checkpoint-9", checkpoint)):
        folder.mkdir(parents=True, exist_ok=True)
        history = [{"step": step + 1, "loss": 2.0 - step / 100} for step in range(steps)]
        state = {"best_global_step": 3, "global_step": steps, "log_history": history, "logging_steps": 1}
        (folder / "trainer_state.json").write_text(json.dumps(state, indent=2))
    assert [run.rows for run in import_path(tmp_path / "run", tmp_path / "traces").runs] == [rows]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_trainer_state_with_a_byte_order_mark_is_read(tmp_path: Path, indent: int | None) -> None:
    state = {"global_step": 2, "logging_steps": 1, "log_history": [{"step": i, "loss": 3.0 - i} for i in (1, 2)]}
    file = tmp_path / "run" / "trainer_state.json"
    file.parent.mkdir()
    file.write_text(json.dumps(state, indent=indent), encoding="utf-8-sig")
    (run,) = import_path(file, tmp_path / "out").runs
    assert (run.run_id, run.rows, run.importer) == ("run", 2, "hugging_face")


def test_a_trainer_state_is_read_entry_by_entry_and_a_cut_one_as_far_as_it_goes(tmp_path: Path) -> None:
    history = [{"step": step, "loss": 2.5 - step / 1e5, "note": "x" * 100} for step in range(1, 5000)]
    text = json.dumps({"a": '"log_history": [1]', "log_history": history, "logging_steps": 1.0, "max_steps": 9})
    file = tmp_path / "run" / "trainer_state.json"
    file.parent.mkdir()
    file.write_text(text)
    (run,) = import_path(file, tmp_path / "out").runs
    assert (run.rows, run.suspicions[0][:28]) == (4999, "the logger does not show nan")
    file.write_text(text[: len(text) // 2])
    (run,) = import_path(file, tmp_path / "cut").runs
    assert 2000 < run.rows < 3000
    assert any("it ends within its history" in said for said in run.suspicions)
    for broken, message in [
        ('{"log_history": [{"step": 1, "loss": 2.5}, 7]}', "holds '7' where an object belongs"),
        ('{"log_history": [{"step": 1, "loss": oops}]}', "is not JSON at character"),
        ('{"log_history": [' + "[" * 300_000, "is not JSON at character|ends within"),
        ('{"log_history": 3}', "holds no log_history"),
    ]:
        file.write_text(broken)
        with pytest.raises(TraceError, match=message):
            import_path(file, tmp_path / "no")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_lines_of_one_step_of_lightnings_logger_become_one_row(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(str(tmp_path / "logs"), name="mine", flush_logs_every_n_steps=7)
    losses = [math.nan if step == 8 else 3.0 - 0.01 * step for step in range(20)]
    for step, loss in enumerate(losses):
        logger.log_metrics({"lr-AdamW": 1e-3}, step)
        logger.log_metrics({"train_loss": loss, "epoch": 0}, step)
        if step == 9:
            logger.log_metrics({"val_loss": 3.3, "epoch": 0}, step)
    logger.save()
    (run,) = import_path(tmp_path / "logs", tmp_path / "out").runs
    assert (run.run_id, run.rows, run.importer) == ("mine-version_0", 20, "lightning")
    columns = read_trace(tmp_path / "out").to_numpy()
    assert [str(x) for x in columns["loss"].tolist()] == [str(x) for x in losses]
    assert columns["lr"].tolist() == [1e-3] * 20
    assert columns["nonfinite"].tolist() == [float(step == 8) for step in range(20)]
