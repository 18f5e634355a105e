"""What recording a step costs, beside a bare `os.write` of the same bytes, and what compacting a run costs.

    python benchmarks/recorder.py [folder]

Times are of this machine; the ratio travels.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lbw_sim import GuardSpec, Telemetry
from lbw_sim.trace import Recorder, read_trace

ROWS = 100_000


def main(folder: str) -> None:
    """Print p50 and p99 in µs per row, and seconds and bytes per row of the compacted run."""
    spec = GuardSpec.load("default")
    guard = spec.build()
    state = guard.init()
    random = np.random.default_rng(0)
    losses = (3.0 + np.exp(-np.arange(ROWS) / 2e4) + 0.03 * random.standard_normal(ROWS)).tolist()
    norms = random.lognormal(0.0, 0.3, (ROWS, 2)).tolist()
    steps = []
    for step, (loss, (grad_norm, update_norm)) in enumerate(zip(losses, norms, strict=True)):
        seen = Telemetry(step, loss, 1e-3, grad_norm, update_norm, 8192.0, 0.0)
        state, decision = guard.step(state, seen)
        steps.append((seen, decision))

    recorder = Recorder.open(folder, "benchmark", spec=spec, mode="shadow", provenance={})
    recorded = np.empty(ROWS, np.int64)
    for i, (seen, decision) in enumerate(steps):
        start = time.perf_counter_ns()
        recorder.append(seen, decision, elapsed_s=0.1 * i, effective_lr=1e-3)
        recorded[i] = time.perf_counter_ns() - start
    journal = recorder.path
    journal_bytes = journal.stat().st_size
    row = bytes(journal_bytes // ROWS)

    bare = np.empty(ROWS, np.int64)
    fd = os.open(Path(folder) / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for i in range(ROWS):
        start = time.perf_counter_ns()
        os.write(fd, row)
        bare[i] = time.perf_counter_ns() - start
    os.close(fd)

    for name, taken in (("Recorder.append", recorded), ("bare os.write", bare)):
        p50, p99 = np.percentile(taken, [50, 99]) / 1000
        print(f"{name:16} p50 {p50:6.2f} µs   p99 {p99:6.2f} µs   {len(row)} bytes a row")
    print(f"ratio of medians {np.median(recorded) / np.median(bare):.2f}")

    start = time.perf_counter()
    closed = recorder.close()
    took = time.perf_counter() - start
    print(
        f"close: {closed.rows:,} rows to Parquet in {took:.2f} s, {closed.path.stat().st_size / ROWS:.1f} bytes a row"
    )
    start = time.perf_counter()
    read_trace(folder).to_numpy()
    print(f"read_trace(...).to_numpy(): {time.perf_counter() - start:.3f} s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as scratch:
        main(scratch)
