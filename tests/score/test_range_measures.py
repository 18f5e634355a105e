"""Values worked out by hand for ten rows with one event in rows 4 and 5."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from lbw_sim.errors import ScoreError
from lbw_sim.score.detection import RunScore, match
from lbw_sim.score.range_measures import RangeMeasures, affiliation, range_measures, vus_pr
from lbw_sim.score.table import detection_rows
from lbw_sim.trace.labels import Label

EVENT = [(4, 5)]
R = math.sqrt(0.5)  # what the row beside it counts at buffer 2
SOFT = 2 + 2 * R  # rows of the buffered event
POSITIVES = (2 + SOFT) / 2
EVERYTHING = (0.2 + SOFT / 10) / 2  # one threshold, recall 1: what part of all rows counts, at buffers 0 and 2


def rows(*alarmed: int, count: int = 10) -> NDArray[np.bool_]:
    return np.isin(np.arange(count), alarmed)


def test_perfect_alarms() -> None:
    # buffer 0: 1. Buffer 2: recall 2 / POSITIVES at precision 1, the rest of recall only where every row is alarmed
    recall = 2 / POSITIVES
    buffered = recall * 1.0 + (1 - recall) * SOFT / 10
    assert vus_pr(rows(4, 5), EVENT, max_buffer_rows=2) == pytest.approx((1.0 + buffered) / 2)
    assert affiliation(rows(4, 5), EVENT) == (1.0, 1.0)


def test_no_alarm_and_nothing_but_alarm_say_nothing() -> None:
    assert vus_pr(rows(), EVENT, max_buffer_rows=2) == pytest.approx(EVERYTHING)
    assert vus_pr(rows(*range(10)), EVENT, max_buffer_rows=2) == pytest.approx(EVERYTHING)
    precision, recall = affiliation(rows(), EVENT)
    assert math.isnan(precision)
    assert recall == 0.0
    # rows lie 4 3 2 1 0 0 1 2 3 4 away; of all rows 1, 0.8, 0.6, 0.4, 0.2 are at least 0, 1, 2, 3, 4 away
    assert affiliation(rows(*range(10)), EVENT) == (pytest.approx(0.6), 1.0)


def test_alarms_two_rows_late() -> None:
    # buffer 0: nothing until every row is alarmed. Buffer 2: row 6 counts R, and hits the buffered event
    recall, precision = R / POSITIVES, R / 2
    buffered = recall * precision + (1 - recall) * SOFT / 10
    assert vus_pr(rows(6, 7), EVENT, max_buffer_rows=2) == pytest.approx((0.2 + buffered) / 2)
    # 1 and 2 rows away: 0.8 and 0.6. Row 4 is 2 from the nearest alarm, as far as 7 rows are; row 5 is 1, as 9 are
    assert affiliation(rows(6, 7), EVENT) == (pytest.approx(0.7), pytest.approx(0.8))


def test_a_score_with_many_levels_is_cut_at_every_one() -> None:
    # event rows rank first and third: precision 1 at recall 1/2, then 2/3
    score = np.array([0, 0, 0, 0, 9, 7, 8, 0, 0, np.nan])
    assert vus_pr(score, EVENT, max_buffer_rows=0) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_recall_is_cut_to_the_share_of_events_hit() -> None:
    # alarms on row 4 alone: recall 1/3 of the rows, times 1 of 2 events; then every row
    found = vus_pr(rows(4), [(4, 5), (8, 8)], max_buffer_rows=0)
    assert found == pytest.approx(1 / 6 * 1.0 + 5 / 6 * 0.3)


def test_random_scores_get_the_share_of_rows_in_events_and_half_the_affiliation() -> None:
    rng = np.random.default_rng(0)
    events = [(500, 549), (1400, 1449)]
    volumes = [vus_pr(rng.random(2000), events, max_buffer_rows=0) for _ in range(40)]
    assert np.mean(volumes) == pytest.approx(0.05, abs=0.01)
    precisions = [affiliation(rng.random(2000) < 0.01, events)[0] for _ in range(40)]
    assert np.mean(precisions) == pytest.approx(0.5, abs=0.03)


def test_each_event_owns_the_rows_nearer_to_it() -> None:
    # rows 0-4 and 5-9: row 4 is 3 from both and the first event's. It is alone so far away: 1 row of 5
    assert affiliation(rows(4), [(1, 1), (7, 8)]) == (pytest.approx(0.2), pytest.approx((0.2 + 0.0) / 2))
    # row 5 belongs to (7, 8), 2 rows away with nobody farther; row 7 of it is 2 away, as 5 and 9 are; row 8 is 3 away
    assert affiliation(rows(5), [(1, 1), (7, 8)]) == (pytest.approx(0.2), pytest.approx((0.0 + (0.4 + 0.2) / 2) / 2))


def test_ignored_rows_count_neither_way_and_an_event_is_never_ignored() -> None:
    ignored = rows(5, 8, 9)
    assert vus_pr(rows(8), EVENT, ignored, max_buffer_rows=0) == pytest.approx(2 / 8)
    assert math.isnan(affiliation(rows(8), EVENT, ignored)[0])
    assert affiliation(rows(4, 5, 9), EVENT, ignored) == (1.0, 1.0)


def test_events_at_the_ends_and_within_each_other_are_taken_as_one_stretch_of_rows() -> None:
    nested = range_measures(rows(0, 1), [(0, 3), (1, 2), (4, 4)])
    assert nested == range_measures(rows(0, 1), [(0, 4)])
    assert range_measures(rows(*range(10)), [(0, 9)]) == RangeMeasures(1.0, 1.0, 1.0)


def test_without_events_nothing_is_defined() -> None:
    assert all(math.isnan(value) for value in range_measures(rows(3), []))
    assert all(math.isnan(value) for value in range_measures([], []))


def test_events_and_masks_that_do_not_fit_are_refused() -> None:
    for events in ([(-1, 2)], [(5, 4)], [(9, 10)]):
        with pytest.raises(ScoreError, match="does not fit 10 rows"):
            vus_pr(rows(), events)
    with pytest.raises(ScoreError, match="one bool per row"):
        affiliation(rows(), EVENT, rows(count=9))


def test_a_run_is_measured_only_when_asked_and_low_confidence_is_ignored() -> None:
    steps = np.arange(200)
    labels = [Label(50, 59, "spike"), Label(120, 129, "spike", "low"), Label(170, 170, "benign_outlier")]
    assert all(math.isnan(value) for value in match([(50, 59)], labels, steps, "a_1").ranges)
    score = match([(50, 59), (118, 135)], labels, steps, "a_1", ranges=True)
    assert score.ranges.affiliation_precision == 1.0
    assert match([(50, 59), (170, 170)], labels, steps, "a_1", ranges=True).ranges.affiliation_precision < 1.0


def test_a_table_holds_the_mean_over_the_runs_that_define_a_measure() -> None:
    steps, label = np.arange(200), Label(50, 59, "spike")
    runs: list[RunScore] = [
        match([(50, 59)], [label], steps, "a_1", ranges=True),
        match([], [label], steps, "a_2", ranges=True),
        match([(7, 9)], [], steps, "b_1", ranges=True),
    ]
    found = {str(row["group"]): row for row in detection_rows({"mine": runs}, seed=0)}
    assert found["all"]["affiliation_precision"] == 1.0
    assert found["all"]["affiliation_recall"] == found["a"]["affiliation_recall"] == 0.5
    assert found["all"]["vus_pr"] == pytest.approx((runs[0].ranges.vus_pr + runs[1].ranges.vus_pr) / 2)
    assert math.isnan(float(str(found["b"]["vus_pr"])))
    assert math.isnan(float(str(found["family mean"]["vus_pr"])))


def test_the_buffer_fades_away_from_the_event_on_both_sides() -> None:
    # buffer 4: rows 1 and 2 away count sqrt(3/4) and sqrt(1/2)
    near, far = math.sqrt(0.75), math.sqrt(0.5)
    soft = 2 + 2 * near + 2 * far
    for alarmed in (3, 6):
        recall = near / ((2 + soft) / 2)
        found = 3 * vus_pr(rows(alarmed), EVENT, max_buffer_rows=4)
        found -= 2 * vus_pr(rows(alarmed), EVENT, max_buffer_rows=2)
        assert found == pytest.approx(recall * near + (1 - recall) * soft / 10)
