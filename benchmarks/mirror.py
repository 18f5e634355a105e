"""What mirroring to TensorBoard costs the training thread: an `offer`, and a Python-bound step beside a busy mirror.

    python benchmarks/mirror.py

The second table is the worst case: steps of some 100 µs of pure Python, which share the interpreter with the mirror's
thread. Bare and mirrored are taken in turn; read the difference within one line.
"""

from __future__ import annotations

import tempfile
import time

from lbw_sim.live.sinks import Mirror, TensorBoardSink
from lbw_sim.values import Decision, Telemetry

STEPS, TURNS = 20_000, 5


def step_times_us(mirror: Mirror | None) -> tuple[list[float], list[float]]:
    """Times of the steps and of the offers within them, each sorted."""
    seen, decision = Telemetry(0, loss=2.0, lr=1e-3, nonfinite=0.0), Decision(1, 0, 1.0, 0.0, 0)
    steps, offers = [], []
    for step in range(STEPS):
        start = time.perf_counter()
        sum(range(8_000))
        before = time.perf_counter()
        if mirror is not None:
            mirror.offer(step, seen, decision, 1e-3)
        end = time.perf_counter()
        steps.append((end - start) * 1e6)
        offers.append((end - before) * 1e6)
    return sorted(steps), sorted(offers)


def main() -> None:
    """Print medians and 99th percentiles."""
    half, most = STEPS // 2, int(0.99 * STEPS)
    for _ in range(TURNS):
        bare, _ = step_times_us(None)
        with tempfile.TemporaryDirectory() as folder:
            mirror = Mirror([TensorBoardSink(folder)])
            mirrored, offers = step_times_us(mirror)
            mirror.close(60.0)
        print(
            f"offer p50 {offers[half]:5.2f} p99 {offers[most]:5.2f} µs   step bare p50 {bare[half]:6.1f} p99 "
            f"{bare[most]:6.1f}, mirrored p50 {mirrored[half]:6.1f} p99 {mirrored[most]:6.1f} µs, mean "
            f"{sum(bare) / STEPS:6.1f} -> {sum(mirrored) / STEPS:6.1f} µs   dropped {mirror.dropped}, "
            f"thinned {mirror.thinned}"
        )


if __name__ == "__main__":
    main()
