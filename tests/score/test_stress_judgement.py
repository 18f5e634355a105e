"""The judgement of a stress suite on planted figures: what it must find, and what it must not claim."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from stress_runs import GUARD, INITIAL, SEEDS, grid, run, suite

from lbw_sim.errors import ScoreError
from lbw_sim.score.stress_judgement import BEST_RATE, UNTOUCHED, Standing, judge, missed
from lbw_sim.score.stress_page import markdown_page, page
from lbw_sim.score.stress_results import Suite, SuiteRun, csv_text, read_suite, write_suite
from lbw_sim.score.stress_words import sentences, verdict

nan = math.nan


def standing(made: Suite, label: str) -> Standing:
    found = judge(made).standing("tiny", label)
    assert found is not None
    return found


def test_a_planted_grid_gives_its_sensitivity_harm_rescue_and_compute() -> None:
    made = suite(grid())
    plain, guard = standing(made, "adamw"), standing(made, GUARD)
    assert judge(made).references["tiny"].best_lr == 0.01
    assert plain.sensitivity.mean == pytest.approx((0.0 + 1.0 + 2.0) / 3)
    assert guard.sensitivity_from == guard.sensitivity, "the grid begins at its best"
    assert guard.sensitivity.mean == pytest.approx((0.0 + 0.01 + 0.02) / 3)
    # equal distances in the logarithm: the trapezoid halves the ends
    assert plain.effective_sensitivity.mean == pytest.approx((0.0 / 2 + 1.0 + 2.0 / 2) / 2)
    assert (plain.decades, guard.decades) == pytest.approx((2.0, 1.0))
    assert plain.high_worst == pytest.approx(sum(2.0 / (2.0 + d) for d in (0.0, 0.01, 0.02)) / 3)
    assert guard.harm.mean == 0.0
    assert (plain.reached, guard.reached, guard.runs) == (3, 9, 9)
    assert guard.to_target == pytest.approx(0.5)
    assert (plain.lost_share.mean, guard.lost_share.mean) == pytest.approx((2 / 3, 0.0))
    assert missed(guard) == []
    assert len(missed(plain)) == 2


def test_a_learning_rate_that_is_too_low_counts_but_not_against_the_bar() -> None:
    slow = [run(who, 0.001, seed, 3.5) for who in ("adamw", GUARD) for seed in SEEDS]
    found = standing(suite([*grid(), *slow]), GUARD)
    assert found.sensitivity_from.mean == pytest.approx((0.0 + 0.01 + 0.02) / 3)
    assert found.sensitivity.mean == pytest.approx((3.5 - 2.01 + 0.0 + 0.01 + 0.02) / 4)
    assert missed(found) == []


def test_a_missed_bar_of_sensitivity_says_how_much_of_it_is_adamws_own_below_its_best() -> None:
    slow = [run(who, 0.003, seed, 2.01 + 0.4) for who in ("adamw", GUARD) for seed in SEEDS]
    found = standing(suite([*grid(), *slow]), GUARD)
    assert found.sensitivity_below == pytest.approx(0.4 / 4)
    assert found.sensitivity_from.mean == pytest.approx((0.4 + 0.0 + 0.01 + 0.02) / 4)
    (said,) = (text for text in missed(found) if text.startswith("sensitivity"))
    assert said.endswith(" (bar 0.05; AdamW's own below its best learning rate: +0.100)")


def test_harm_is_the_worst_seed_at_or_below_the_best_learning_rate_and_nowhere_else() -> None:
    rows = [r for r in grid(guard=(2.0, 9.9, 9.9)) if not (r.label == GUARD and r.lr == 0.01 and r.seed == 401)]
    found = standing(suite([*rows, run(GUARD, 0.01, 401, 2.01 * 1.03)]), GUARD)
    assert found.harm_worst == pytest.approx(0.03)
    assert found.harm_below == found.harm.mean == pytest.approx(0.01)
    assert any("+3.00 % on the worst seed" in text for text in missed(found))


def test_a_guard_that_was_flown_without_controls_is_held_against_the_bars_all_the_same() -> None:
    made = suite([r for r in grid() if not r.control_of])
    bare = made._replace(facts=dataclasses.replace(made.facts, controlled=()))
    assert f"`{GUARD}` meets them on tiny." in " ".join(sentences(judge(bare)))


def test_a_missed_bar_stands_beside_what_chance_alone_changes_where_that_was_flown() -> None:
    harmful = grid(guard=(2.1, 2.1, 2.1))
    without = " ".join(sentences(judge(suite(harmful))))
    assert "harm +4.98 % in the mean" in without
    assert "nudge" not in without
    nudged = [run("nudge", r.lr, r.seed, r.final_loss * (1.02 if r.seed == 401 else 0.99)) for r in harmful
              if r.label == "adamw"]  # fmt: skip
    said = " ".join(sentences(judge(suite([*harmful, *nudged]))))
    assert "by +0.00 % in the mean and +2.00 % on the worst seed: as much is chance." in said


def test_a_run_that_ends_in_nan_counts_as_untrained_and_is_named() -> None:
    rows = [r._replace(final_loss=nan) if r.method == "adamw" and r.lr == 1.0 else r for r in grid()]
    found = standing(suite(rows), "adamw")
    assert found.diverged == 3
    assert found.sensitivity.mean == pytest.approx((0.0 + 1.0 + (INITIAL - 2.01)) / 3)
    assert "| adamw | 2.010 ± 0.025 | 3.010 ± 0.025 | nan |" in markdown_page(page(judge(suite(rows))), "t", [], {})


def test_a_pair_counts_no_run_as_worse_than_untrained_and_p_is_of_whole_seeds() -> None:
    def ended(loss: float, seed: int) -> list[SuiteRun]:
        return [run("adamw", lr, seed, INITIAL if lr == 1.0 else 2.0) for lr in (0.01, 0.1, 1.0)] + [
            run("zclip", 0.01, seed, 2.0), run("zclip", 0.1, seed, 2.0 + loss), run("zclip", 1.0, seed, 9.0 + loss),
        ]  # fmt: skip

    pair = judge(suite([*ended(0.3, 400), *ended(-0.5, 401), *ended(nan, 402)])).pair("zclip", "adamw")
    assert pair is not None
    # 9 is worse than untrained, nan is untrained: no difference to a run that ended as it began
    assert pair.difference.mean == pytest.approx((0.3 - 0.5 + (INITIAL - 2.0)) / 9)
    assert (pair.lower, pair.higher) == (1, 2)
    # of the eight patterns of signs of 0.3, -0.5 and 3 six come at least as far as 2.8
    assert pair.p == 6 / 8


def test_retrained_tokens_are_lost_and_an_unknown_target_is_not_zero() -> None:
    rows = [r._replace(retrained_steps=20) if r.method == GUARD else r for r in grid()]
    assert standing(suite(rows), GUARD).lost_share.mean == pytest.approx(0.2)
    unknown = standing(suite(r._replace(tokens_to_target=nan) for r in grid()), GUARD)
    assert math.isnan(unknown.lost_share.mean)
    assert math.isnan(unknown.to_target)


def test_a_guard_beats_a_control_only_with_an_interval_that_excludes_zero() -> None:
    judged = judge(suite(grid()))
    pair = judged.pair(GUARD, f"frozen_floor of {GUARD}")
    assert pair is not None
    assert (verdict(pair), pair.pairs, pair.lower, pair.higher, pair.p) == ("beats", 9, 6, 0, 0.25)
    # by chance: seeds disagree about the sign
    rows = [
        r._replace(final_loss=r.final_loss + 0.3 * (r.seed - 401)) if r.method == "playback" else r
        for r in grid(playback=(2.0, 2.01, 2.02))
    ]
    pair = judge(suite(rows)).pair(GUARD, f"playback of {GUARD}")
    assert pair is not None
    assert verdict(pair) == "is not told apart from"
    one = judge(suite(grid(seeds=(400,)))).pair(GUARD, "adamw")
    assert one is not None
    assert (math.isnan(one.difference.low), one.beats, one.beaten) == (True, False, False)


def test_the_prose_says_when_a_control_is_not_beaten_and_what_that_means() -> None:
    said = "\n".join(sentences(judge(suite(grid(playback=(1.9, 1.91, 1.92))))))
    assert f"`{GUARD}` beats AdamW over all learning rates: -0.990" in said
    assert f"`{GUARD}` loses to the guard's scales of another seed" in said
    assert "So its schedule does as much without looking at the loss, so the feedback is not what helps." in said
    assert "beats, with an interval that excludes zero: AdamW at the guard's mean effective learning rate" in said
    assert "meets them on tiny." in said
    assert "Every method" not in said
    idle = "\n".join(sentences(judge(suite(grid(guard=(2.0, 3.0, 4.0))))))
    assert f"`{GUARD}` equals AdamW over all learning rates" in idle
    assert "it changed nothing that matters here" in idle
    assert "meets them on no workload here." in idle
    worse = "\n".join(sentences(judge(suite(grid(guard=(2.2, 3.2, 4.2))))))
    assert f"`{GUARD}` loses to AdamW over all learning rates" in worse
    assert "gains" not in worse.partition("Bars")[2], "no share of a gain that is none"


def test_fine_tuning_is_held_against_the_untouched_model_without_a_cap() -> None:
    judged = judge(suite(grid(guard=(4.0, 5.5, 6.5)), fine_tuning=True))
    pair = judged.pair(GUARD, UNTOUCHED)
    assert pair is not None
    assert pair.difference.mean == pytest.approx((-1.0 + 0.5 + 1.5) / 3 + 0.01)
    assert (pair.lower, pair.higher) == (3, 6)
    assert "not training at all would have left the lower loss" in "\n".join(sentences(judged))
    assert judge(suite(grid())).pair(GUARD, UNTOUCHED) is None


def test_an_unfinished_suite_is_judged_on_what_is_there_and_says_so() -> None:
    rows = [r for r in grid() if not (r.method == "clip:1.0" and r.seed == 402 and r.lr == 1.0)]
    judged = judge(suite(rows, planned=len(rows) + 1))
    found = judged.standing("tiny", "clip:1.0")
    assert found is not None
    assert (found.seeds, found.runs) == (2, 8)
    assert judged.ranks.methods == (GUARD, "adamw"), "no rank for a method that misses a run"
    pair = judged.pair("clip:1.0", BEST_RATE)
    assert pair is not None
    assert pair.pairs == 8
    assert "not finished: 62 of 63 runs" in sentences(judged)[0]
    # nothing of AdamW: no sensitivity, no claim, and still a page
    bare = judge(suite(r for r in grid() if r.method != "adamw"))
    assert bare.standings == ()
    assert "## What stands out" in markdown_page(page(bare), "t", [], {})


def test_every_system_of_the_seed_paper_has_its_row() -> None:
    text = markdown_page(page(judge(suite(grid()))), "t", [], {})
    for system in ("Qwen2.5-3B, LoRA", "Qwen2.5-7B, LoRA", "Qwen2.5-14B, LoRA", "TinyLlama-1.1B, full-parameter"):
        assert text.count(f"| {system} |") == 3
    assert text.count("needs weights that can't be had here") == 12
    row = next(line for line in text.splitlines() if line.startswith("| Qwen2.5-7B, LoRA | 3e-3 |"))
    assert "| 1885.24 | 11.57 |" in row


def test_a_measured_row_stands_beside_the_published_one() -> None:
    rows = grid(workload="qwen2.5-7b")
    text = markdown_page(page(judge(suite(r._replace(lr=0.001) if r.lr == 0.01 else r for r in rows))), "t", [], {})
    row = next(line for line in text.splitlines() if line.startswith("| Qwen2.5-7B, LoRA | 1e-3 |"))
    assert f"| {math.exp(2.01):.2f} |" in row
    assert row.endswith("| measured |")


def test_results_survive_the_file_to_the_bit_and_damage_is_named(tmp_path: Path) -> None:
    made = suite([*grid(), run("zclip", 1e-5 / 3, 7, nan, to_target=nan)])
    write_suite(made, tmp_path)
    again = read_suite(tmp_path)
    assert csv_text(again.runs) == csv_text(made.runs)
    assert again.facts == made.facts
    text = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(text.replace(",400,", ",four hundred,", 1))
    with pytest.raises(ScoreError, match="damaged results"):
        read_suite(tmp_path)
    (tmp_path / "results.csv").write_text(text.replace("tiny,adamw", "huge,adamw", 1))
    with pytest.raises(ScoreError, match="runs of huge"):
        read_suite(tmp_path)
    (tmp_path / "suite.json").write_text("{")
    with pytest.raises(ScoreError, match="no readable results"):
        read_suite(tmp_path)


def test_a_seed_whose_adamw_run_at_the_best_rate_is_missing_is_left_out_and_not_an_error() -> None:
    rows = [r for r in grid() if not (r.label == "adamw" and r.lr == 0.01 and r.seed == SEEDS[0])]
    assert standing(suite(rows), GUARD).to_target == pytest.approx(0.5)
