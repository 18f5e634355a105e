"""river's own detectors, on a planted shift."""

from __future__ import annotations

import math
import random

import pytest

from lbw_sim.score.river_alarms import river_alarms, river_detectors

pytest.importorskip("river")


@pytest.mark.parametrize("name", ["river ADWIN", "river KSWIN", "river PageHinkley"])
def test_a_large_lasting_shift_is_seen_and_nan_is_passed_over(name: str) -> None:
    rng = random.Random(0)
    losses = [2.0 + rng.gauss(0.0, 0.05) for _ in range(1000)] + [6.0 + rng.gauss(0.0, 0.05) for _ in range(500)]
    losses[100] = math.nan
    alarms = river_alarms(river_detectors()[name](), losses)
    assert any(1000 <= alarm.start_row <= 1100 for alarm in alarms)
    assert 100 not in {alarm.start_row for alarm in alarms}
