"""A torn or flipped byte is found, every row before it is kept, and nothing is thrown away."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_rows import append_row, assert_rows, begin

from lbw_sim.errors import TraceError
from lbw_sim.trace import Damage, TraceWarning, read_trace, recover

ROWS = 5


@pytest.fixture(scope="module")
def journal() -> bytes:
    """A journal of five rows, as a killed writer leaves it."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = begin(folder)
        for i in range(ROWS):
            append_row(recorder, i)
        data = recorder.path.read_bytes()
        recorder.close()
        return data


ROW_BYTES = 8 + 4 + 8 * 8 + 1 + 1 + 8 + 8 + 1 + 1 + 8 + 24 + 4


def lay_down(folder: str | Path, data: bytes, segment: int = 0) -> Path:
    run = Path(folder) / "run_id=run"
    run.mkdir(exist_ok=True)
    path = run / f"_segment-{segment:03d}.journal"
    path.write_bytes(data)
    return path


def test_a_last_row_torn_at_any_byte_is_dropped_and_the_rows_before_it_kept(tmp_path: Path, journal: bytes) -> None:
    whole = len(journal) - ROW_BYTES
    for kept in range(ROW_BYTES):
        folder = tmp_path / str(kept)
        folder.mkdir()
        path = lay_down(folder, journal[: whole + kept])
        trace = read_trace(folder)
        assert_rows(trace.to_numpy("all"), ROWS - 1)
        assert trace.meta.damage == (Damage(ROWS - 1, None, kept) if kept else None)
        assert trace.meta.ended == "recovered"
        assert [p.name for p in path.parent.iterdir()] == ["segment-000.parquet"]


