"""Calibration finds planted parameters, predicts what it has not seen, and says what it was fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from lbw_sim.errors import SimulateError
from lbw_sim.simulate import PlantSpec, Record, calibrate, playback, recorded_noise
from lbw_sim.simulate.calibrate import fitted_range
from lbw_sim.simulate.plants.lasting_damage import LastingDamage
from lbw_sim.simulate.plants.noisy_quadratic import NoisyQuadratic

NOISE = np.random.default_rng(3).standard_normal(300)
"""One data order: shared by all runs."""


def recorded(plant: object, run_id: str, lr: np.ndarray, noise_sd: float = 0.03) -> Record:
    bare = Record(run_id, lr, np.zeros(len(lr)), np.zeros(len(lr)))
    return bare._replace(loss=playback([plant], bare)[0] + noise_sd * NOISE[: len(lr)])


def excited(peak: float, bump: float) -> np.ndarray:
    lr = peak * (0.1 + 0.45 * (1.0 + np.cos(np.pi * np.arange(300) / 300)))
    lr[150:170] *= bump
    return lr


def test_planted_damage_is_found_from_excited_runs_and_predicts_runs_that_were_not_seen() -> None:
    truth = LastingDamage(floor=2.1, critical_lr=0.033, hazard=0.04, dead_loss=3.1)
    rates = [(3e-3, 1.0), (1e-2, 8.0), (2e-2, 1.0), (6e-2, 1.0), (5e-3, 20.0)]
    runs = [recorded(truth, f"r{i}", excited(peak, bump)) for i, (peak, bump) in enumerate(rates)]
    unseen = recorded(truth, "unseen", excited(8e-3, 12.0))
    spec = calibrate(runs, PlantSpec.load("lasting_damage"), held_out=[unseen], draws=3, seed=1)
    assert spec.plant["critical_lr"] == pytest.approx(0.033, rel=0.03)
    assert spec.plant["hazard"] == pytest.approx(0.04, rel=0.2)
    assert spec.plant["noise_sd"] == pytest.approx(0.03, rel=0.2)
    (error,) = spec.held_out
    assert error.run_id == "unseen"
    # below the noise of a bin of three steps
    assert error.rmse < 0.03
    assert len(spec.draws) == 3
    assert 0.0 < spec.uncertainty["critical_lr"] < 0.01
    assert spec.fitted is not None
    assert spec.fitted.highest_lr == pytest.approx(max(run.effective_lr.max() for run in runs))
    assert spec.fitted.sharpest_rise == pytest.approx(20.0, rel=0.01)
    assert PlantSpec.from_toml(spec.to_toml()) == spec
    with pytest.raises(SimulateError, match="were edited after the fit"):
        PlantSpec.from_toml(spec.to_toml().replace("hazard = 0.0", "hazard = 0.1", 1))


def test_groups_of_runs_are_left_out_in_turn_and_what_no_run_identifies_stays_as_it_was() -> None:
    truth = NoisyQuadratic(curvature=60.0, gradient_sd=1.0, start=0.1)
    runs = [recorded(truth, f"r{i}", np.full(200, lr)) for i, lr in enumerate((1e-3, 3e-3, 1e-2))]
    start = PlantSpec.load("noisy_quadratic").with_parameters({"gradient_sd": 1.0})
    spec = calibrate(runs, start, fixed=["gradient_sd"], draws=0)
    assert [error.run_id for error in spec.held_out] == ["r0", "r1", "r2"]
    assert spec.plant["curvature"] == pytest.approx(60.0, rel=0.05)
    assert spec.plant["gradient_sd"] == 1.0
    # a run unlike the others is a surprise to a fit that never saw it
    pair = [runs[1], runs[1]._replace(run_id="odd", loss=runs[1].loss + 1.0)]
    both = calibrate(pair, start, fixed=["gradient_sd"], draws=0)
    assert [error.rmse > 0.9 for error in both.held_out] == [True, True]
    # at a rate of 0 nothing moves: only the level at the start can be told
    still = [run._replace(effective_lr=np.zeros(200)) for run in runs]
    kept = calibrate(still, start, draws=0)
    assert kept.plant["gradient_sd"] == 1.0


def test_noise_that_all_runs_share_is_in_the_uncertainty_though_resampling_runs_does_not_show_it() -> None:
    """Eight runs with one data order know the floor as well as one run does, not eight times as well."""
    truth = NoisyQuadratic(floor=2.0, curvature=60.0, gradient_sd=0.0, start=0.1)
    runs = [recorded(truth, f"r{i}", np.full(300, 5e-3)) for i in range(8)]
    known = {"curvature": 60.0, "gradient_sd": 0.0, "start": 0.1}
    spec = calibrate(
        runs, PlantSpec.load("noisy_quadratic").with_parameters(known), fixed=list(known), held_out=[], draws=40
    )
    of_the_mean = 0.03 / np.sqrt(300)
    assert 0.5 * of_the_mean < spec.uncertainty["floor"] < 2.0 * of_the_mean


def test_batch_noise_belongs_to_the_data_order_and_outlives_another_learning_rate() -> None:
    truth = NoisyQuadratic(curvature=60.0, gradient_sd=0.5, start=0.1, noise_sd=0.03)
    runs = [recorded(truth, "a", np.full(300, 1e-3)), recorded(truth, "b", np.full(300, 8e-3))]
    found = recorded_noise(PlantSpec.of(truth), runs, 320)
    assert np.corrcoef(found[0, 12:288], found[1, 12:288])[0, 1] > 0.95
    assert np.corrcoef(found[0, 12:288], NOISE[12:288])[0, 1] > 0.95
    assert (found[:, 300:] == 0.0).all()


def test_a_loss_that_falls_fast_at_the_start_is_no_hard_batch() -> None:
    falling = 2.0 + 3.5 * np.exp(-np.arange(300) / 7.0)
    falling[[40, 298]] += 0.3
    run = Record("r", np.full(300, 1e-3), np.zeros(300), falling)
    found = recorded_noise(PlantSpec.of(LastingDamage(noise_sd=0.1)), [run], 300)[0]
    assert found[[40, 298]] == pytest.approx([3.0, 3.0], abs=0.3)
    found[[40, 298]] = 0.0
    assert np.abs(found).max() < 0.2


def test_the_range_is_that_of_steps_really_taken() -> None:
    lr = np.array([1e-3, 2e-3, 0.0, 9.0, 1e-3])
    run = Record("r", lr, np.array([0.0, 0.0, 1.0, 1.0, 0.0]), np.zeros(5), np.array([1.0, 1.0, 1.0, 1.0, 0.5]))
    assert fitted_range([run]) == pytest.approx((1e-3, 2e-3, 5, 2.0, 2.0, 0.5))


def test_runs_without_a_loss_and_unknown_parameters_are_refused() -> None:
    nothing = Record("r", np.full(5, 1e-3), np.zeros(5), np.full(5, np.nan))
    with pytest.raises(SimulateError, match="none of 1 run has two finite losses"):
        calibrate([nothing], PlantSpec.load("tissue_law"))
    with pytest.raises(SimulateError, match="Did you mean 'floor'"):
        calibrate([recorded(NoisyQuadratic(), "r", np.full(50, 1e-3))], PlantSpec.load("tissue_law"), fixed=["flor"])
