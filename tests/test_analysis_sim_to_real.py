"""The study of simulator against reality: its parts are disjoint, and its scores are what they are called."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
sys.path.insert(0, str(Path(__file__).parent.parent / "analysis"))
study: Any = __import__("sim_to_real")


def test_no_rate_seed_or_setting_is_in_two_parts() -> None:
    for one, other in itertools.combinations(study.PARTS, 2):
        assert not set(study.LRS[one]) & set(study.LRS[other])
        assert not set(study.SEEDS[one]) & set(study.SEEDS[other])
    prints = {
        part: {study.GuardSpec.of(guard, "").fingerprint for name, guard in settings.items() if name != "hold"}
        for part, settings in study.SETTINGS.items()
    }
    assert not prints["development"] & prints["judged"]
    assert len(prints["judged"]) == len(study.SETTINGS["judged"]) - 1
    assert len(study.NEVER_FLOWN) >= 8
    assert len(prints["judged"]) - len(study.NEVER_FLOWN) >= 24


def test_a_ranking_is_scored_by_order_and_its_choice_by_what_it_really_costs() -> None:
    really = np.array([[1.0, 4.0], [2.0, 5.0], [3.0, 9.0]])
    right = study.scores(really + 7.0, really.mean(axis=1), really)
    assert right == (1.0, 1.0, 1.0, 0.0, 0.0)
    # the first setting is best at both rates; the last is chosen, 2 and 5 nats worse
    wrong = study.scores(-really, -really.mean(axis=1), really)
    assert wrong[:3] == pytest.approx((-1.0, -1.0, -1.0))
    assert wrong.regret == wrong.regret_per_rate == 3.5


def test_the_ceiling_judges_seeds_by_other_seeds_only() -> None:
    cuts = study.halves(range(4))
    assert len(cuts) == 6
    assert all(sorted(one + other) == [0, 1, 2, 3] for one, other in cuts)
    # drawn twice, and yet on one side only
    assert study.halves([3, 0, 0, 1]) == [([0, 0], [3, 1]), ([3, 1], [0, 0])]
    assert study.halves([2, 2, 2, 1]) == [([1], [2, 2, 2]), ([2, 2, 2], [1])]
    # two seeds that agree with each other and not with the other two
    setting = np.arange(5.0)[:, None, None]
    real = np.concatenate([setting, setting, -setting, -setting], axis=2).repeat(2, axis=1)
    real += 1e-3 * np.random.default_rng(0).standard_normal(real.shape)
    by_cut = [one.per_rate for one in study.ceilings(real, range(4))]
    assert len(by_cut) == 3
    assert min(by_cut) == pytest.approx(-1.0)
    found = study.bar("all", range(5), real[:, :, 0], real)
    assert found.ceiling.per_rate < 0.2
    # with the two alike drawn, they agree; with one of each kind, they do not
    assert found.ceiling_drawn[0, 1] < -0.9 < 0.9 < found.ceiling_drawn[1, 1]
    rows = study.judged_rows({"first": (real[:, :, 0], real[:, :, 0].mean(axis=1))}, real)
    assert rows[0].low.choice < -0.9 < 0.9 < rows[0].high.choice
