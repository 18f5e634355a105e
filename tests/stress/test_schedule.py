from itertools import pairwise

from lbw_sim.stress.schedule import FINAL_SHARE, WARMUP_STEPS, scheduled_lr


def test_the_rate_rises_for_twenty_steps_and_then_only_falls_to_a_tenth():
    rates = [scheduled_lr(step, 300, 0.01) for step in range(300)]
    assert rates[WARMUP_STEPS - 1] == max(rates) == 0.01
    assert all(a < b for a, b in pairwise(rates[:WARMUP_STEPS]))
    assert all(a > b for a, b in pairwise(rates[WARMUP_STEPS:]))
    assert rates[-1] == 0.01 * FINAL_SHARE


def test_a_restart_changes_nothing_before_it_and_begins_at_the_peak():
    usual = [scheduled_lr(step, 100, 1.0) for step in range(100)]
    restarted = [scheduled_lr(step, 100, 1.0, restart_step=60) for step in range(100)]
    assert restarted[:60] == usual[:60]
    assert restarted[60] == 1.0
    assert restarted[-1] == FINAL_SHARE
    assert all(a > b for a, b in pairwise(restarted[60:]))


def test_runs_shorter_than_the_warm_up_have_a_rate():
    assert [scheduled_lr(step, 2, 1.0) for step in range(2)] == [0.05, 0.1]
