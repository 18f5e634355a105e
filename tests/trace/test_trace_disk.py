"""A disk that is full or may not be written refuses before training and never disturbs it after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from trace_rows import append_row, assert_rows, begin

from lbw_sim.errors import TraceError
from lbw_sim.trace import read_trace, read_traces, recover, write_labels
from lbw_sim.wording import counted

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(Path(__file__).parent)])}


def run_child(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)], capture_output=True, text=True, env=ENV
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("rows_that_fit", [0, 3, 50])
def test_a_file_size_limit_stops_recording_without_disturbing_the_run(tmp_path: Path, rows_that_fit: int) -> None:
    code = """
import json, resource, signal, sys
from trace_rows import append_row, begin
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
recorder = begin(sys.argv[1])
before = recorder.path.stat().st_size
append_row(recorder, 0)
row_bytes = recorder.path.stat().st_size - before
limit = before + row_bytes + int(sys.argv[2]) * row_bytes + row_bytes // 2
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
ok = [append_row(recorder, i) for i in range(1, 80)]
size = recorder.path.stat().st_size
closed = recorder.close()
print(json.dumps([ok, (size - before) / row_bytes, closed.rows, closed.lost_rows, closed.path.name, recorder.failure]))
"""
    ok, rows_on_disk, rows, lost, name, failure = json.loads(run_child(code, tmp_path, rows_that_fit))
    assert ok == [True] * rows_that_fit + [False] * (79 - rows_that_fit)
    assert rows_on_disk == rows == rows_that_fit + 1  # the torn half row was cut away
    assert lost == 79 - rows_that_fit
    assert "File too large" in failure
    assert f"after {counted(rows, 'row')}:" in failure
    trace = read_trace(tmp_path)
    assert_rows(trace.to_numpy("all"), rows)
    assert trace.meta.damage is None
    # a limit that leaves no room for the Parquet file leaves the journal, and the next reader makes it
    assert trace.meta.ended == ("closed" if name == "segment-000.parquet" else "recovered")


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A real file system of 128 KiB."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "lbw-test", folder]
        try:
            mounted = subprocess.run(mount, capture_output=True).returncode == 0
        except OSError:
            mounted = False
        if not mounted:
            pytest.skip("this user may not mount a file system")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_stops_recording_and_every_row_before_it_is_kept(small_disk: Path) -> None:
    recorder = begin(small_disk)
    acknowledged = [append_row(recorder, i) for i in range(3000)]
    rows = sum(acknowledged)
    assert 0 < rows < 3000
    assert acknowledged == [True] * rows + [False] * (3000 - rows)
    assert (recorder.rows, recorder.lost_rows) == (rows, 3000 - rows)
    closed = recorder.close()
    assert closed.path.name == "_segment-000.journal"  # no room for the Parquet file
    assert recorder.failure is not None
    assert "No space left" in recorder.failure
    # a reader on the full disk reads in place
    trace = read_trace(small_disk)
    assert trace.meta.ended == "open"
    assert_rows(trace.to_numpy("all"), rows)
    assert sorted(os.listdir(closed.path.parent)) == ["_segment-000.journal"]
    with pytest.raises(TraceError, match="No space left"):
        recover(small_disk)
    with pytest.raises(TraceError, match="cannot be written"):
        begin(small_disk)
    # with room again, the work is finished
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert_rows(read_trace(small_disk).to_numpy("all"), rows)
    assert os.listdir(closed.path.parent) == ["segment-000.parquet"]


def test_a_disk_remounted_read_only_is_read_in_place(small_disk: Path) -> None:
    with begin(small_disk) as recorder:
        append_row(recorder, 0)
    left = begin(small_disk)
    append_row(left, 0)
    left._release()
    before = sorted(path.name for path in small_disk.rglob("*"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    trace = read_trace(small_disk)
    assert [segment.meta.ended for segment in trace.segments] == ["closed", "open"]
    assert_rows(trace.to_numpy("final"), 1)
    with pytest.raises(TraceError, match="Read-only file system"):
        begin(small_disk)
    assert sorted(path.name for path in small_disk.rglob("*")) == before


def test_a_folder_that_this_user_may_not_write_is_refused_for_recording_and_read_in_place() -> None:
    code = """
import os, sys
from lbw_sim.errors import TraceError
from lbw_sim.trace import read_trace, recover, write_labels
from trace_rows import assert_rows, begin
import numpy.testing, pyarrow.parquet, pyarrow.fs
import lbw_sim.trace.store
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
trace = read_trace(sys.argv[1])
assert_rows(trace.to_numpy("all"), 3)
assert trace.meta.ended == "open"
for refused in (lambda: begin(sys.argv[1]), lambda: begin(sys.argv[1], "new"), lambda: recover(sys.argv[1]),
                lambda: write_labels(sys.argv[1] + "/run_id=run", [])):
    try:
        refused()
    except TraceError as error:
        print(error)
"""
    with tempfile.TemporaryDirectory() as folder:
        recorder = begin(folder)
        for i in range(3):
            append_row(recorder, i)
        recorder._release()
        run = recorder.path.parent
        run.chmod(0o555)
        Path(folder).chmod(0o555)
        try:
            said = run_child(code, folder).splitlines()
        finally:
            Path(folder).chmod(0o755)
            run.chmod(0o755)
        assert len(said) == 4
        assert all("Permission denied" in line for line in said)
        assert [path.name for path in run.iterdir()] == ["_segment-000.journal"]


def test_a_folder_that_cannot_be_made_is_refused_before_training_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TraceError, match="cannot be recorded"):
        begin(tmp_path / "file")


def test_a_run_folder_that_vanishes_costs_the_trace_and_not_the_run(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    append_row(recorder, 0)
    recorder.path.unlink()
    recorder.path.parent.rmdir()
    assert append_row(recorder, 1)  # the open file is still there; nobody can know
    closed = recorder.close()
    assert recorder.failure is not None
    assert "somebody deleted" in recorder.failure
    assert (closed.rows, closed.lost_rows) == (0, 2)
    assert not closed.path.exists()
    assert read_traces(tmp_path) == []


def test_a_run_folder_that_is_moved_loses_no_row(tmp_path: Path) -> None:
    recorder = begin(tmp_path)
    append_row(recorder, 0)
    recorder.path.parent.rename(tmp_path / "run_id=moved")
    assert append_row(recorder, 1)
    closed = recorder.close()
    assert recorder.failure is not None
    assert "could not be turned into Parquet, its next reader does that" in recorder.failure
    assert (closed.rows, closed.lost_rows) == (2, 0)
    assert len(read_trace(tmp_path, "moved").table()) == 2


def test_labels_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="labels cannot be written"):
        write_labels(tmp_path / "nowhere", [])
