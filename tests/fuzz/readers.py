"""Feeds readers of files from strangers with bytes that nobody meant; only a trace or a TraceError may come out.

    python tests/fuzz/readers.py tensorboard --seconds 600
    python tests/fuzz/readers.py all --seconds 400        # one reader after the other, each in a process of its own

Needs atheris (coverage-guided). A finding is a crash, more than 20 s for one input, or more than 512 MB; its input is
left in the folder `--keep`, and belongs into `tests/trace/test_importers_hostile.py`. Formats with checksums are fed
both raw and with their checksums made right, so that what lies behind them is reached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

LIMIT_MB = 512
LONGEST_S = 20


def framed_events(data: bytes) -> bytes:
    """Bytes as TFRecords of right checksums; 0xFF ends one."""
    from lbw_sim.trace.importers.wire import masked_crc32c

    records = data.split(b"\xff\xff")
    lengths = [struct.pack("<Q", len(record)) for record in records]
    return b"".join(
        length + struct.pack("<I", head) + record + struct.pack("<I", tail)
        for length, head, record, tail in zip(
            lengths, masked_crc32c(lengths).tolist(), records, masked_crc32c(records).tolist(), strict=True
        )
    )


def framed_wandb(data: bytes) -> bytes:
    """Bytes as records of a `.wandb` file with right checksums."""
    out = bytearray(b":W&B\xe1\xbe\x00")
    for record in data.split(b"\xff\xff"):
        record = record[:30_000]
        room = (32 << 10) - len(out) % (32 << 10)
        if room < 7 + len(record):
            out += bytes(room)
        out += struct.pack("<IHB", crc32(record, crc32(b"\x01")), len(record), 1) + record
    return bytes(out)


def framed_journal(data: bytes) -> bytes:
    """Bytes as the description of a journal with a right checksum."""
    head = struct.pack("<8sII", b"lbwtrace", 1, len(data)) + data
    return head + struct.pack("<I", crc32(head)) + bytes(400)


def framed_parquet(data: bytes) -> bytes:
    """Bytes as the description in a whole Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"step": [1]}).replace_schema_metadata({"lbw": data}), sink)
    return bytes(sink.getvalue().to_pybytes())


