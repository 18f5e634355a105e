"""The scorer's windows, one planted case each."""

import json
import math

import numpy as np
import pytest

from lbw_sim.errors import ScoreError
from lbw_sim.score.detection import (
    Alarm,
    DetectionCounts,
    Interval,
    RunScore,
    bootstrap,
    by_family,
    family_mean,
    find_alarms,
    match,
    never_alarms,
    oracle_alarms,
    pooled,
    random_alarms,
    score_regimes,
    unsafe_rows,
)
from lbw_sim.trace.labels import Label
from lbw_sim.values import UNSAFE_REGIMES, Regime

STEPS = np.arange(1000)
LONG = Label(200, 399, "spike")  # 200 rows: tolerance 10, aftermath 100
SHORT = Label(500, 504, "spike")  # 5 rows: tolerance 3, aftermath 10


def counts_at(row, *labels, end=None):
    return match([(row, row if end is None else end)], labels, STEPS, "run").counts


def verdict_at(row, *labels):
    return match([(row, row)], labels, STEPS, "run").alarms[0].verdict


def test_an_alarm_is_a_run_of_rows_in_an_unsafe_regime():
    regimes = [Regime.WARMUP, Regime.SPIKE, Regime.PLATEAU, Regime.RECOVERY, Regime.NONFINITE]
    assert unsafe_rows(regimes).tolist() == [False, True, True, False, True]
    assert find_alarms(unsafe_rows(regimes)) == [Alarm(1, 2), Alarm(4, 4)]
    assert {regime for regime in Regime if unsafe_rows([regime])[0]} == UNSAFE_REGIMES
    assert find_alarms([]) == []


@pytest.mark.parametrize(("label", "tolerance", "aftermath"), [(LONG, 10, 100), (SHORT, 3, 10)])
def test_an_alarm_counts_from_the_tolerance_before_the_onset_to_the_end(label, tolerance, aftermath):
    onset, end = label.start_step, label.end_step
    assert counts_at(onset - tolerance, label).delays_rows == (-tolerance,)
    assert counts_at(end, label).delays_rows == (end - onset,)
    early = counts_at(onset - tolerance - 1, label)
    assert (early.detected, early.false_alarms) == (0, 1)
    late = counts_at(end + 1, label)
    assert (late.detected, late.false_alarms) == (0, 0)
    assert verdict_at(end + aftermath, label) == "event"
    assert verdict_at(end + aftermath + 1, label) == "false"


def test_a_missed_event_has_no_delay_and_the_first_of_two_alarms_gives_it():
    assert math.isnan(match([], [LONG], STEPS, "run").events[0].delay_rows)
    assert math.isnan(match([], [LONG], STEPS, "run").counts.median_delay_rows)
    assert match([(230, 231), (220, 221)], [LONG], STEPS, "run").counts.delays_rows == (20,)


def test_an_alarm_already_on_before_an_event_detects_it_only_inside_a_larger_scored_one():
    inner = Label(300, 309, "spike")
    outer, other = match([(190, 300)], [LONG, inner], STEPS, "run").events
    assert (outer.delay_rows, other.delay_rows) == (-10, 0)
    assert counts_at(190, LONG, inner, end=299).detected == 1, "it let go one row before the inner onset"
    assert counts_at(189, LONG, inner, end=300).detected == 0, "it began outside the larger event"
    assert counts_at(190, inner, end=300).detected == 0, "there is no larger event"
    low = LONG._replace(confidence="low")
    assert counts_at(190, low, inner, end=300).detected == 0, "a larger event of low confidence rewards nothing"
    assert counts_at(390, LONG, Label(394, 600, "spike"), end=500).detected == 2, (
        "390 is in the second one's own tolerance"
    )
    assert counts_at(380, LONG, Label(394, 600, "spike"), end=500).detected == 1, "an overlap is not inside"
    assert counts_at(190, LONG, LONG, end=399).delays_rows == (-10, -10), "equal events share an alarm, not a nest"


def test_of_an_alarm_of_its_own_and_one_carried_in_the_earlier_counts():
    inner = Label(300, 309, "spike")
    assert match([(250, 301), (304, 305)], [LONG, inner], STEPS, "run").events[1].delay_rows == 0
    assert match([(298, 305)], [LONG, inner], STEPS, "run").events[1].delay_rows == -2


def test_an_event_of_low_confidence_swallows_alarms_and_is_not_counted():
    low = SHORT._replace(confidence="low")
    for row in (497, 502, 514):
        counts = counts_at(row, low)
        assert (counts.events, counts.detected, counts.false_alarms) == (0, 0, 0)
        assert verdict_at(row, low) == "ignored"
        assert verdict_at(row, low, SHORT) == "event"
    assert verdict_at(496, low) == verdict_at(515, low) == "false"
    assert counts_at(0, low).clean_rows == 1000 - 18


