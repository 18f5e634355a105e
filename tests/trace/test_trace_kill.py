"""kill -9 at any moment loses no acknowledged row. Real processes, real kills."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from trace_rows import append_row, assert_rows, begin

from lbw_sim.trace import read_trace, recover

KILLS = 52
FOR_EVER = 10**9
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])}

NURSERY = """
import os, sys
import pyarrow.parquet
from trace_rows import append_row, begin
for line in sys.stdin:
    folder, run_id, rows = line.split("\\t")
    if os.fork() == 0:
        os.write(1, b"%d\\n" % os.getpid())
        recorder = begin(folder, run_id)
        row = 0
        while row < int(rows) and append_row(recorder, row):
            row += 1
            os.write(1, b".")
        os.write(1, b".")
        recorder.close()
        os._exit(0)
    os.wait()
    os.write(1, b"|")
"""
"""Forks a recording process for each line that it reads: to import everything anew costs more than all the rest."""


class Nursery:
    """Starts recording processes and kills them."""

    def __enter__(self) -> Self:
        self._parent = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.communicate(timeout=60)

    def kill_after(self, folder: Path, run_id: str, rows: int, acknowledged: int, delay_s: float) -> int:
        """Let a child record, kill it `delay_s` after so many signs of it; the number of its signs in all.

        It gives a sign for each of at most `rows` rows, and one more before it closes its trace.
        """
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        pipe = self._parent.stdout.fileno()
        self._parent.stdin.write(f"{folder}\t{run_id}\t{rows}\n".encode())
        self._parent.stdin.flush()
        told = b""
        while told.count(b".") < acknowledged:
            part = os.read(pipe, 1 << 16)
            assert part, "the child ended by itself"
            told += part
        deadline = time.monotonic() + delay_s
        while b"|" not in told and (left := deadline - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            told += os.read(pipe, 1 << 16)
        if b"|" not in told:
            os.kill(int(told.split(b"\n")[0]), signal.SIGKILL)
        while b"|" not in told:
            told += os.read(pipe, 1 << 16)
        return told.count(b".")


def test_every_acknowledged_row_survives_kill_9(tmp_path: Path) -> None:
    chance = random.Random(0)
    with Nursery() as nursery:
        acknowledged = [
            nursery.kill_after(tmp_path, f"run{number}", FOR_EVER, 1, chance.uniform(0.0, 0.05))
            for number in range(KILLS)
        ]
    assert sum(acknowledged) > 20 * KILLS
    for number, rows in enumerate(acknowledged):
        trace = read_trace(tmp_path, f"run{number}")
        found = trace.to_numpy("all")
        # the kill may come between the row and its acknowledgement
        assert rows <= len(found["step"]) <= rows + 1
        assert_rows(found, len(found["step"]))
        assert trace.meta.ended == "recovered"
        assert trace.meta.lost_rows is None
    assert not list(tmp_path.rglob("*journal*"))


def test_a_kill_during_compaction_loses_nothing_and_the_next_start_finishes_the_work(tmp_path: Path) -> None:
    chance = random.Random(1)
    with Nursery() as nursery:
        for kill in range(8):
            # from its 2,001st sign on the child is turning its journal into Parquet
            nursery.kill_after(tmp_path, "run", 2000, 2001, chance.uniform(0.0, 0.03))
            trace = read_trace(tmp_path)
            assert len(trace.segments) == kill + 1
            for segment in trace.segments:
                assert segment.rows == 2000
            assert_rows(trace.to_numpy("final"), 2000)
    assert not list(tmp_path.rglob("*journal*"))


def test_a_recorder_that_opens_a_run_first_finishes_what_a_killed_one_left(tmp_path: Path) -> None:
    with Nursery() as nursery:
        rows = nursery.kill_after(tmp_path, "run", FOR_EVER, 100, 0.0)
    recorder = begin(tmp_path)
    assert recorder.segment == 1
    assert sorted(path.name for path in (tmp_path / "run_id=run").iterdir()) == [
        "_segment-001.journal",
        "segment-000.parquet",
    ]
    recorder.close()
    assert read_trace(tmp_path).segments[0].rows >= rows


def test_a_live_journal_is_read_as_it_stands_and_left_alone(tmp_path: Path) -> None:
    code = """
