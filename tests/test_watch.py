"""What a watcher sees: the same whatever the pace at which rows come, and from a real process at work."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from trace_rows import begin

from lbw_sim.score import find_alarms, unsafe_rows
from lbw_sim.trace import read_trace
from lbw_sim.trace.tail import Appended
from lbw_sim.values import Decision, Regime, Telemetry
from lbw_sim.watch import LAST, RunView, SeenAlarm, Thinned, braille, draw, find_run

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "traces" / "tiny" / "run_id=postln_lr_bump_active_s7"
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "trace")])}
TRAIN = """
import sys, time
from trace_rows import append_row, begin
recorder = begin(sys.argv[1])
row = 0
while not (len(sys.argv) > 2 and row >= int(sys.argv[2])):
    append_row(recorder, row)
    row += 1
    print(row, flush=True)
    time.sleep(0.01)
recorder.close()
"""


def text_of(view: RunView) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(draw(view, 100))
    return captured.get()


def test_a_finished_run_is_shown_as_it_ended() -> None:
    view = RunView(SHIPPED)
    view.look()
    columns = read_trace(SHIPPED).to_numpy()
    facts = view.facts()
    assert facts["last"]["loss"] == columns["loss"][-1]
    assert facts["last"]["energy"] == columns["energy"][-1]
    assert (facts["rows"], facts["writer"], facts["mode"]) == (400, "closed", "active")
    assert facts["last_alarms"] == [SeenAlarm(204, 282, "DIVERGING")]
    assert facts["last_events"] == [{"step": 200, "event": "lr_bump"}]
    assert view.over(patience_s=5.0)
    text = text_of(view)
    for part in (
        "postln_lr_bump_active_s7",
        "closed by its writer",
        "400 rows",
        "STABLE",
        "DIVERGING 204–282",
        "lr_bump at 200",
    ):
        assert part in text, part


@pytest.mark.parametrize("seed", range(3))
def test_what_is_seen_does_not_depend_on_how_rows_are_handed_out(seed: int) -> None:
    columns = read_trace(SHIPPED).to_numpy()
    chance = random.Random(seed)
    columns["regime"] = np.array([chance.choice((1, 1, 3, 5)) for _ in columns["regime"]], np.int8)
    columns["event"] = np.array([chance.choice(("", "", "a", "b")) for _ in columns["event"]])
    meta = read_trace(SHIPPED).meta
    whole, piecemeal = RunView(SHIPPED), RunView(SHIPPED)
    whole._take(Appended(meta, columns))
    start = 0
    while start < 400:
        end = min(400, start + chance.randint(1, 9))
        piecemeal._take(Appended(meta, {name: values[start:end] for name, values in columns.items()}))
        start = end
    assert whole.facts() == piecemeal.facts()
    assert (whole.losses, whole.scales) == (piecemeal.losses, piecemeal.scales)
    assert whole.whole_loss.values == piecemeal.whole_loss.values
    expected = find_alarms(unsafe_rows(columns["regime"]))
    assert whole.alarm_count == len(expected)
    steps = columns["step"].tolist()
    ends = [None if alarm.end_row == 399 else steps[alarm.end_row] for alarm in expected[-LAST:]]
    assert [(a.start_step, a.end_step) for a in whole.alarms] == [
        (steps[alarm.start_row], end) for alarm, end in zip(expected[-LAST:], ends, strict=True)
    ]


def test_a_thinned_curve_keeps_every_spike_and_stays_short() -> None:
    chance = random.Random(0)
    values = [chance.random() for _ in range(10_007)]
    values[4_321] = 99.0
    values[5_000:5_100] = [float("nan")] * 100
    curve = Thinned(64)
    curve.add(values)
    assert len(curve.values) <= 64
    each = curve.rows_each
    expected = [np.fmax.reduce(values[start : start + each]) for start in range(0, len(values), each)]
    np.testing.assert_array_equal(curve.values, expected)


def test_a_curve_of_nothing_finite_and_of_one_value_can_be_drawn() -> None:
    nan = float("nan")
    assert braille([nan, nan], 3, 1, 0.0, 1.0) == ["⠀⠀⠀"]
    assert braille([nan, 1.0, nan, float("inf"), 1.0], 3, 1, 1.0, 1.0) == ["⠐⠀⠂"]
    assert len(braille([1.0], 3, 2, 1.0, 1.0)) == 2


def test_nan_loss_and_a_fault_of_the_guard_are_shown(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    decided = Decision(int(Regime.NONFINITE), 0, 1.0, 0.0, 9)
    for step in range(3):
        recorder.append(Telemetry(step, float("nan"), 1e-3, nonfinite=1.0), decided, elapsed_s=0.0, effective_lr=1e-3)
    view = RunView(tmp_path / "run_id=run")
    view.look()
    text = text_of(view)
    view.tail.close()
    for part in ("loss nan", "NONFINITE", "GUARD_FAULT", "none is finite", "NONFINITE 0–now", "writer alive"):
        assert part in text, part
    recorder.close()


def test_the_run_that_is_meant_is_found(tmp_path: Path) -> None:
    assert find_run(tmp_path) is None
    assert find_run(tmp_path / "run_id=later") == tmp_path / "run_id=later"
    assert find_run(tmp_path, "later") == tmp_path / "run_id=later"
    begin(tmp_path, "first").close()
    live = begin(tmp_path / "deep", "second")
    assert find_run(tmp_path) == tmp_path / "deep" / "run_id=second"
    live.close()
    os.utime(tmp_path / "run_id=first" / "segment-000.parquet", (2e9, 2e9))
    assert find_run(tmp_path) == tmp_path / "run_id=first"
    assert find_run(tmp_path / "run_id=first" / "segment-000.parquet") == tmp_path / "run_id=first"


def watching(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lbw_sim", "watch", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV,
        # a suite in the background ignores Ctrl-C, and its children would too, for ever
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_until_open(process_id: int) -> None:
    """Until that process holds a journal open."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        for link in Path(f"/proc/{process_id}/fd").iterdir():
            try:
                if os.readlink(link).endswith(".journal"):
                    return
            except OSError:
                continue  # closed since it was listed
        time.sleep(0.02)
    raise AssertionError("no journal was opened")


