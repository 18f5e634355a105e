"""A scrubbed copy tells nothing of its maker and proves as much as the original."""

from __future__ import annotations

from pathlib import Path

import pytest
from trace_rows import append_row
from typer.testing import CliRunner

from lbw_sim import GuardSpec
from lbw_sim.cli.app import app
from lbw_sim.errors import TraceError
from lbw_sim.trace import Label, Recorder, read_trace, write_labels
from lbw_sim.trace.scrub import scrub

SECRET = "very-secret-host"


def record(folder: Path) -> Path:
    spec = GuardSpec.load("default")
    for _ in range(2):  # a resumed run
        facts = {"host": SECRET, "cwd": f"/home/{SECRET}", "seed": 7, "note": SECRET, "git_revision": SECRET}
        recorder = Recorder.open(folder, "run", spec=spec, mode="shadow", provenance=facts, extra_channels=["probe"])
        for i in range(50):
            append_row(recorder, i)
        recorder.close()
    write_labels(
        folder / "run_id=run", [Label(1, 2, "spike", note=SECRET), Label(5, 6, "spike", source="injected", note="lr")]
    )
    return folder


def test_rows_checksums_guard_and_labels_stay_and_what_identifies_goes(tmp_path: Path) -> None:
    before = read_trace(record(tmp_path / "traces"))
    done = scrub(before, tmp_path / "out")
    assert (done.rows, set(done.removed)) == (100, {"host", "cwd", "note", "git_revision"})
    after = read_trace(tmp_path / "out")
    for name, column in before.to_numpy("all").items():
        assert after.to_numpy("all")[name].tobytes() == column.tobytes(), name
    assert after.table("all")["crc32"].to_pylist() == before.table("all")["crc32"].to_pylist()
    for a, b in zip(after.segments, before.segments, strict=True):
        assert (a.meta.fingerprint, a.meta.spec_toml, a.meta.crc32_seed) == (
            b.meta.fingerprint, b.meta.spec_toml, b.meta.crc32_seed,
        )  # fmt: skip
        assert a.damaged_rows() == []
        assert a.meta.provenance == {"seed": 7}
    assert [label.note for label in after.labels] == ["", "lr"]
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or SECRET.encode() not in file.read_bytes()
    assert any(SECRET.encode() in file.read_bytes() for file in (tmp_path / "traces").rglob("*.parquet"))


def test_a_copy_that_fails_half_way_is_not_left_as_a_shorter_run(tmp_path: Path) -> None:
    trace = read_trace(record(tmp_path / "traces"))
    (tmp_path / "traces" / "run_id=run" / "segment-001.parquet").unlink()
    with pytest.raises(TraceError, match="was there and is gone"):
        scrub(trace, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command_keeps_what_it_is_told_to_and_never_writes_over_a_run(tmp_path: Path) -> None:
    record(tmp_path / "traces")
    arguments = ["scrub", str(tmp_path / "traces"), "-o", str(tmp_path / "out"), "--keep", "note"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "1 run, 100 rows" in done.output
    assert "removed: cwd, git_revision, host" in done.output
    assert read_trace(tmp_path / "out").meta.provenance == {"seed": 7, "note": SECRET}
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, TraceError)


def test_a_real_run_still_verifies_after_scrubbing(tmp_path: Path) -> None:
    from lbw_sim.replay import verify

    shipped = next((Path(__file__).parents[2] / "traces").rglob("run_id=*"))
    before = read_trace(shipped)
    scrub(before, tmp_path / "out")
    assert verify(read_trace(tmp_path / "out")) == verify(before)


def test_what_was_lost_stays_known_without_the_details(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("step,loss\n1,2.5\n")
    from lbw_sim.trace.importers import import_path

    import_path(tmp_path / "x.csv", tmp_path / "traces")
    trace = read_trace(tmp_path / "traces")
    trace.meta.provenance["lost"] = f"{SECRET}: ends within a record"
    scrub(trace, tmp_path / "out")
    found = read_trace(tmp_path / "out")
    assert "source" not in found.meta.provenance
    assert [limitation.text for limitation in found.limitations] == ["not all could be read: details were removed"]
    with pytest.raises(TraceError, match=r"is in .* already"):
        scrub(trace, tmp_path / "out")
