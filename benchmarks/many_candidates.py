"""How long it takes to try ten thousand guards on every run of a folder, and how much memory.

    python benchmarks/many_candidates.py TRACES [CANDIDATES]

The default guard with five parameters drawn at random; summaries and alarms. Prints seconds, ns per candidate-step and
the peak memory of the process beside what `replay_bytes` said beforehand.
"""

from __future__ import annotations

import random
import resource
import sys
import time

from lbw_sim.guard import GuardSpec
from lbw_sim.replay import replay_bytes, replay_many
from lbw_sim.trace import read_traces


def main() -> None:
    """One sweep."""
    traces, count = read_traces(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    rng, base = random.Random(0), GuardSpec.load("default")
    specs = [
        base.with_changes(
            {
                "analyzer.spike_sd": rng.uniform(3.0, 10.0),
                "analyzer.rise_sd": rng.uniform(1.0, 5.0),
                "analyzer.grad_limit": rng.uniform(1.3, 4.0),
                "sensor.rise_rows": rng.randint(5, 60),
                "policy.cut": rng.uniform(0.1, 0.9),
            }
        )
        for _ in range(count)
    ]
    rows = [sum(segment.rows for segment in trace.segments) for trace in traces]
    start = time.perf_counter()
    alarms = sum(int(found.alarm_counts.sum()) for found in replay_many(traces, specs))
    seconds = time.perf_counter() - start
    print(f"{count:,} guards on {len(traces)} runs of {sum(rows):,} rows: {seconds:.1f} s, {alarms:,} alarms")
    print(f"{seconds / count / sum(rows) * 1e9:.1f} ns of wall clock per candidate-step")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    bound = replay_bytes(max(rows), count)
    print(f"peak memory {peak / 1e6:.0f} MB; most that the longest run could take: {bound / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
