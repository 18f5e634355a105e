"""The hand-written statistics against scipy's, and what they must refuse to say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lbw_sim.score.significance import mean_estimate, rank_methods, sign_flip_p, student_quantile, studentized_range


@pytest.fixture(scope="module")
def stats() -> Any:
    """Takes seconds to import: only where it is used."""
    return pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 60])
def test_students_quantile_is_scipys(stats: Any, degrees: int) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


@pytest.mark.parametrize("count", [2, 5, 20])
def test_the_studentized_range_is_scipys(stats: Any, count: int) -> None:
    assert studentized_range(count) == pytest.approx(stats.studentized_range.ppf(0.95, count, np.inf), rel=1e-4)


def test_friedman_is_scipys_with_ties_and_the_critical_difference_is_demsars(stats: Any) -> None:
    losses = np.random.default_rng(0).normal(size=(14, 4)).round(1) + np.array([0.0, 0.3, 0.5, 0.5])
    ranks = rank_methods(["a", "b", "c", "d"], losses)
    statistic = stats.friedmanchisquare(*losses.T).statistic
    ratio = 13 * statistic / (14 * 3 - statistic)
    assert ranks.p == pytest.approx(stats.f.sf(ratio, 3, 3 * 13), rel=1e-9)
    assert dict(zip(ranks.methods, ranks.mean_ranks, strict=True)) == pytest.approx(
        dict(zip("abcd", stats.rankdata(losses, axis=1).mean(axis=0), strict=True))
    )
    # the worked example of Demšar 2006, section 3.2.2: four classifiers, 14 data sets
    assert ranks.critical_difference == pytest.approx(1.25, abs=0.005)


def test_a_paired_test_flips_whole_blocks_and_is_exact_while_they_are_few(stats: Any) -> None:
    sums = [-1.0, -0.5, -2.0, 0.25, -0.75]
    assert sign_flip_p(sums) == 4 / 32
    # drawn instead of tried
    many = np.random.default_rng(1).normal(0.3, 1.0, 40)
    assert sign_flip_p(many.tolist()) == pytest.approx(stats.ttest_1samp(many, 0.0).pvalue, abs=0.02)
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0


def test_what_cannot_be_said_is_nan() -> None:
    assert math.isnan(sign_flip_p([]))
    assert math.isnan(sign_flip_p([1.0, math.nan]))
    assert math.isnan(mean_estimate([1.0, math.nan]).mean)
    assert math.isnan(mean_estimate([2.0]).low)
    assert math.isnan(rank_methods(["a", "b"], np.array([[1.0, 2.0]])).critical_difference)


def test_a_method_whose_loss_is_nan_is_ranked_last_not_first() -> None:
    ranks = rank_methods(["a", "lost", "b"], np.array([[1.0, math.nan, 2.0], [2.0, math.nan, 1.0]]))
    assert ranks.methods[-1] == "lost"
    assert ranks.mean_ranks == (1.5, 1.5, 3.0)