def sqlite_rows(data: bytes) -> bytes:
    """Bytes as cells of the tables that trackio makes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "t.db"
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp, run_name, step, metrics)")
            for i, cell in enumerate(data.split(b"\xff\xff")[:50]):
                text = cell.decode("utf-8", "replace")
                connection.execute("INSERT INTO metrics VALUES (?, ?, 'r', ?, ?)", (i, text[:20], i, text))
        return path.read_bytes()


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Good files, small, for each reader."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "trace"))
    from trace_rows import append_row, begin

    recorder = begin(folder)
    for i in range(3):
        append_row(recorder, i)
    journal = recorder.path.read_bytes()
    parquet = recorder.close().path.read_bytes()
    length = struct.unpack("<I", journal[12:16])[0]
    tag = b"\x0a\x0atrain/loss"
    plain = b"\x09" + struct.pack("<d", 1.7e9) + b"\x10\x05\x2a\x13\x0a\x11" + tag + b"\x15" + struct.pack("<f", 2.5)
    tensor = tag + b"\x42\x08\x08\x01\x2a\x04" + struct.pack("<f", 2.5)
    tensor = b"\x0a" + bytes([len(tensor)]) + tensor
    tensor = b"\x09" + struct.pack("<d", 1.7e9) + b"\x10\x07\x2a" + bytes([len(tensor)]) + tensor
    item = b"\x0a\x04loss\x82\x01\x03NaN"
    row = b"\x0a" + bytes([len(item)]) + item + b"\x0a\x0c\x0a\x05_step\x82\x01\x02\x31\x32"
    history = b"\x12" + bytes([len(row)]) + row
    database = folder / "m.db"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE metrics (key, value, timestamp, run_uuid, step, is_nan)")
        connection.execute("CREATE TABLE runs (run_uuid, name)")
        connection.execute("INSERT INTO metrics VALUES ('loss', 2.5, 1700000000000, 'u', 1, 0)")
    lines = (
        "iter 7: loss 2.5000, time 12.00ms, mfu 1.00%",
        "step:1/1390 train_loss:10.8 train_time:52ms step_avg:1ms",
        "step    1/19560 | loss 11.009 (+nanz)| norm 15.9 (+nanz)| lr 8.57e-07 | 1200.03 ms",
        "s:1 trl:10.9 lr:0.000001 norm:15.9",
        " iteration       10/     100 | learning rate: 1.0E-04 | lm loss: 1.0E+01 | grad norm: 1.2 |",
        "\x1b[31mstep:  1  \x1b[32mloss:  8.13090  \x1b[33mgrad_norm:  1.5000  ",
        "[step=1/10,epoch=1]\n    train/CE loss=2.5\n    optim/total grad norm=1,234.5",
        ':::MLLOG {"namespace": "", "time_ms": 1, "event_type": "POINT_IN_TIME", "key": "train_loss", "value": 2.5, '
        '"metadata": {"step_num": 3, "lr": 0.1}}',
    )
    state = {"log_history": [{"step": 1, "loss": 2.5, "learning_rate": 0.1, "epoch": 0.1}], "logging_steps": 10}
    return {
        "journal": [b"\x00" + journal, b"\x01" + journal[16 : 16 + length]],
        "parquet": [b"\x00" + parquet, b"\x01" + journal[16 : 16 + length]],
        "tensorboard": [b"\x01" + plain + b"\xff\xff" + tensor, b"\x00" + framed_events(plain)],
        "wandb": [b"\x01" + history + b"\xff\xff" + history, b"\x00" + framed_wandb(history)],
        "text": [f"{line}\n".encode() for line in lines],
        "csv": [b"step,loss,lr\n1,2.5,0.1\n2,,nan\n", b"step\tloss\n1\t2\n"],
        "jsonl": [b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": NaN}\n'],
        "hugging_face": [json.dumps(state).encode()],
        "sqlite": [b"\x00" + database.read_bytes(), b'\x01{"loss": "NaN", "step": 1}\xff\xff{"loss": 2.5}'],
    }


FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "journal": framed_journal,
    "parquet": framed_parquet,
    "tensorboard": framed_events,
    "wandb": framed_wandb,
    "sqlite": sqlite_rows,
}
NAMES = {
    "journal": "_segment-000.journal",
    "parquet": "segment-000.parquet",
    "tensorboard": "events.out.tfevents.1.m",
    "wandb": "run-x.wandb",
    "text": "train.log",
    "csv": "run.csv",
    "jsonl": "run.jsonl",
    "hugging_face": "trainer_state.json",
    "sqlite": "metrics.db",
}


def read(reader: str, data: bytes, folder: Path) -> bool:
    """Let one reader read; whether it gave something. Raises what a user should never see."""
    from lbw_sim.errors import TraceError
    from lbw_sim.trace import TraceWarning, read_trace
    from lbw_sim.trace.importers import import_path

    if reader in FRAMES:
        data = FRAMES[reader](data[1:]) if data[:1] == b"\x01" else data[1:]
    shutil.rmtree(folder, ignore_errors=True)
    run = folder / "run_id=run" if reader in ("journal", "parquet") else folder / "logs"
    run.mkdir(parents=True)
    file = run / NAMES[reader]
    file.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TraceWarning)
        try:
            if reader in ("journal", "parquet"):
                read_trace(run).to_numpy("all")
                return True
            found = import_path(run, folder / "out")
            for imported in found.runs:
                read_trace(imported.path).to_numpy("all")
            return bool(found.runs)
        except TraceError:
            return False


def fuzz(reader: str, seconds: int, keep: Path) -> int:
    """One reader in this process; returns how many inputs were tried when nothing is found."""
    import atheris

    with atheris.instrument_imports(include=["lbw_sim.trace"]):
        import lbw_sim.trace.importers
        import lbw_sim.trace.store

        lbw_sim.trace.importers.importers()
    scratch = Path(tempfile.mkdtemp(dir="/dev/shm"))
    corpus = scratch / "corpus"
    corpus.mkdir()
    (scratch / "seeds").mkdir()
    for number, seed in enumerate(seeds(scratch / "seeds")[reader]):
        (corpus / f"seed-{number}").write_bytes(seed)
        assert read(reader, seed, scratch / "work") or reader in ("text", "parquet", "journal"), (reader, number)
    counts = {"tried": 0, "read": 0}

    def one(data: bytes) -> None:
        counts["tried"] += 1
        counts["read"] += read(reader, data, scratch / "work")
        if counts["tried"] % 1000 == 0:
            (keep / f"{reader}.count").write_text(json.dumps(counts))

    options = [f"-max_total_time={seconds}", f"-rss_limit_mb={LIMIT_MB}", f"-timeout={LONGEST_S}", "-max_len=8192"]
    options += [f"-artifact_prefix={keep}/{reader}-", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()
    return counts["tried"]


def main() -> int:
    """Fuzz what the command line names; 1 when something was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reader", choices=["all", *NAMES])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"))
    asked = parser.parse_args()
    asked.keep.mkdir(exist_ok=True, parents=True)
    if asked.reader != "all":
        fuzz(asked.reader, asked.seconds, asked.keep)
        return 0
    failed = 0
    for reader in NAMES:
        start = time.monotonic()
        command = [sys.executable, __file__, reader, "--seconds", str(asked.seconds), "--keep", str(asked.keep)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        tried = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line or "peak_rss" in line]
        print(
            f"{reader}: exit {done.returncode} after {time.monotonic() - start:.0f} s; {'; '.join(tried)}", flush=True
        )
        if done.returncode:
            failed += 1
            print(done.stdout[-3000:] + done.stderr[-1000:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
