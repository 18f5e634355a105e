"""Mirrors to dashboards: real TensorBoard, W&B and trackio, and sinks that hang, raise and are too slow."""

from __future__ import annotations

import math
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked import Forked

from lbw_sim.errors import LiveError
from lbw_sim.live.sinks import Mirror, MirrorRow, TensorBoardSink, TrackioSink, WandbSink
from lbw_sim.values import Decision, Telemetry

nan = float("nan")


def offer(mirror: Mirror, step: int, *, loss: float = 2.5, nonfinite: float = 0.0) -> None:
    decision = Decision(regime=3, posture=1, scale=0.5, energy=0.25 * step, reason=1)
    mirror.offer(step, Telemetry(step, loss=loss, lr=1e-3, nonfinite=nonfinite), decision, 5e-4)


class Kept:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[MirrorRow] = []
        self.closed = 0

    def write(self, rows: Sequence[MirrorRow]) -> None:
        self.rows += rows

    def close(self) -> None:
        self.closed += 1


class Raising(Kept):
    """Gives up on its second batch."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.calls = 0

    def write(self, rows: Sequence[MirrorRow]) -> None:
        self.calls += 1
        if self.calls > 1:
            raise self.error


class Hanging(Kept):
    """Comes back when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def write(self, rows: Sequence[MirrorRow]) -> None:
        self.entered.set()
        self.let_go.wait(60.0)
        super().write(rows)


def test_rows_come_in_order_with_the_five_values_and_close_hands_over_the_rest() -> None:
    kept = Kept()
    mirror = Mirror([kept], interval_s=60.0)
    offer(mirror, 0)
    offer(mirror, 1, loss=nan, nonfinite=nan)
    offer(mirror, 2, loss=nan, nonfinite=1.0)
    mirror.close()
    mirror.close()
    offer(mirror, 3)
    assert [row.step for row in kept.rows] == [0, 1, 2]
    assert kept.rows[0].values == {
        "lbw/loss": 2.5, "lbw/effective_lr": 5e-4, "lbw/regime": 3.0, "lbw/scale": 0.5, "lbw/energy": 0.0,
    }  # fmt: skip
    # not measured is not there; measured and nan is
    assert ["lbw/loss" in row.values for row in kept.rows] == [True, False, True]
    assert (kept.closed, mirror.dropped) == (1, 1)


