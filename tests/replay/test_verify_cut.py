"""Rows that were cut off the end of a finished segment, by writing a whole shorter file, are missed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import lbw

from lbw_sim.errors import TraceError, VerifyError
from lbw_sim.guard import GuardSpec
from lbw_sim.replay import verify
from lbw_sim.trace import Recorder, read_trace
from lbw_sim.trace.importers import import_path
from lbw_sim.trace.scrub import scrub
from lbw_sim.values import Telemetry

ROWS = 20
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_verify_cut import record
record(Path(sys.argv[1]), then=lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def record(folder: Path, then: Callable[[], object] = lambda: None) -> Path:
    """Twenty steps of a guarded run; `then` comes before it is closed."""
    spec = GuardSpec.load("default")
    guard = spec.build()
    state = guard.init()
    with Recorder.open(folder, "run", spec=spec, mode="shadow", provenance={}) as recorder:
        for step in range(ROWS):
            seen = Telemetry(step, 5.0 - 0.1 * step, 1e-3, nonfinite=0.0)
            state, decision = guard.step(state, seen)
            recorder.append(seen, decision, elapsed_s=float(step), effective_lr=1e-3)
        then()
    return folder / "run_id=run" / "segment-000.parquet"


def rewrite(file: Path, kept_rows: int, **about: object) -> None:
    """A complete, valid file of the first rows, with the same metadata but for `about`; None takes an entry away."""
    table = pq.read_table(file, partitioning=None)
    said = json.loads(table.schema.metadata[b"lbw"]) | about
    text = json.dumps({key: value for key, value in said.items() if value is not None})
    pq.write_table(table.slice(0, kept_rows).replace_schema_metadata({b"lbw": text}), file)


@pytest.mark.parametrize("kept", [ROWS - 1, 7, 0])
def test_a_whole_file_of_fewer_rows_is_found_by_verify(kept: int, tmp_path: Path) -> None:
    file = record(tmp_path)
    assert "1 of 1 run verified: 20 rows" in lbw("verify", tmp_path).stdout
    rewrite(file, kept)
    told = lbw("verify", tmp_path, code=1).stdout
    assert f"DIFFERS  run 'run' segment 0 holds {kept} row" in told
    assert "had 20 when it was finished" in told


def test_so_is_one_of_a_run_that_was_killed_and_recovered(tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent), *sys.path]
    assert subprocess.run(words, check=False, timeout=120).returncode == -signal.SIGKILL
    trace = read_trace(tmp_path)
    assert (trace.meta.ended, trace.meta.rows) == ("recovered", ROWS)
    assert lbw("verify", tmp_path).stdout.endswith("equal to the last bit\n")
    rewrite(tmp_path / "run_id=run" / "segment-000.parquet", ROWS - 3)
    with pytest.raises(VerifyError, match="holds 17 rows and had 20"):
        verify(read_trace(tmp_path))


def test_a_scrubbed_copy_and_an_import_say_how_many_rows_they_had(tmp_path: Path) -> None:
    rewrite(record(tmp_path / "mine"), ROWS - 1)
    scrub(read_trace(tmp_path / "mine"), tmp_path / "copy")
    with pytest.raises(VerifyError, match="holds 19 rows and had 20"):
        verify(read_trace(tmp_path / "copy"))
    (tmp_path / "log.csv").write_text("step,loss\n" + "".join(f"{step},{3 - 0.1 * step}\n" for step in range(9)))
    import_path(tmp_path / "log.csv", tmp_path / "imported")
    assert read_trace(tmp_path / "imported").meta.rows == 9


def test_a_segment_of_an_earlier_release_is_read_and_said_not_to_know(tmp_path: Path) -> None:
    file = record(tmp_path)
    rewrite(file, ROWS - 1, rows=None)
    told = lbw("verify", tmp_path, code=0).stdout
    assert "1 of 1 run verified: 19 rows" in told
    assert json.loads(lbw("verify", tmp_path, "--json").stdout)["rows_at_the_end_unknown"] == ["run"]
    assert "1 run of these, alive or finished by an earlier release, does not say how many rows there were" in told
    for nonsense in (-1, True, "20", 3.5):
        rewrite(file, ROWS - 1, rows=nonsense)
        with pytest.raises(TraceError, match=r"rows=.* is not a number of rows"):
            read_trace(tmp_path)
