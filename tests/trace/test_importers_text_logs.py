"""Lines as the systems print them, and the table of patterns that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbw_sim.errors import TraceError
from lbw_sim.trace import read_trace
from lbw_sim.trace.importers import import_path

LOGS = {
    "nanogpt": (
        "tokens per iteration will be: 491,520\nstep 0: train loss 10.9897, val loss 10.9898\n"
        "iter 0: loss 10.9886, time 31526.38ms, mfu -100.00%\niter 10: loss nan, time 384.10ms, mfu 41.52%\n",
        [(0, 10.9886, None, None), (10, "nan", None, None)],
    ),
    "modded_nanogpt": (
        "import torch\nfor step in range(9):\n" * 9000 + "step:0/1390 val_loss:10.8258 train_time:0ms step_avg:nanms\n"
        "step:1/1390 train_loss:10.8258 train_time:157ms step_avg:nanms\n"
        "step:2/1390 train_loss:10.7402 train_time:301ms step_avg:150.2ms\n",
        [(1, 10.8258, None, None), (2, 10.7402, None, None)],
    ),
    "llmc": (
        "val loss 11.0\nstep    1/19560 | loss 11.009300 (+nanz)| norm 15.9012 (+nanz)| lr 8.57e-07 | 3056.36 ms | "
        "42.6% bf16 MFU | 171544 tok/s\n"
        "step    2/19560 | loss 10.957500 (+0.12z)| norm 15.5100 (-1.00z)| lr 1.71e-06 | 2987.11 ms | 171000 tok/s\n",
        [(1, 11.0093, 8.57e-07, 15.9012), (2, 10.9575, 1.71e-06, 15.51)],
    ),
    "llmc_main_log": (
        "s:0 tel:11.0090\ns:0 trl:11.0093 lr:0.000001 norm:15.90\ns:1 trl:10.9575 lr:0.000002 norm:15.51\n",
        [(0, 11.0093, 1e-6, 15.9), (1, 10.9575, 2e-6, 15.51)],
    ),
    "megatron": (
        " [2024-05-01 10:00:00] iteration       10/  500000 | consumed samples:         2560 | elapsed time per "
        "iteration (ms): 5601.2 | learning rate: 4.687500E-07 | global batch size:   256 | lm loss: 1.097514E+01 | "
        "loss scale: 1.0 | grad norm: 3.125 | number of skipped iterations:   0 | number of nan iterations:   0 |\n"
        " iteration       20/  500000 | elapsed time per iteration (ms): 5601.2 | learning rate: 9.375E-07 | "
        "loss scale: 1.0 | grad norm: nan | number of skipped iterations:   0 | number of nan iterations:  10 |\n",
        [(10, 10.97514, 4.6875e-07, 3.125), (20, None, 9.375e-07, "nan")],
    ),
    "torchtitan": (
        "[rank0]:[titan] 2025-01-01 00:00:00,000 - root - INFO - \x1b[31mstep:  1  \x1b[32mloss: 12.26031  "
        "\x1b[38;2;180;60;0mgrad_norm:  1.7573  \x1b[36mmemory: 55.21GiB(58.13%)  \x1b[34mtps: 1,404  "
        "\x1b[36mtflops: 72.35  \x1b[35mmfu: 7.32%\x1b[0m\n"
        "[rank0]:step:  2  loss: -nan  grad_norm: inf  memory: 55.21GiB(58.13%)  tps: 1,404\n",
        [(1, 12.26031, None, 1.7573), (2, "nan", None, "inf")],
    ),
    "olmo_core": (
        "2025-01-01 00:00:00 host:0 olmo_core.train.callbacks.console_logger:70 INFO [step=1/1000,epoch=1,eta=3h]\n"
        "    optim/LR (group 0)=4.000E-07\n    optim/total grad norm=1,234.5\n    train/CE loss=11.05\n"
        "    train/PPL=62,944\n2025-01-01 00:00:01 INFO [step=2/1000,epoch=1]\n"
        "2025-01-01 00:00:02 INFO [step=3/1000,epoch=1]\n    train/CE loss=10.97\n    optim/LR (group 0)=8.0E-07\n",
        [(1, 11.05, 4e-7, 1234.5), (3, 10.97, 8e-7, None)],
    ),
    "mlperf": (
        ':::MLLOG {"namespace": "", "time_ms": 1, "event_type": "INTERVAL_START", "key": "run_start", "value": null}\n'
        '0: :::MLLOG {"namespace": "", "time_ms": 1700000000000, "event_type": "POINT_IN_TIME", "key": "train_loss", '
        '"value": 11.846, "metadata": {"samples_count": 0, "lr": 3.125e-06}}\n:::MLLOG {cut\n'
        ':::MLLOG {"namespace": "", "time_ms": 1700000001000, "event_type": "POINT_IN_TIME", "key": "train_loss", '
        '"value": NaN, "metadata": {"samples_count": 512, "lr": 6.25e-06}}\n',
        [(0, 11.846, 3.125e-06, None), (512, "nan", 6.25e-06, None)],
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_lines_of_each_system_are_recognised_and_read(name: str, tmp_path: Path) -> None:
    text, wanted = LOGS[name]
    (tmp_path / "train.log").write_text(text)
    (run,) = import_path(tmp_path / "train.log", tmp_path / "out").runs
    assert (run.importer, run.rows) == (name, len(wanted))
    columns = read_trace(tmp_path / "out").to_numpy()
    for row, (step, *numbers) in enumerate(wanted):
        assert columns["step"][row] == step
        for column, number in zip(("loss", "lr", "grad_norm"), numbers, strict=True):
            assert str(columns[column][row]) == str(float("nan" if number is None else number)), (column, row)
    broken = [float("nan") if loss is None and norm is None else float("nan" in (loss, norm) or "inf" in (loss, norm))
              for _, loss, _, norm in wanted]  # fmt: skip
    assert columns["nonfinite"].tolist() == broken


def test_what_megatron_averages_and_leaves_out_is_said(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(LOGS["megatron"][0])
    (run,) = import_path(tmp_path / "train.log", tmp_path / "out").runs
    assert run.suspicions[0].startswith("each loss is the mean of the 10 steps since the row before")
    assert "1 row has no loss" not in run.suspicions, "its gradient norm was nan: the step is known to be broken"


def test_a_line_of_nothing_but_digits_takes_no_longer_than_another(tmp_path: Path) -> None:
    line = "step:1/9 train_loss:2.5 train_time:"
    (tmp_path / "train.log").write_text("".join(f"{line}{filler * 60_000}\n" for filler in ("7", ",", " ", "-", "7.")))
    (run,) = import_path(tmp_path / "train.log", tmp_path / "out", source="modded_nanogpt").runs
    assert run.rows == 5


def test_a_text_without_training_steps_is_not_recognised_and_said_to_be_none_when_forced(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("the loss was fine\n")
    with pytest.raises(TraceError, match="not recognised as any of"):
        import_path(file, tmp_path / "out")
    with pytest.raises(TraceError, match="holds no line of a training step"):
        import_path(file, tmp_path / "out", source="nanogpt")
    assert [item.path for item in import_path(tmp_path, tmp_path / "out").passed_over] == ["notes.txt"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_log_in_utf_16_is_said_to_be_and_how_to_convert_it(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "train.log"
    file.write_bytes(LOGS["nanogpt"][0].encode(encoding))
    for source in (None, "nanogpt"):
        with pytest.raises(TraceError, match=r"train\.log: text in UTF-16.*iconv -f UTF-16 -t UTF-8"):
            import_path(file, tmp_path / "out", source=source)
    (item,) = import_path(tmp_path, tmp_path / "out").passed_over
    assert item.reason.startswith("text in UTF-16")


def test_a_byte_order_mark_in_utf_8_costs_no_line(tmp_path: Path) -> None:
    for name, encoding in (("plain", "utf-8"), ("marked", "utf-8-sig")):
        lines = [f"iter {step}: loss 2.{step}, time 1.0ms, mfu 1.00%\n" for step in range(9)]
        (tmp_path / f"{name}.log").write_bytes("".join(lines).encode(encoding))
    marked, plain = import_path(tmp_path, tmp_path / "out").runs
    assert marked.rows == plain.rows == 9


def test_an_importer_dropped_into_the_folder_is_found(tmp_path: Path) -> None:
    from lbw_sim.trace.importers import importers

    known = importers()
    assert {"tensorboard", "hugging_face", "wandb", "mlflow", "trackio", "lightning", "csv", *LOGS} <= set(known)


@pytest.mark.parametrize(
    "line",
    [
        "iter {}: loss {:.4f}, time 12.00ms, mfu 40.00%",
        "step  {}/19560 | loss {:.6f} (+0.1z)| norm 1.2345 (+0.1z)| lr 3.00e-04 | 1000 ms",
        " iteration  {}/  500000 | learning rate: 1.000000E-04 | lm loss: {:.6E} | grad norm: 1.234 |",
    ],
)
def test_a_log_that_is_being_written_never_gives_half_of_a_number(line: str, tmp_path: Path) -> None:
    text = "".join(line.format(step, 12.5 + step) + "\n" for step in (95, 96, 97))
    last = text.rstrip("\n").rfind("\n") + 1
    for end in (*range(last + 1, len(text), 3), len(text)):
        (tmp_path / "train.log").write_text(text[:end])
        found = import_path(tmp_path / "train.log", tmp_path / f"out-{end}")
        columns = read_trace(tmp_path / f"out-{end}").to_numpy()
        assert columns["loss"].tolist() == [107.5, 108.5, 109.5][: 3 if end == len(text) else 2]
        assert set(columns["lr"].tolist()) <= {1e-4, 3e-4} or line.startswith("iter")
        told = any("the last line has no end" in said for said in found.runs[0].suspicions)
        assert told == (end < len(text)) or end - last < 25


def test_lines_behind_a_progress_bar_are_lines(tmp_path: Path) -> None:
    bar = "\r  3%|#   | 3/100 [00:01<00:20]\r"
    text = "".join(f"{bar}iter {step}: loss {9 - step}.0000, time 12.00ms, mfu 40.00%\r" for step in range(5))
    (tmp_path / "train.log").write_bytes(text.encode())
    import_path(tmp_path / "train.log", tmp_path / "out")
    assert read_trace(tmp_path / "out").to_numpy()["loss"].tolist() == [9.0, 8.0, 7.0, 6.0, 5.0]