@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(1)], ids=["error", "exit"])
def test_a_sink_that_raises_is_dropped_with_one_warning_and_the_others_go_on(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    kept, raising = Kept(), Raising(error)
    mirror = Mirror([raising, kept], interval_s=0.01)
    for step in range(5):
        offer(mirror, step)
        deadline = time.monotonic() + 30.0
        while len(kept.rows) <= step and time.monotonic() < deadline:
            time.sleep(0.005)
    mirror.close()
    assert [row.step for row in kept.rows] == [0, 1, 2, 3, 4]
    assert raising.calls == 2
    assert [record.message for record in caplog.records] == [
        f"lbw-sim: Raising no longer mirrors this run: {type(error).__name__}: {error}"
    ]


def test_a_sink_that_hangs_costs_rows_and_never_time(caplog: pytest.LogCaptureFixture) -> None:
    hanging = Hanging()
    mirror = Mirror([hanging], capacity=100, interval_s=0.01)
    offer(mirror, 0)
    assert hanging.entered.wait(30.0)
    for step in range(1, 1001):
        offer(mirror, step)
    assert mirror.dropped == 900
    start = time.monotonic()
    mirror.close(timeout_s=0.2)
    assert time.monotonic() - start < 10.0
    assert mirror.dropped == 1000
    assert "did not finish within 0.2 s" in caplog.text
    hanging.let_go.set()


def test_a_loop_that_is_too_fast_is_thinned_and_every_piece_of_bad_news_is_kept() -> None:
    kept = Kept()
    mirror = Mirror([kept], rows_per_s=1.0, interval_s=60.0)
    bad = {7: Decision(3, 1, 1.0, 0.0, 0), 400: Decision(1, 1, 0.25, 0.0, 0), 999: Decision(8, 3, 1.0, 0.0, 0)}
    for step in range(1000):
        mirror.offer(step, Telemetry(step, loss=1.0), bad.get(step, Decision(1, 0, 1.0, 0.0, 0)), 1.0)
    mirror.close()
    steps = [row.step for row in kept.rows]
    assert steps == sorted(steps)
    assert len(steps) == math.ceil(1000 / 17)
    assert set(bad) < set(steps)
    assert (mirror.thinned, mirror.dropped) == (1000 - len(steps), 0)


def test_when_every_sink_is_gone_nothing_piles_up() -> None:
    mirror = Mirror([Raising(OSError())], interval_s=0.01)
    thread = mirror._thread
    assert thread is not None
    for step in range(2):
        offer(mirror, step)
        time.sleep(0.05)
    deadline = time.monotonic() + 30.0
    while thread.is_alive() and time.monotonic() < deadline:
        offer(mirror, 2)
        time.sleep(0.01)
    offer(mirror, 3)
    assert len(mirror._queue) == 0
    mirror.close()


FORK = """
import os, sys, time
from lbw_sim.live.sinks import Mirror
from lbw_sim.values import Decision, Telemetry
class Told:
    def write(self, rows):
        for row in rows:
            print(os.getpid() == parent, row.step, flush=True)
    def close(self): print("closed", os.getpid() == parent, flush=True)
parent = os.getpid()
mirror = Mirror([Told()], interval_s=60.0)
mirror.offer(0, Telemetry(0), Decision(1, 0, 1.0, 0.0, 0), 1.0)
children = []
for _ in range(2):
    if (child := os.fork()) == 0:
        mirror.offer(1, Telemetry(1), Decision(1, 0, 1.0, 0.0, 0), 1.0)
        mirror.close()
        assert mirror.dropped == 1 and not mirror._queue  # it neither grows nor keeps its parent's rows
        sys.exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
mirror.close()
print({"wandb", "tensorboard", "trackio"} & set(sys.modules))
"""


def test_a_forked_child_neither_mirrors_nor_hangs_and_no_dashboard_was_loaded(forked: Forked) -> None:
    done = forked.run(FORK, seconds=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True 0", "closed True", "set()"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:google.*")
def test_tensorboard_gets_every_value_at_the_guards_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    theirs = SummaryWriter(str(tmp_path / "theirs"))
    mirror = Mirror([TensorBoardSink(tmp_path / "own"), TensorBoardSink(theirs)], rows_per_s=math.inf, interval_s=0.01)
    before = time.time()
    for step in range(100, 120):
        offer(mirror, step)
    mirror.close(60.0)
    # still its owner's
    theirs.add_scalar("loss", 7.0, 5)
    theirs.close()
    for folder in ("own", "theirs"):
        events = EventAccumulator(str(tmp_path / folder)).Reload()
        tags = {"lbw/loss", "lbw/effective_lr", "lbw/regime", "lbw/scale", "lbw/energy"}
        assert set(events.Tags()["scalars"]) == tags | ({"loss"} if folder == "theirs" else set())
        energy = events.Scalars("lbw/energy")
        assert [(event.step, event.value) for event in energy] == [(step, 0.25 * step) for step in range(100, 120)]
        assert all(before - 1 <= event.wall_time <= time.time() for event in energy)


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline W&B run: framed like a LevelDB log, after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:
            at += left
            continue
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def test_wandb_keeps_every_row_of_a_user_who_counts_his_own_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="project", dir=str(tmp_path), name="mine")
    mirror = Mirror([WandbSink(run)], rows_per_s=math.inf, interval_s=0.01)
    for step in range(50):
        for micro in range(4):  # the guard steps faster than the user logs
            offer(mirror, 4 * step + micro)
        run.log({"loss": 1.0}, step=step)
        time.sleep(0.005)
    mirror.close(60.0)
    assert wandb.run is run
    run.log({"loss": 0.5}, step=50)
    run.finish()
    wandb.teardown()  # only now is the file surely written
    found: dict[str, list[dict[str, str]]] = {}
    axes: list[str] = []
    for file in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        for record in wandb_records(file):
            if record.HasField("history"):
                row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                found.setdefault(file.stem, []).append(row)
            elif record.HasField("metric") and record.metric.glob_name:
                axes.append(f"{record.metric.glob_name} over {record.metric.step_metric}")
    mine, mirrored = found[f"run-{run.id}"], found[f"run-{run.id}-lbw"]
    assert [(row["_step"], row["loss"]) for row in mine] == [(str(i), "1") for i in range(50)] + [("50", "0.5")]
    assert not any(key.startswith("lbw/") for row in mine for key in row)
    assert [int(row["lbw/step"]) for row in mirrored] == list(range(200))
    assert {row["lbw/scale"] for row in mirrored} == {"0.5"}
    assert axes == ["lbw/* over lbw/step"]


def test_trackio_gets_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio", minversion="0.20")
    from trackio.sqlite_storage import SQLiteStorage

    trackio.init(project="project", name="mine", embed=False)
    trackio.log({"loss": 1.0})
    mirror = Mirror([TrackioSink("project", "mine-lbw")], rows_per_s=math.inf, interval_s=0.01)
    for step in range(1000, 1020):
        offer(mirror, step)
    mirror.close(60.0)
    trackio.log({"loss": 2.0})
    trackio.finish()
    assert [row["step"] for row in SQLiteStorage.get_logs("project", "mine")] == [0, 1]
    assert [row["step"] for row in SQLiteStorage.get_logs("project", "mine-lbw")] == list(range(1000, 1020))


def test_what_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(LiveError, match=r"not a W&B run; give what wandb.init\(\) returned"):
        WandbSink("my-run")
    run = SimpleNamespace(log=print, define_metric=print)
    with pytest.raises(LiveError, match="own_run='no' is neither True nor False"):
        WandbSink(run, own_run="no")  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in ("tensorboard", "trackio"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(LiveError, match="pip install tensorboard"):
        TensorBoardSink(tmp_path)
    with pytest.raises(LiveError, match="pip install trackio"):
        TrackioSink("project", "name")
