"""Many guards judged at once count what `match` counts, guard by guard."""

from __future__ import annotations

import numpy as np

from lbw_sim.score import match
from lbw_sim.score.many import RunJudge
from lbw_sim.trace import Label

KINDS = ("spike", "divergence", "oscillation", "benign_shift", "benign_outlier")


def test_the_counts_are_those_of_match_for_any_labels_and_alarms() -> None:
    seen = np.zeros(5, np.int64)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows = int(rng.integers(1, 300))
        steps = np.cumsum(rng.integers(0 if seed % 3 else 1, 6, size=rows))
        labels = []
        for _ in range(int(rng.integers(0, 9))):
            start = int(rng.integers(0, steps[-1] + 20))
            end = start + int(rng.choice([0, 3, 40, 150]))
            confidence = str(rng.choice(["high", "medium", "low"]))
            labels.append(Label(start, end, str(rng.choice(KINDS)), confidence=confidence))
        unsafe = [np.flatnonzero(np.diff(np.pad(rng.random(rows) < rng.choice([0.0, 0.05, 0.5]), 1).astype(int)))
                  for _ in range(7)]  # fmt: skip
        alarms = [np.column_stack([edges[::2], edges[1::2] - 1]) for edges in unsafe]
        starts = np.cumsum([0, *map(len, alarms)])
        judge = RunJudge(labels, steps, "any")
        found = judge.count(np.concatenate(alarms), starts)
        for guard, pairs in enumerate(alarms):
            score = match(map(tuple, pairs.tolist()), labels, steps, "any")
            np.testing.assert_array_equal(found.delays_steps[guard], [event.delay_steps for event in score.events])
            counts = score.counts
            mine = [int(found.detected[guard]), *(int(values[guard]) for values in found[1:])]
            assert mine == [counts.detected, counts.alarms, counts.false_alarms, counts.baited, counts.latched_rows]
            assert judge.clean_rows == counts.clean_rows
            seen += mine
    assert (seen > 50).all(), "every count has been something else than 0"
