"""What importing 300,000 TensorBoard scalars costs, beside one CRC-32 over the file and beside TensorBoard's reader.

    python benchmarks/import_tensorboard.py [steps]

Processor time of one core, of this machine; the ratios travel. TensorBoard's reader is timed where it is installed.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import time
from pathlib import Path
from zlib import crc32

from lbw_sim.trace import read_trace
from lbw_sim.trace.importers import import_path
from lbw_sim.trace.importers.wire import masked_crc32c

TAGS = ("train/loss", "train/learning_rate", "train/grad_norm")
STEPS = 100_000


def write_events(path: Path, steps: int, tensors: bool) -> None:
    """An event file as `SummaryWriter.add_scalar` writes it, plain or as tensors (`new_style`)."""
    records = []
    for step in range(steps):
        for tag in TAGS:
            value = struct.pack("<f", 3.0 / (1 + step * 1e-5))
            name = tag.encode()
            text = b"\x0a" + bytes([len(name)]) + name
            if tensors:
                text += b"\x42" + bytes([4 + len(value)]) + b"\x08\x01\x2a" + bytes([len(value)]) + value
                text += b"\x4a\x0b\x0a\x09\x0a\x07scalars"
            else:
                text += b"\x15" + value
            summary = b"\x0a" + bytes([len(text)]) + text
            number = bytearray()
            rest = step
            while rest >= 0x80:
                number.append(rest & 0x7F | 0x80)
                rest >>= 7
            number.append(rest)
            event = b"\x09" + struct.pack("<d", 1.7e9 + step) + b"\x10" + bytes(number)
            records.append(event + b"\x2a" + bytes([len(summary)]) + summary)
    lengths = [struct.pack("<Q", len(record)) for record in records]
    with open(path, "wb") as file:
        for length, head, record, tail in zip(
            lengths, masked_crc32c(lengths).tolist(), records, masked_crc32c(records).tolist(), strict=True
        ):
            file.write(length + struct.pack("<I", head) + record + struct.pack("<I", tail))


def main(steps: int) -> None:
    """Print seconds and ratios."""
    for tensors in (False, True):
        with tempfile.TemporaryDirectory() as scratch:
            run = Path(scratch) / "run"
            run.mkdir()
            file = run / "events.out.tfevents.1700000000.machine"
            write_events(file, steps, tensors)
            start = time.process_time()
            crc32(file.read_bytes())
            plain_s = time.process_time() - start
            start = time.process_time()
            (imported,) = import_path(run, Path(scratch) / "traces").runs
            import_s = time.process_time() - start
            channels = read_trace(Path(scratch) / "traces").channels
            scalars = imported.rows * sum(name in channels for name in ("loss", "lr", "grad_norm"))
            print(
                f"{'tensors' if tensors else 'plain  '} {scalars:,} scalars of {file.stat().st_size / 1e6:.1f} MB: "
                f"import {import_s:.2f} s, read and crc32 of the file {plain_s:.3f} s (x {import_s / plain_s:.0f})",
                end="",
            )
            try:
                from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
            except ImportError:
                print()
                continue
            start = time.process_time()
            accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
            accumulator.Reload()
            theirs_s = time.process_time() - start
            print(f", EventAccumulator {theirs_s:.2f} s (import takes {import_s / theirs_s:.2f} of it)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS)
