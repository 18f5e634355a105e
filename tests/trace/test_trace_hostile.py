"""Files from strangers are data: whatever is in them gives a trace or a TraceError, never anything else."""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_rows import append_row, begin

from lbw_sim.errors import TraceError
from lbw_sim.trace import TraceWarning, read_labels, read_trace, read_traces

quiet = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

DESCRIPTION = (
    "schema_version", "run_id", "segment", "mode", "fingerprint", "spec_toml", "extra_channels", "guard_state",
    "provenance", "columns", "ended", "lost_rows", "damage", "failure", "rows",
)  # fmt: skip


@pytest.fixture(scope="module")
def originals() -> Iterator[Path]:
    """A folder with a good `journal` and a good `parquet`."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = begin(folder)
        for i in range(40):
            append_row(recorder, i)
        (Path(folder) / "journal").write_bytes(recorder.path.read_bytes())
        recorder.close().path.rename(Path(folder) / "parquet")
        yield Path(folder)


def read_everything(path: Path) -> None:
    trace = read_trace(path)
    repr(trace)
    trace.to_numpy("all")
    trace.to_pandas()
    _ = trace.channels, trace.meta.delay_steps


def survive(name: str, data: bytes) -> bool:
    """Read a file by itself and in a run folder; false when it was refused as it should be."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        run = Path(folder) / "run_id=run"
        run.mkdir()
        (run / name).write_bytes(data)
        said = []
        for path in (run / name, run):
            try:
                read_everything(path)
            except TraceError as error:
                said.append(str(error))
        assert all(str(run) in text for text in said)
        with contextlib.suppress(TraceError):
            read_traces(folder)
        return not said


@quiet
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert not survive("segment-000.parquet", data)
    assert not survive("segment-000.parquet", b"PAR1" + data + b"PAR1")
    assert not survive("_segment-000.journal", data)
    assert not survive("_segment-000.journal", b"lbwtrace\x01\x00\x00\x00" + data)


@quiet
@given(share=st.floats(0, 1, exclude_max=True), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255))))
def test_a_parquet_file_cut_or_spoilt_anywhere_is_read_or_refused(
    originals: Path, share: float, flips: list[tuple[float, int]]
) -> None:
    parquet = (originals / "parquet").read_bytes()
    assert not survive("segment-000.parquet", parquet[: int(share * len(parquet))])
    spoilt = bytearray(parquet)
    for at, flip in flips[:3]:
        spoilt[int(at * (len(parquet) - 1))] ^= flip
    survive("segment-000.parquet", bytes(spoilt))


@quiet
@given(changes=st.dictionaries(st.sampled_from(DESCRIPTION), json_values, max_size=4))
def test_a_description_with_anything_in_it_is_read_or_refused(originals: Path, changes: dict[str, Any]) -> None:
    journal, parquet = (originals / "journal").read_bytes(), (originals / "parquet").read_bytes()
    length = struct.unpack("<I", journal[12:16])[0]
    description = json.loads(journal[16 : 16 + length])
    assert description.keys() <= set(DESCRIPTION)
    description |= changes
    text = json.dumps(description).encode()
    head = journal[:12] + struct.pack("<I", len(text)) + text
    survive("_segment-000.journal", head + struct.pack("<I", crc32(head)))
    table = pq.read_table(pa.BufferReader(parquet))
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"lbw": text}), sink)
    survive("segment-000.parquet", sink.getvalue().to_pybytes())


