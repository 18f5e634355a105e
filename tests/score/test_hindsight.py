from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from lbw_sim.errors import ScoreError
from lbw_sim.score.hindsight import propose
from lbw_sim.trace.labels import Label

NOISE = 0.05


@dataclass
class Run:
    """A run that falls from 8 towards 3, with noise of one known size."""

    rows: int = 2000
    seed: int = 0
    every: int = 1

    @property
    def steps(self) -> NDArray[np.int64]:
        return np.arange(self.rows) * self.every

    def loss(self) -> NDArray[np.float64]:
        noise = NOISE * np.random.default_rng(self.seed).standard_normal(self.rows)
        return np.asarray(3.0 + 5.0 * np.exp(-np.arange(self.rows) / 150.0) + noise)


def shape(labels: tuple[Label, ...]) -> list[tuple[str, int, int, str]]:
    return [(label.kind, label.start_step, label.end_step, label.confidence) for label in labels]


@pytest.mark.parametrize("seed", range(12))
def test_a_clean_noisy_falling_run_gives_no_sure_proposal(seed: int) -> None:
    run = Run(seed=seed)
    assert [label for label in propose(run.steps, run.loss()) if label.confidence != "low"] == []


@pytest.mark.parametrize("onset", [150, 700, 1500])
def test_a_planted_spike_is_proposed_at_its_rows_alone(onset: int) -> None:
    run = Run()
    loss = run.loss()
    loss[onset : onset + 12] += 20 * NOISE
    (found,) = propose(run.steps, loss)
    assert shape((found,)) == [("spike", onset, onset + 11, "high")]
    assert found.source == "hindsight"
    assert found.peak_step == onset + int(np.argmax(loss[onset : onset + 12]))
    assert "12 rows" in found.note


def test_a_low_but_lasting_hump_is_a_spike_of_less_confidence() -> None:
    run = Run()
    loss = run.loss()
    loss[700:730] += 4.5 * NOISE
    (found,) = propose(run.steps, loss)
    assert (found.kind, found.confidence) == ("spike", "medium")
    assert abs(found.start_step - 700) <= 3
    assert abs(found.end_step - 729) <= 3


def test_a_single_row_is_an_outlier_when_every_step_is_logged_and_a_spike_when_few_are() -> None:
    for every, kind in ((1, "benign_outlier"), (5, "spike")):
        run = Run(every=every)
        loss = run.loss()
        loss[900] += 20 * NOISE
        assert shape(propose(run.steps, loss)) == [(kind, 900 * every, 900 * every, "high")]


def test_a_level_that_stays_high_to_the_end_is_a_divergence() -> None:
    run = Run()
    loss = run.loss()
    loss[1200:] += 30 * NOISE
    assert shape(propose(run.steps, loss)) == [("divergence", 1200, 1999, "high")]


def test_a_long_rise_that_comes_back_is_a_divergence_that_scorers_pass_over() -> None:
    run = Run()
    loss = run.loss()
    loss[1000:1500] += 5 * NOISE
    (found,) = propose(run.steps, loss)
    assert (found.kind, found.confidence) == ("divergence", "low")
    assert abs(found.start_step - 1000) <= 25
    assert abs(found.end_step - 1499) <= 25


def test_a_spike_inside_a_divergence_is_proposed_as_well() -> None:
    run = Run()
    loss = run.loss()
    loss[1200:] += 4 * NOISE
    loss[1600:1610] += 20 * NOISE
    kinds = {label.kind: label for label in propose(run.steps, loss)}
    assert set(kinds) == {"divergence", "spike"}
    assert (kinds["spike"].start_step, kinds["spike"].end_step) == (1600, 1609)


def test_an_overshoot_in_the_first_rows_is_seen_above_where_the_run_began() -> None:
    run = Run()
    loss = run.loss()
    loss[3:30] += 60 * NOISE
    (found,) = propose(run.steps, loss)
    assert (found.kind, found.confidence, found.start_step) == ("spike", "high", 3)
    assert found.end_step <= 30


def test_two_high_rows_at_the_start_are_an_overshoot_only_where_they_cover_several_steps() -> None:
    for every, sure in ((1, 0), (5, 1)):
        run = Run(every=every)
        loss = run.loss()
        loss[3:5] += 60 * NOISE
        assert sum(label.confidence != "low" for label in propose(run.steps, loss)) == sure


def test_spikes_that_follow_each_other_at_once_are_one_oscillation() -> None:
    run = Run()
    loss = run.loss()
    for start in range(800, 890, 10):
        loss[start : start + 4] += 20 * NOISE
    (found,) = propose(run.steps, loss)
    assert (found.kind, found.start_step, found.end_step) == ("oscillation", 800, 883)


def test_non_finite_rows_are_proposed_and_hide_nothing_else() -> None:
    run = Run()
    loss = run.loss()
    loss[700:712] += 20 * NOISE
    loss[300:303] = [np.nan, np.inf, -np.inf]
    assert shape(propose(run.steps, loss)) == [("nonfinite", 300, 302, "high"), ("spike", 700, 711, "high")]
    assert shape(propose(np.arange(5), np.full(5, np.nan))) == [("nonfinite", 0, 4, "high")]


def test_runs_too_short_or_without_noise_give_nothing() -> None:
    assert propose([], []) == ()
    assert propose(np.arange(29), np.arange(29.0)) == ()
    assert propose(np.arange(500), np.full(500, 2.5)) == ()
    assert propose(np.arange(500), np.zeros(500)) == ()


def test_rows_and_steps_that_do_not_match_are_refused() -> None:
    with pytest.raises(ScoreError, match="one of each per row"):
        propose(np.arange(3), np.zeros(4))
    with pytest.raises(ScoreError, match="steps fall"):
        propose([0, 2, 1], np.zeros(3))


def test_wandering_noise_is_noise() -> None:
    """Differences alone would take it for far less than it is."""
    rng = np.random.default_rng(0)
    noise = np.zeros(3000)
    for i in range(1, 3000):
        noise[i] = 0.8 * noise[i - 1] + NOISE * rng.standard_normal()
    assert [label for label in propose(np.arange(3000), 3.0 + noise) if label.confidence != "low"] == []


def test_what_heavy_tailed_noise_does_on_both_sides_is_no_event() -> None:
    noise = NOISE * np.random.default_rng(0).standard_t(3, size=4000)
    proposed = [label for label in propose(5 * np.arange(4000), 3.0 + noise) if label.confidence != "low"]
    assert np.count_nonzero(noise > 6 * NOISE) > 15
    assert len(proposed) <= 3


@pytest.mark.parametrize("rows", [30, 60, 100])
def test_a_short_flat_run_of_noise_gives_no_sure_proposal(rows: int) -> None:
    """Short runs have short medians, whose lowest lies far down."""
    for seed in range(60):
        loss = 3.0 + NOISE * np.random.default_rng(seed).standard_normal(rows)
        assert [label for label in propose(np.arange(rows), loss) if label.confidence != "low"] == [], seed
