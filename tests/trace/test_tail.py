"""Following a run that another process writes: every row once, in order, and nothing is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from trace_rows import append_row, assert_rows, begin

from lbw_sim.trace import recover
from lbw_sim.trace.journal import lock, locked_by_somebody
from lbw_sim.trace.tail import RunTail

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])}
WRITE_ON_DEMAND = """
import sys
from trace_rows import append_row, begin
recorder = begin(sys.argv[1])
row = int(sys.argv[2])
for line in sys.stdin:
    for row in range(row, row + int(line)):
        append_row(recorder, row)
    row += 1
    print(row, flush=True)
recorder.close()
"""


class Writer:
    """Another process that records as many rows as it is told to."""

    def __init__(self, folder: Path, first_row: int = 0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITE_ON_DEMAND, folder, str(first_row)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV,
        )  # fmt: skip

    def write(self, rows: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{rows}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline()

    def end(self, how: int | None = None) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if how is not None:
            self.process.send_signal(how)
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def writing(folder: Path, first_row: int = 0) -> Iterator[Writer]:
    writer = Writer(folder, first_row)
    try:
        yield writer
    finally:
        if writer.process.poll() is None:
            writer.end(signal.SIGKILL)


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_every_row_is_handed_out_once_while_it_is_written_and_after_kill_and_resumption(tmp_path: Path) -> None:
    tail = RunTail(tmp_path / "run_id=run")
    assert list(tail.poll()) == []
    parts: list[dict[str, Any]] = []

    def take() -> int:
        found = list(tail.poll())
        parts.extend(part.columns for part in found)
        return sum(len(part.columns["step"]) for part in found)

    with writing(tmp_path) as writer:
        for rows in (1, 700, 3):
            writer.write(rows)
            assert take() == rows
        assert take() == 0
        assert (tail.ended, tail.writer_lives()) == ("open", True)
        writer.write(5)
        writer.end(signal.SIGKILL)
        assert (take(), tail.ended, tail.writer_lives()) == (5, "open", False)
    with writing(tmp_path, 709) as writer:
        writer.write(10)
        assert (take(), tail.ended, tail.writer_lives()) == (10, "open", True)
        assert tail.meta is not None
        assert tail.meta.segment == 1
        writer.write(2)
        writer.end()
    assert (take(), tail.ended, tail.writer_lives()) == (2, "closed", None)
    found = joined(parts)
    found["attempt"][:] = 0
    assert_rows(found, 721)
    # who comes when all is over sees the same
    late = [part.columns for part in RunTail(tmp_path / "run_id=run").poll()]
    assert len(late) == 2
    for name, values in joined(late).items():
        if name != "attempt":
            np.testing.assert_array_equal(values, found[name], err_msg=name)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_look_reads_only_what_was_appended(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    for row in range(20_000):
        append_row(recorder, row)
    tail = RunTail(tmp_path / "run_id=run")
    before = bytes_read()
    assert sum(len(part.columns["step"]) for part in tail.poll()) == 20_000
    first = bytes_read() - before
    append_row(recorder, 20_000)
    before = bytes_read()
    assert [part.columns["step"].tolist() for part in tail.poll()] == [[20_000]]
    assert bytes_read() - before < first / 500
    tail.close()
    recorder.close()


def test_following_changes_nothing_and_takes_no_lock(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.write(20)
        writer.end(signal.SIGKILL)
    folder = tmp_path / "run_id=run"
    before = {path.name: path.stat() for path in folder.iterdir()}
    tail = RunTail(folder)
    assert len(list(tail.poll())) == 1
    assert tail.writer_lives() is False
    after = {path.name: path.stat() for path in folder.iterdir()}
    assert {name: (s.st_mtime_ns, s.st_size, s.st_ino) for name, s in before.items()} == {
        name: (s.st_mtime_ns, s.st_size, s.st_ino) for name, s in after.items()
    }
    # the journal can be finished while it is being followed
    assert [found.rows for found in recover(tmp_path)] == [20]
    assert list(tail.poll()) == []
    assert tail.ended == "recovered"


def test_a_row_that_is_half_written_waits_for_its_other_half(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    append_row(recorder, 0)
    journal = recorder.path
    head = journal.stat().st_size
    append_row(recorder, 1)
    whole = journal.read_bytes()
    copy = tmp_path / "copy" / "run_id=run"
    copy.mkdir(parents=True)
    growing = copy / journal.name
    growing.write_bytes(whole[:10])
    tail = RunTail(copy)
    assert list(tail.poll()) == []
    growing.write_bytes(whole[: head + 7])
    assert [part.columns["step"].tolist() for part in tail.poll()] == [[0]]
    # a failed append takes its half row back, and another one comes
    os.truncate(growing, head)
    assert list(tail.poll()) == []
    with open(growing, "ab") as file:
        file.write(whole[head:])
    assert [part.columns["step"].tolist() for part in tail.poll()] == [[1]]
    tail.close()
    recorder.close()


def test_a_flipped_row_is_where_following_stops_and_it_says_so(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    for row in range(10):
        append_row(recorder, row)
    data = bytearray(recorder.path.read_bytes())
    copy = tmp_path / "copy" / "run_id=run"
    copy.mkdir(parents=True)
    size = (len(data) - recorder._journal._start) // 10
    data[-3 * size] ^= 1
    (copy / recorder.path.name).write_bytes(data)
    tail = RunTail(copy)
    assert [part.columns["step"].tolist() for part in tail.poll()] == [list(range(7))]
    assert tail.damage is not None
    assert (tail.damage.bad_row, tail.damage.leftover_bytes) == (7, 3 * size)
    data[-3 * size] ^= 1
    (copy / recorder.path.name).write_bytes(data)
    # seen through a file system that shows bytes late, it heals
    assert [part.columns["step"].tolist() for part in tail.poll()] == [[7, 8, 9]]
    assert tail.damage is None
    tail.close()
    recorder.close()


def test_a_link_that_leads_nowhere_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "segment-000.parquet").symlink_to(tmp_path / "gone")
    start = time.monotonic()
    assert list(RunTail(tmp_path).poll()) == []
    assert time.monotonic() - start < 5.0


def test_a_lock_is_seen_without_being_taken(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    other = os.open(tmp_path / "file", os.O_RDWR)
    assert locked_by_somebody(other) is False
    assert lock(fd)
    assert locked_by_somebody(other) is True
    os.close(fd)
    assert locked_by_somebody(other) is False
    os.close(other)