def refused(parquet: bytes, folder: Path, table: pa.Table | None = None, description: bytes | None = None) -> str:
    path = folder / "segment-000.parquet"
    if table is None:
        table = pq.read_table(pa.BufferReader(parquet))
    meta = pq.read_schema(pa.BufferReader(parquet)).metadata if description is None else {"lbw": description}
    pq.write_table(table.replace_schema_metadata(meta), path)
    with pytest.raises(TraceError) as caught:
        read_everything(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_each_way_of_not_being_a_trace_is_named(originals: Path, tmp_path: Path) -> None:
    parquet = (originals / "parquet").read_bytes()
    table = pq.read_table(pa.BufferReader(parquet))
    good = json.loads(table.schema.metadata[b"lbw"])

    def with_column(name: str, values: pa.Array) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, values)

    def described(**changes: object) -> bytes:
        return json.dumps(good | changes).encode()

    steps = table["step"].to_pylist()
    steps[12] = 9
    for text, wrong in {
        "column loss is missing": {"table": table.drop_columns(["loss"])},
        "column loss is float, not double": {"table": with_column("loss", table["loss"].cast(pa.float32()))},
        "nulls in column lr": {"table": with_column("lr", pa.array([None] * 40, pa.float64()))},
        "row 12: step goes 11 -> 9 within one attempt": {"table": with_column("step", pa.array(steps))},
        "row 1: attempt goes 1 -> 0": {"table": with_column("attempt", pa.array([1] + [0] * 39, pa.int32()))},
        "column regime holds 'PANIC'": {"table": with_column("regime", pa.array(["PANIC"] * 40))},
        "column reason holds '200'": {"table": with_column("reason", pa.array(["200"] * 40))},
        "without the metadata key 'lbw' is not a trace": {
            "table": table.replace_schema_metadata(),
            "description": None,
        },
        "its description is not JSON": {"description": b"{'a': 1}"},
        "its description is not JSON: ": {"description": b"[" * 100_000},
        "description is not a JSON object": {"description": b"[1]"},
        "schema_version=2; this release reads 1": {"description": described(schema_version=2)},
        "schema_version=None": {"description": b"{}"},
        "mode='loud'": {"description": described(mode="loud")},
        "extra channels: 'loss' is a column that every trace has": {"description": described(extra_channels=["loss"])},
        "its columns are not those": {"description": described(columns=[])},
        "guard spec is not TOML": {"description": described(spec_toml="= 3")},
        "guard spec has delay_steps=9": {"description": described(spec_toml="delay_steps = 9")},
        "run_id=3": {"description": described(run_id="3").replace(b'"run_id": "3"', b'"run_id": 3')},
        "provenance 'host' is neither": {"description": described(provenance={"host": []})},
        "at most 8388608 are allowed": {"description": described(failure="x" * (9 << 20))},
    }.items():
        if "without" in text:
            pq.write_table(table.replace_schema_metadata(), tmp_path / "segment-000.parquet")
            with pytest.raises(TraceError, match=text):
                read_trace(tmp_path)
        else:
            assert text.rstrip("'") in refused(parquet, tmp_path, **wrong).replace('"', "'")  # type: ignore[arg-type]


def test_a_header_that_claims_to_be_huge_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "_segment-000.journal"
    path.write_bytes(struct.pack("<8sII", b"lbwtrace", 1, 0xFFFFFFFF) + b"x" * 100)
    with pytest.raises(TraceError, match="header of 4294967295 bytes; at most 4194304"):
        read_trace(path)


@pytest.mark.parametrize("text", [b"6", b"[1]", b'"x"', b"null"])
def test_a_journal_whose_description_is_no_object_is_refused_for_that(text: bytes, tmp_path: Path) -> None:
    head = struct.pack("<8sII", b"lbwtrace", 1, len(text)) + text
    (tmp_path / "_segment-000.journal").write_bytes(head + struct.pack("<I", crc32(head)))
    with pytest.raises(TraceError, match="its description is not a JSON object"):
        read_trace(tmp_path / "_segment-000.journal")


@quiet
@given(value=json_values, raw=st.binary(max_size=50))
def test_a_label_file_with_anything_in_it_is_read_or_refused(value: object, raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "_labels.json"
        for text in (
            raw,
            json.dumps(value).encode(),
            json.dumps({"lbw_labels": 1, "labels": value}).encode(),
            json.dumps({"lbw_labels": 1, "labels": [value]}).encode(),
            json.dumps(
                {"lbw_labels": 1, "labels": [{"start_step": value, "end_step": 3, "kind": value, "note": value}]}
            ).encode(),
        ):
            path.write_bytes(text)
            said = str(path)
            try:
                read_labels(folder)
            except TraceError as error:
                said = str(error)
            assert str(path) in said
