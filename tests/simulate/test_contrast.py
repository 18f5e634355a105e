"""The contrast of runs finds the effect of a sudden change that no fitted run holds, and says how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from lbw_sim.errors import SimulateError
from lbw_sim.simulate.calibrate import Record
from lbw_sim.simulate.contrast import LAWS, Fitted, fit_contrast, predicted_effect, weights_of

STEPS, EVERY, PEAK, NOISE = 12_000, 40, 3e-4, 5e-4


def loss(lr: np.ndarray, exponent: float = 0.6) -> np.ndarray:
    """A run of which all is known: progress with u^exponent, a gain of 0.1 (1 - u)."""
    rate = lr / PEAK
    # a bend that no single power law has
    clock = 1000.0 + np.cumsum(rate**exponent)
    return 2.5 + 20.0 * clock**-0.5 + 0.3 * np.exp(-clock / 1500.0) - 0.1 * (1.0 - rate)


def record(name: str, lr: np.ndarray, seed: int) -> Record:
    shown = np.full(len(lr), np.nan)
    noise = NOISE * np.random.default_rng(seed).standard_normal(len(lr))
    shown[::EVERY] = (loss(lr) + noise)[::EVERY]
    return Record(name, lr, np.zeros(len(lr)), shown)


def cosine(steps: int) -> np.ndarray:
    return PEAK * (0.1 + 0.45 * (1.0 + np.cos(np.pi * np.arange(steps) / steps)))


@pytest.fixture(scope="module")
def fits() -> list[Fitted]:
    flat = np.full(STEPS, PEAK)
    runs = [flat, cosine(STEPS), cosine(STEPS // 3)]
    records = [record(str(place), lr, place) for place, lr in enumerate(runs)]
    return fit_contrast(records, start_steps=1000.0, first_step=200)


@pytest.mark.parametrize("factor", [0.6, 0.3])
def test_effect_of_a_cut_that_no_fitted_run_holds(fits: list[Fitted], factor: float) -> None:
    flat = np.full(4_200, PEAK)
    cut = flat.copy()
    cut[3000:] *= factor
    window = slice(3900, 4100)
    true = float((loss(cut) - loss(flat))[window].mean())
    found = predicted_effect(fits, cut, flat, PEAK, (window.start, window.stop))
    assert found.low < true < found.high
    assert found.by_law["clock_power"] == pytest.approx(true, rel=0.1)
    assert found.effect == pytest.approx(true, rel=0.15)
    # and it says something: far from no effect
    assert found.high < 0.3 * true


def test_the_law_of_the_runs_is_found_and_weighs_more_than_one_that_cannot_bend(fits: list[Fitted]) -> None:
    by_law = {fit.law: fit for fit in fits}
    assert by_law["clock_power"].values["clock_exponent"] == pytest.approx(0.6, abs=0.15)
    assert by_law["clock_power"].rmse == pytest.approx(NOISE, rel=0.15)
    weights = dict(zip(LAWS, weights_of(fits), strict=True))
    assert sum(weights.values()) == pytest.approx(1.0)
    assert weights["clock_power"] > weights["gain_drift"]


def test_no_change_has_no_effect_and_a_noisier_measurement_a_wider_interval(fits: list[Fitted]) -> None:
    flat = np.full(3_100, PEAK)
    assert predicted_effect(fits, flat, flat, PEAK, (3000, 3100)).effect == 0.0
    narrow, wide = (predicted_effect(fits, 0.5 * flat, flat, PEAK, (3000, 3100), measured_sd=sd) for sd in (0.0, 0.01))
    assert wide.high - wide.low > narrow.high - narrow.low > 0.0


def test_parameters_from_elsewhere_stay_and_a_law_by_itself_has_all_weight() -> None:
    records = [record("flat", np.full(STEPS, PEAK), 0), record("cosine", cosine(STEPS), 1)]
    fits = fit_contrast(
        records, start_steps=1000.0, laws=["clock_power"], hold_out=False,
        fixed={"clock_power": {"clock_exponent": 0.37, "gain_exponent": 1.1}},
    )  # fmt: skip
    assert fits[0].values == {"clock_exponent": 0.37, "gain_exponent": 1.1}
    assert np.isnan(fits[0].held_out)
    assert weights_of(fits).tolist() == [1.0]


def test_runs_of_one_schedule_are_refused() -> None:
    flat = [record(str(seed), np.full(STEPS, PEAK), seed) for seed in (0, 1)]
    with pytest.raises(SimulateError, match="one anneals"):
        fit_contrast(flat)
    with pytest.raises(SimulateError, match="0 usable runs"):
        fit_contrast([])