@settings(max_examples=80, deadline=None)
@given(row=st.integers(0, ROWS - 1), byte=st.integers(0, ROW_BYTES - 1), flip=st.integers(1, 255))
def test_a_flipped_byte_in_any_field_is_found_and_the_damaged_journal_kept(
    journal: bytes, row: int, byte: int, flip: int
) -> None:
    spoiled = bytearray(journal)
    spoiled[len(journal) - (ROWS - row) * ROW_BYTES + byte] ^= flip
    damage = Damage(row, row, (ROWS - row) * ROW_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        path = lay_down(folder, bytes(spoiled))
        with pytest.warns(TraceWarning, match=rf"row {row} fails its checksum; {row} rows? before it (is|are) good"):
            trace = read_trace(folder)
        assert_rows(trace.to_numpy("all"), row)
        assert trace.meta.damage == damage
        aside = path.with_name(path.name + ".damaged")
        assert aside.read_bytes() == spoiled
        # read again: said in the description, not shouted again; and the kept file can be looked into
        assert read_trace(folder).meta.damage == damage
        with pytest.warns(TraceWarning):
            assert read_trace(aside).meta.damage == damage
        # the next recording of this run takes another number
        begin(folder).close()
        assert len(read_trace(folder).segments) == 2


def test_rows_that_are_swapped_doubled_or_left_out_are_found(tmp_path: Path, journal: bytes) -> None:
    start = len(journal) - ROWS * ROW_BYTES
    rows = [journal[start + i * ROW_BYTES : start + (i + 1) * ROW_BYTES] for i in range(ROWS)]
    for name, order in {"swapped": [0, 2, 1, 3, 4], "doubled": [0, 0, 1, 2, 3], "left out": [0, 2, 3, 4]}.items():
        (tmp_path / name).mkdir()
        lay_down(tmp_path / name, journal[:start] + b"".join(rows[i] for i in order))
        with pytest.warns(TraceWarning, match="row 1 fails its checksum"):
            assert_rows(read_trace(tmp_path / name).to_numpy("all"), 1)


def test_a_row_of_another_journal_does_not_pass_for_one_of_this(tmp_path: Path, journal: bytes) -> None:
    recorder = begin(tmp_path, "other")
    append_row(recorder, 0)
    foreign = recorder.path.read_bytes()[-ROW_BYTES:]
    recorder.close()
    path = lay_down(tmp_path, journal[: -ROWS * ROW_BYTES] + foreign)
    with pytest.warns(TraceWarning, match="row 0 fails its checksum"):
        assert read_trace(path.parent).segments[0].rows == 0


def test_a_header_torn_at_any_byte_holds_no_row_and_leaves_the_rest_of_the_run_readable(
    tmp_path: Path, journal: bytes
) -> None:
    with begin(tmp_path) as recorder:
        append_row(recorder, 0)
    header = len(journal) - ROWS * ROW_BYTES
    for number, kept in enumerate([1, 7, 8, 15, 16, 17, header // 2, header - 4, header - 1, 0]):
        path = lay_down(tmp_path, journal[:kept], segment=number + 1)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert_rows(read_trace(tmp_path).to_numpy("all"), 1)
        assert [w.category for w in said] == ([TraceWarning] if kept else [])
        assert not path.exists()
        assert path.with_name(path.name + ".damaged").exists() == bool(kept)
    begin(tmp_path).close()
    assert len(read_trace(tmp_path).segments) == 2


def test_a_header_with_a_flipped_byte_is_put_aside_whole(tmp_path: Path, journal: bytes) -> None:
    for byte in (0, 9, 13, 200, len(journal) - ROWS * ROW_BYTES - 1):
        spoiled = bytearray(journal)
        spoiled[byte] ^= 1
        path = lay_down(tmp_path, bytes(spoiled))
        with pytest.warns(TraceWarning), pytest.raises(TraceError, match="no readable segment"):
            read_trace(tmp_path)
        assert path.with_name(path.name + ".damaged").read_bytes() == spoiled


def test_a_journal_of_a_later_release_is_refused_and_left_where_it_is(tmp_path: Path, journal: bytes) -> None:
    from zlib import crc32

    header = journal[: -ROWS * ROW_BYTES - 4].replace(b'"schema_version":1', b'"schema_version":7')
    path = lay_down(tmp_path, header + crc32(header).to_bytes(4, "little"))
    with pytest.raises(TraceError, match=r"_segment-000.journal: schema_version=7; this release reads 1"):
        read_trace(tmp_path)
    assert path.exists()


def test_with_both_files_there_the_parquet_counts_and_recover_removes_the_journal(
    tmp_path: Path, journal: bytes
) -> None:
    path = lay_down(tmp_path, journal)
    recover(tmp_path)
    finished = (path.parent / "segment-000.parquet").read_bytes()
    lay_down(tmp_path, journal)
    in_place = read_trace(tmp_path.as_uri())
    assert [(segment.rows, segment.meta.ended) for segment in in_place.segments] == [(ROWS, "recovered")]
    assert path.exists()
    assert [found.rows for found in recover(tmp_path)] == [ROWS]
    assert not path.exists()
    assert (path.parent / "segment-000.parquet").read_bytes() == finished


@pytest.mark.parametrize("spoil", ["cut", "empty", "fewer rows"])
def test_with_a_worse_parquet_beside_it_the_journal_counts(tmp_path: Path, journal: bytes, spoil: str) -> None:
    path = lay_down(tmp_path, journal if spoil != "fewer rows" else journal[:-ROW_BYTES])
    recover(tmp_path)
    parquet = path.parent / "segment-000.parquet"
    if spoil != "fewer rows":
        parquet.write_bytes(b"" if spoil == "empty" else parquet.read_bytes()[:-10])
    lay_down(tmp_path, journal)
    assert_rows(read_trace(tmp_path).to_numpy("all"), ROWS)
    assert not path.exists()


def test_a_half_made_parquet_of_a_killed_compaction_is_no_obstacle(tmp_path: Path, journal: bytes) -> None:
    path = lay_down(tmp_path, journal)
    (path.parent / "_segment-000.parquet.tmp").write_bytes(b"half")
    assert_rows(read_trace(tmp_path).to_numpy("all"), ROWS)
    assert os.listdir(path.parent) == ["segment-000.parquet"]


def test_a_flipped_byte_in_finished_rows_is_found_by_the_page_checksums(tmp_path: Path) -> None:
    with begin(tmp_path) as recorder:
        for i in range(300):
            append_row(recorder, i)
    whole = recorder.path.read_bytes()
    found = 0
    for byte in range(4, 3000, 97):
        spoiled = bytearray(whole)
        spoiled[byte] ^= 0x10
        recorder.path.write_bytes(spoiled)
        try:
            assert_rows(read_trace(tmp_path).to_numpy("all"), 300)
        except TraceError:
            found += 1
    assert found >= 25
    shutil.rmtree(tmp_path / "run_id=run")
