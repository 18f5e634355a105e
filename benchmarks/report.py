"""From a folder of somebody's logs to a page: what 50 runs of 10,000 steps cost, with and without compiled kernels.

    python benchmarks/report.py [runs] [steps]

Times are of this machine, and of whatever else runs on it: the seconds of processor time beside them tell. The first
run finds an empty cache of kernels, as a new user's does; the others find it filled.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

REPEATS = 3


def write_logs(folder: Path, runs: int, steps: int) -> None:
    """CSV files with loss, learning rate and gradient norm, and up to five spikes each."""
    for number in range(runs):
        rng = np.random.default_rng(number)
        loss = 3.0 + 7.0 * np.exp(-np.arange(steps) / 900.0) + 0.05 * rng.standard_normal(steps)
        for start in rng.integers(steps // 20, steps - 50, rng.integers(0, 6)):
            loss[start : start + 40] += np.linspace(1.5, 0.0, 40)
        grad_norm = np.exp(0.2 * rng.standard_normal(steps))
        lr = 1e-3 * np.minimum(1.0, np.arange(steps) / 500.0)
        rows = zip(range(steps), loss.tolist(), lr.tolist(), grad_norm.tolist(), strict=True)
        with open(folder / f"run{number:03}.csv", "w", encoding="utf-8") as file:
            file.write("step,train/loss,lr,grad_norm\n")
            file.writelines(f"{step},{a!r},{b!r},{c!r}\n" for step, a, b, c in rows)


def main(runs: int, steps: int) -> None:
    """Print seconds, and the size of the page."""
    with tempfile.TemporaryDirectory() as scratch:
        logs = Path(scratch) / "logs"
        logs.mkdir()
        write_logs(logs, runs, steps)
        page = Path(scratch) / "report.html"
        command = [sys.executable, "-m", "lbw_sim", "report", "--import", str(logs), "-o", str(page)]
        environment = {**os.environ, "LBW_CACHE": str(Path(scratch) / "kernels")}
        for repeat in range(1 + REPEATS):
            before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            wall_s, after = time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            what = "kernels compiled" if repeat == 0 else "kernels there"
            print(f"{runs} runs x {steps} steps, {what}: {wall_s:.1f} s, {cpu_s:.1f} s of processor time")
        print(f"page: {page.stat().st_size / 1e6:.1f} MB; peak memory: {after.ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    main(*(int(number) for number in sys.argv[1:]) if len(sys.argv) > 2 else (50, 10_000))
