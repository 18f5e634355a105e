"""The figures of a stress suite, as data: who is coloured, where curves lie, which ranks are joined."""

from __future__ import annotations

import pytest
from stress_runs import GUARD, RATES, grid, run, suite

from lbw_sim.plots.canvas import PHONE_WIDTH
from lbw_sim.plots.suite import ranks_figure, ranks_info, sensitivity_figure, sensitivity_info
from lbw_sim.score.significance import Ranks
from lbw_sim.score.stress_judgement import judge

nan = float("nan")


def test_curves_lie_at_both_learning_rates_and_bars_reach_from_seed_to_seed() -> None:
    info = sensitivity_info(judge(suite(grid())))
    guard = next(curve for curve in info.curves[0] if curve.label == GUARD)
    assert guard.lrs == RATES
    assert guard.effective_lrs == pytest.approx((0.005, 0.025, 0.05))
    assert guard.means == pytest.approx((2.01, 2.02, 2.03))
    assert (guard.lows[0], guard.highs[0]) == (2.0, 2.02)
    assert info.best_losses == pytest.approx((2.01,))
    assert info.coloured[:2] == ("adamw", GUARD)


def test_with_more_methods_than_colours_the_guards_keep_theirs_and_the_rest_is_grey() -> None:
    others = [run(f"rule{n}", lr, seed, 2.0 + n) for n in range(8) for lr in RATES for seed in (400, 401)]
    judged = judge(suite([*others, *grid()]))
    info = sensitivity_info(judged)
    assert info.coloured[:2] == ("adamw", GUARD)
    assert "rule7" not in info.coloured
    assert [curve.coloured for curve in info.curves[0]].count(False) == 4
    figure = sensitivity_figure(judged)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {*info.coloured, "other methods"}


def test_ranks_are_joined_only_where_they_are_not_told_apart() -> None:
    ranks = Ranks(("a", "b", "guard:c", "d"), (1.0, 1.4, 2.4, 4.0), 20, 0.01, 1.1)
    assert ranks_info(ranks).groups == ((0, 1), (1, 2))
    (ax,) = ranks_figure(ranks).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "guard:c", "d"]
    assert ranks_info(ranks._replace(critical_difference=nan)).groups == ()
    tied = ranks_figure(Ranks(("a", "guard:b"), (1.5, 1.5), 2, 1.0, 1.96), width=PHONE_WIDTH)
    (ax,) = tied.axes
    tied.draw_without_rendering()
    seen = tied.bbox
    for drawn in (*ax.lines, *ax.texts, ax.xaxis.label):
        box = drawn.get_window_extent()
        assert seen.x0 <= box.x0 <= box.x1 <= seen.x1, "all of it is in the picture"
    ranks_figure(Ranks((), (), 0, nan, nan))
