"""What an attached shadow guard with its recorder adds to an optimizer step on a CPU.

    python benchmarks/attach.py

A model so small that the step is nearly all overhead: read the difference, in µs a step, beside the bare step of the
same run. The two are taken in turn.
"""

from __future__ import annotations

import tempfile
import time

import torch

from lbw_sim.live import attach

STEPS, TURNS = 4_000, 5


def step_times_us(guarded: bool, folder: str, run_id: str) -> list[float]:
    """Time of every step after a warm-up, sorted."""
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    live = attach(optimizer, "default", trace=folder, run_id=run_id) if guarded else None
    loss = model(torch.ones(1, 4)).sum()
    loss.backward()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        if live is not None:
            live.observe(loss, tokens=32)
        optimizer.step()
        times.append((time.perf_counter() - start) * 1e6)
    if live is not None:
        live.close()
    return sorted(times[200:])


def main() -> None:
    """Print medians and 99th percentiles."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            bare, guarded = step_times_us(False, folder, ""), step_times_us(True, folder, f"turn-{turn}")
            half, most = len(bare) // 2, int(0.99 * len(bare))
            print(
                f"bare p50 {bare[half]:6.1f} p99 {bare[most]:6.1f} µs   guarded p50 {guarded[half]:6.1f} "
                f"p99 {guarded[most]:6.1f} µs   added at the median {guarded[half] - bare[half]:5.1f} µs"
            )


if __name__ == "__main__":
    main()
