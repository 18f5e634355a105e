"""Logs from strangers are data: whatever is in them gives runs or a TraceError. Longer: tests/fuzz/readers.py."""

from __future__ import annotations

import importlib.util
import struct
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lbw_sim.errors import TraceError
from lbw_sim.trace.importers import import_path
from lbw_sim.trace.importers.wire import WireError, fields, masked_crc32c

FUZZ = Path(__file__).parent.parent / "fuzz" / "readers.py"
quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readers", FUZZ)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


readers = load()


@pytest.fixture(scope="module")
def seeds() -> Iterator[dict[str, list[bytes]]]:
    with tempfile.TemporaryDirectory() as folder:
        yield readers.seeds(Path(folder))


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "work"


READERS = sorted(set(readers.NAMES) - {"journal", "parquet"})  # those have tests of their own


@pytest.mark.parametrize("reader", READERS)
def test_the_good_files_that_fuzzing_starts_from_are_read(
    reader: str, seeds: dict[str, list[bytes]], scratch: Path
) -> None:
    read = [readers.read(reader, seed, scratch) for seed in seeds[reader]]
    assert sum(read) >= min(2, len(read)), read


@pytest.mark.parametrize("reader", READERS)
def test_cut_flipped_doubled_and_random_files_give_runs_or_a_trace_error(
    reader: str, seeds: dict[str, list[bytes]], scratch: Path
) -> None:
    @quick
    @given(data=st.data())
    def survives(data: st.DataObject) -> None:
        seed = bytearray(data.draw(st.sampled_from(seeds[reader])))
        at = data.draw(st.integers(1, len(seed)))
        how = data.draw(st.sampled_from(["cut", "flip", "double", "insert", "random"]))
        if how == "cut":
            del seed[at:]
        elif how == "flip":
            seed[at - 1] ^= data.draw(st.integers(1, 255))
        elif how == "double":
            seed[at:at] = seed[at // 2 : at]
        elif how == "insert":
            seed[at:at] = data.draw(st.binary(max_size=12))
        else:
            seed[1:] = data.draw(st.binary(max_size=200))
        readers.read(reader, bytes(seed), scratch)

    survives()


@quick
@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_message_are_a_wire_error(data: bytes) -> None:
    try:
        for _ in fields(data):
            pass
    except WireError:
        pass


def test_checksums_are_those_of_the_published_examples() -> None:
    # CRC-32C of RFC 3720, appendix B.4, masked as in TFRecord
    def masked(crc: int) -> int:
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    zeros, ones, rising = bytes(32), b"\xff" * 32, bytes(range(32))
    wanted = [masked(0x8A9136AA), masked(0x62A8AB43), masked(0x46DD794E)]
    assert masked_crc32c([zeros, ones, rising]).tolist() == wanted
    assert masked_crc32c([zeros, ones, rising] * 20).tolist() == wanted * 20, "many of one length go another way"


def test_a_claim_of_a_huge_record_allocates_nothing(tmp_path: Path) -> None:
    head = struct.pack("<Q", 1 << 40)
    crc = int(masked_crc32c([head])[0])
    file = tmp_path / "events.out.tfevents.1.m"
    file.write_bytes(readers.framed_events(b"\x09" + bytes(30)) + head + struct.pack("<I", crc) + b"x" * 100)
    tracemalloc.start()
    with pytest.raises(TraceError, match="no column looks like the loss"):
        import_path(file, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 << 20


def test_a_big_file_streams_in_bounded_memory(tmp_path: Path) -> None:
    import pyarrow as pa

    file = tmp_path / "big.csv"
    with open(file, "w") as out:
        out.write("step,loss,note\n")
        for start in range(0, 100_000, 1000):
            out.write("".join(f"{step},2.5,{'x' * 500}\n" for step in range(start, start + 1000)))
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    (run,) = import_path(file, tmp_path / "out").runs
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert run.rows == 100_000
    assert file.stat().st_size > 50_000_000
    assert peak < 40_000_000
    assert pa.total_allocated_bytes() - before < 10_000_000


def test_in_a_folder_a_broken_file_is_passed_over_and_the_others_come(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    (logs / "deep").mkdir(parents=True)
    (logs / "good.csv").write_text("step,loss\n1,2.5\n")
    (logs / "deep" / "good.csv").write_text("step,loss\n1,3.5\n")
    (logs / "bad.csv").write_text("step,loss\n1,what\n")
    (logs / "readme.md").write_text("hello\n")
    (logs / ".hidden.csv").write_text("step,loss\n1,2.5\n")
    (logs / "link.csv").symlink_to(logs / "good.csv")
    (logs / "broken.parquet").write_bytes(b"PAR1" + bytes(20) + b"PAR1")
    found = import_path(logs, tmp_path / "out")
    assert sorted(run.run_id for run in found.runs) == ["deep-good", "good"]
    reasons = {item.path: item.reason for item in found.passed_over}
    assert set(reasons) == {"bad.csv", "broken.parquet", "readme.md"}
    assert "'what' is not a number" in reasons["bad.csv"]
    assert not list((tmp_path / "out").glob("run_id=bad*"))