def test_an_alarm_on_a_benign_span_is_baited_not_false():
    benign = Label(600, 601, "benign_outlier")
    assert [verdict_at(row, benign) for row in (597, 598, 603, 604)] == ["false", "baited", "baited", "false"]
    assert counts_at(600, benign).clean_rows == 994
    inside = Label(250, 250, "benign_shift")
    counts = counts_at(251, LONG, inside)
    assert (counts.baited, counts.detected) == (0, 1), "inside an event the alarm is the event's"
    assert verdict_at(450, LONG, Label(450, 450, "benign_shift")) == "baited", "after it, it is not"


def test_false_alarms_are_per_10000_clean_rows_and_latching_is_a_share_of_them():
    score = match([(0, 99), (700, 700), (198, 250)], [LONG], STEPS, "run")
    counts = score.counts
    assert counts.clean_rows == 1000 - (10 + 200 + 100)
    assert (counts.alarms, counts.false_alarms) == (3, 2)
    assert counts.false_alarms_per_10k == 10_000 * 2 / 690
    assert counts.latched_share == 101 / 690


def test_startup_events_are_also_counted_apart():
    labels = [Label(9, 20, "spike"), Label(10, 20, "spike"), SHORT._replace(confidence="medium")]
    counts = match([(18, 18)], labels, STEPS, "run").counts
    assert (counts.startup_events, counts.startup_detected, counts.startup_recall) == (1, 1, 1.0)
    assert counts.later_recall == 0.5
    assert counts.high_recall == 1.0


def test_steps_of_sparse_logs_become_rows():
    steps = np.arange(0, 5000, 5)
    event = Label(1003, 1049, "spike")  # rows 201..209
    outcome = match([(203, 203)], [event], steps, "run").events[0]
    assert (outcome.onset_row, outcome.end_row) == (201, 209)
    assert (outcome.delay_rows, outcome.delay_steps) == (2, 12)
    between = match([(202, 202)], [Label(1006, 1008, "spike")], steps, "run").events[0]
    assert (between.onset_row, between.end_row, between.detected) == (202, 202, True)


def test_a_label_outside_the_recorded_steps_is_told_and_not_scored():
    counts = match(
        [], [Label(1000, 1010, "spike"), Label(-5, -1, "spike"), Label(999, 1010, "spike")], STEPS, "run"
    ).counts
    assert (counts.unplaced_labels, counts.events) == (2, 1)
    assert match([], [SHORT], [], "empty").counts.unplaced_labels == 1


def test_nonfinite_is_an_event():
    assert counts_at(501, SHORT._replace(kind="nonfinite")).detected == 1


def test_undefined_rates_are_nan_never_zero():
    empty = DetectionCounts()
    for name in ("recall", "high_recall", "startup_recall", "later_recall", "false_alarms_per_10k", "latched_share"):
        assert math.isnan(getattr(empty, name)), name
    assert math.isnan(empty.median_delay_rows)
    assert math.isnan(empty.median_delay_steps)
    assert math.isnan(family_mean({}, lambda counts: counts.recall))


@pytest.mark.parametrize(
    ("labels", "steps", "alarms", "text"),
    [
        ([Label(1, 2, "spikes")], STEPS, [], "run 'bad': no label kind named 'spikes'.*Did you mean 'spike'"),
        ([Label(1, 2, "spike", "sure")], STEPS, [], "no confidence named 'sure'"),
        ([Label(3, 2, "spike")], STEPS, [], "spike ends at 2 before it starts"),
        ([], [0, 1, 2, 1], [], "steps fall at row 3"),
        ([], STEPS, [(999, 1000)], "outside its 1000 rows"),
        ([], STEPS, [(-1, 2)], "outside its 1000 rows"),
    ],
)
def test_what_cannot_be_scored_is_refused(labels, steps, alarms, text):
    with pytest.raises(ScoreError, match=text):
        match(alarms, labels, steps, "bad")


def test_regimes_are_one_per_row():
    with pytest.raises(ScoreError, match="one regime per row"):
        score_regimes([1, 1], [], STEPS, "bad")
    regimes = np.ones(1000, dtype=np.int8)
    regimes[503:600] = Regime.DIVERGING
    assert score_regimes(regimes, [SHORT], STEPS, "run").counts.delays_rows == (3,)


def test_counts_of_runs_and_families_add_up():
    a = match([(200, 201)], [LONG, SHORT], STEPS, "x_1")
    b = match([(700, 700)], [SHORT], STEPS, "x-2")
    c = match([], [], STEPS, "y")
    assert pooled([a, b, c]).recall == 1 / 3
    families = by_family([c, b, a])
    assert list(families) == ["x", "y"]
    assert families["x"] == a.counts + b.counts
    assert family_mean(families, lambda counts: counts.recall) == 1 / 3, "a family without events has no say"
    assert family_mean(families, lambda counts: counts.false_alarms) == 0.5
    assert pooled([]) == DetectionCounts()