def test_watching_begins_before_the_run_and_ends_when_it_is_closed(tmp_path: Path) -> None:
    with watching(tmp_path, "--interval", 0.05) as watch:
        time.sleep(0.5)  # usually enough to be there first; late it sees the same
        subprocess.run([sys.executable, "-c", TRAIN, tmp_path, "40"], env=ENV, check=True, stdout=subprocess.DEVNULL)
        out, err = watch.communicate(timeout=60)
    assert (watch.returncode, err) == (0, "")
    assert "run: closed by its writer after 40 rows" in out


def test_a_killed_writer_is_told_from_a_living_one_and_ctrl_c_ends_the_watching(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", TRAIN, tmp_path], stdout=subprocess.PIPE, env=ENV) as writer:
        assert writer.stdout is not None
        for _ in range(5):
            writer.stdout.readline()
        with watching(tmp_path, "--json") as watch:
            facts = json.loads(watch.communicate(timeout=60)[0])
        assert (facts["writer"], facts["run_id"], facts["guard"]) == ("alive", "run", "default")
        assert facts["rows"] >= 5
        assert facts["steps_per_s"] == pytest.approx(2.0)  # a row of these tests lasts half a second
        writer.kill()
    time.sleep(0.1)
    with watching(tmp_path, "--interval", 0.05) as watch:
        wait_until_open(watch.pid)
        time.sleep(1.0)  # the look that has opened it reads it, too
        watch.send_signal(signal.SIGINT)
        out, err = watch.communicate(timeout=60)
    assert (watch.returncode, err) == (0, "")
    assert "its writer is gone after" in out
    assert (tmp_path / "run_id=run" / "_segment-000.journal").exists()


def test_nothing_there_is_an_error_with_once(tmp_path: Path) -> None:
    with watching(tmp_path, "--once") as watch:
        err = watch.communicate(timeout=60)[1]
    assert watch.returncode == 2
    assert "no run is recorded there yet" in err