import select, sys, time
from trace_rows import append_row, begin
recorder = begin(sys.argv[1])
row = 0
while not select.select([sys.stdin], [], [], 0.0005)[0]:
    for row in range(row, row + 50):
        append_row(recorder, row)
    row += 1
    print(row, flush=True)
recorder.close()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        rows = [0]
        for _ in range(30):
            written = int(child.stdout.readline())
            assert recover(tmp_path) == []
            trace = read_trace(tmp_path)
            assert trace.meta.ended == "open"
            rows.append(trace.segments[0].rows)
            assert rows[-1] >= max(written, rows[-2])
            assert_rows(trace.to_numpy("all"), rows[-1])
        child.stdin.close()
        last = [int(line) for line in child.stdout][-1]
    assert read_trace(tmp_path).meta.ended == "closed"
    assert_rows(read_trace(tmp_path).to_numpy("all"), last)
    # taken while it was live, and still whole
    assert_rows(trace.to_numpy("all"), rows[-1])


def test_a_forked_child_neither_finishes_its_parents_journal_nor_keeps_its_lock(tmp_path: Path) -> None:
    code = """
import os, sys, time
from trace_rows import append_row, begin
recorder = begin(sys.argv[1])
append_row(recorder, 0)
if os.fork() == 0:
    assert not append_row(recorder, 1)
    recorder.close()
    os.write(1, b".")
    time.sleep(60)
os.wait()
"""
    reader, writer = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=writer, env=ENV, start_new_session=True)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"."
        assert (tmp_path / "run_id=run" / "_segment-000.journal").exists()
        assert recover(tmp_path) == []
        child.kill()
        child.wait()
        # the grandchild sleeps on
        assert [found.rows for found in recover(tmp_path)] == [1]
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        os.close(reader)


def test_an_interrupt_at_any_point_of_append_leaves_the_journal_whole(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    chance = random.Random(2)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupts = row = acknowledged = 0
    try:
        while interrupts < 300:
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 3e-4))
                while True:
                    # a row whose fate is not known is given again
                    if append_row(recorder, row):
                        acknowledged += 1
                        row += 1
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    closed = recorder.close()
    assert closed.rows >= acknowledged
    trace = read_trace(tmp_path)
    assert trace.meta.damage is None
    assert len(trace.to_numpy("all")["step"]) == closed.rows


def test_a_reader_that_is_overtaken_by_the_end_of_a_recording_looks_again(tmp_path: Path) -> None:
    code = """
import sys
from trace_rows import append_row, begin
for segment in range(60):
    recorder = begin(sys.argv[1])
    append_row(recorder, segment)
    print(segment, flush=True)
    recorder.close()
"""
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, env=ENV) as child:
        assert child.stdout is not None
        child.stdout.readline()
        while child.poll() is None:
            # by its URI, so that it never waits for a lock
            trace = read_trace(tmp_path.as_uri())
            steps = trace.to_numpy("all")["step"].tolist()
            assert steps == list(range(len(steps)))
            assert len(trace.segments) - len(steps) in (0, 1)
    assert len(read_trace(tmp_path).segments) == 60


def test_a_journal_that_a_reader_cleared_away_while_it_was_empty_is_made_again(tmp_path: Path) -> None:
    code = """
import os, sys
from trace_rows import append_row, begin
journal = sys.argv[1] + "/run_id=run/_segment-000.journal"
cleared = []
def between_open_and_lock(event, arguments):
    if event == "fcntl.flock" and not cleared and os.path.exists(journal):
        cleared.append(os.stat(journal).st_size)
        os.unlink(journal)
sys.addaudithook(between_open_and_lock)
recorder = begin(sys.argv[1])
append_row(recorder, 0)
recorder.close()
assert cleared == [0], cleared
assert recorder.failure is None, recorder.failure
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], env=ENV, check=True)
    assert_rows(read_trace(tmp_path).to_numpy("all"), 1)