def test_the_reference_rows_bracket_every_guard():
    labels = [
        LONG,
        SHORT,
        Label(501, 505, "spike"),
        Label(300, 310, "oscillation"),
        Label(700, 720, "divergence", "low"),
    ]
    never = match(never_alarms(), labels, STEPS, "run").counts
    assert (never.recall, never.false_alarms_per_10k) == (0.0, 0.0)
    oracle = match(oracle_alarms(labels, STEPS, "run"), labels, STEPS, "run").counts
    assert (oracle.recall, oracle.false_alarms, oracle.median_delay_rows) == (1.0, 0, 0.0)


def test_random_alarms_keep_their_rate_and_their_seed():
    alarms = random_alarms(200_000, per_10k=20.0, seed=3)
    assert alarms == random_alarms(200_000, per_10k=20.0, seed=3)
    assert alarms != random_alarms(200_000, per_10k=20.0, seed=4)
    assert abs(len(alarms) - 400) < 5 * 20
    assert all(alarm.end_row - alarm.start_row == 9 for alarm in random_alarms(5000, per_10k=2, seed=0, length_rows=10))
    assert random_alarms(100, per_10k=0.0, seed=0) == []
    with pytest.raises(ScoreError, match="per_10k=nan"):
        random_alarms(100, per_10k=math.nan, seed=0)


def runs(*table: tuple[str, int, int, int, int]) -> list[RunScore]:
    return [
        RunScore(name, (), (), DetectionCounts(runs=1, events=e, detected=d, clean_rows=c, false_alarms=f))
        for name, e, d, c, f in table
    ]


def test_bootstrap_is_seeded_and_brackets_the_estimate():
    scores = runs(("a_1", 4, 4, 5000, 0), ("a_2", 4, 0, 5000, 2), ("a_3", 4, 2, 5000, 1), ("b_1", 2, 1, 1000, 1))
    intervals = bootstrap(scores, seed=1)
    assert intervals == bootstrap(scores, seed=1)
    assert intervals == bootstrap(scores[::-1][:1] + scores[:3], seed=1), "the order of families does not matter"
    total = pooled(scores)
    assert intervals.recall.low < total.recall < intervals.recall.high
    assert intervals.family_recall.low < 0.5 < intervals.family_recall.high
    assert intervals.false_alarms_per_10k.low < total.false_alarms_per_10k < intervals.false_alarms_per_10k.high
    narrow = bootstrap(scores, seed=1, level=0.5)
    assert intervals.recall.low < narrow.recall.low


def test_bootstrap_draws_within_each_family():
    # each family is all hit or all missed: resampling within families cannot move the recall
    scores = runs(("a_1", 1, 1, 10, 0), ("a_2", 1, 1, 10, 0), ("b_1", 1, 0, 10, 0), ("b_2", 1, 0, 10, 0))
    assert bootstrap(scores, seed=0).recall == Interval(0.5, 0.5)


def test_bootstrap_of_nothing_is_undefined():
    for scores in ([], runs(("a", 0, 0, 0, 0))):
        assert all(math.isnan(end) for interval in bootstrap(scores, seed=0) for end in interval)
    half = bootstrap(runs(("a_1", 0, 0, 10, 0), ("a_2", 0, 0, 10, 0)), seed=0)
    assert math.isnan(half.recall.low)
    assert half.false_alarms_per_10k == Interval(0.0, 0.0)


def test_bootstrap_of_families_of_one_run_has_no_interval():
    for scores in (runs(("a", 4, 2, 10, 3)), runs(("a_1", 4, 2, 10, 3), ("b_1", 4, 4, 10, 0))):
        assert all(math.isnan(end) for interval in bootstrap(scores, seed=0) for end in interval)
    two = runs(("a_1", 4, 2, 10, 3), ("a_2", 4, 4, 10, 0))
    assert bootstrap(two, seed=0).recall == Interval(0.5, 1.0)


def test_the_labelled_real_runs_place_every_event_and_the_oracle_finds_them_all(real_runs):
    labels = json.loads((real_runs / "labels.json").read_text(encoding="utf-8"))
    scores = []
    for run_id, spans in labels.items():
        steps = np.genfromtxt(real_runs / f"{run_id}.csv", delimiter=",", skip_header=1, usecols=0)
        mine = [Label(s["start_step"], s["end_step"], s["kind"], s["confidence"]) for s in spans]
        scores.append(match(oracle_alarms(mine, steps, run_id), mine, steps, run_id))
    families = by_family(scores)
    assert {family: counts.events for family, counts in families.items() if counts.events} == {
        "gptL": 27, "mg": 35, "pp": 16, "llmc": 1,
    }  # fmt: skip
    assert families["gptL"].startup_events == 12
    total = pooled(scores)
    assert (total.recall, total.false_alarms, total.baited, total.unplaced_labels) == (1.0, 0, 0, 0)
