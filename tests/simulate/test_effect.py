"""The simulated effect of a guard: exact on an exact plant, and as doubtful as the plant's calibration."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lbw_sim.errors import ChannelError, SimulateError
from lbw_sim.guard import GuardSpec
from lbw_sim.simulate import FittedRange, PlantSpec, drawn_noise, rollouts, simulated_effects
from lbw_sim.simulate.effect import warmup_cosine

RANGE = FittedRange(1e-4, 2e-2, 120, 1e6, 1e6, 0.0)
PLANT = dataclasses.replace(
    # its learning rates above 2 / curvature = 4e-3 diverge while they last
    PlantSpec.load("noisy_quadratic").with_parameters({"curvature": 500.0, "start": 0.01, "noise_sd": 0.02}),
    fitted=RANGE,
)


def test_a_guard_that_never_acts_has_no_effect_and_a_clip_saves_what_diverges_at_the_loss_of_its_start() -> None:
    for effect in simulated_effects(GuardSpec.load("never"), PLANT, seeds=3, engine="python"):
        assert (effect.effect, effect.effect_low, effect.effect_high, effect.energy) == (0.0, 0.0, 0.0, 0.0)
    low, best, high, higher = simulated_effects(GuardSpec.load("clip"), PLANT, seeds=3, engine="python")
    assert [line.kind for line in (low, best, high, higher)] == ["healthy", "healthy", "too high", "too high"]
    assert high.peak_lr == pytest.approx(3.0 * best.peak_lr) == pytest.approx(9.0 * low.peak_lr)
    # the plant's loss before it has learned anything: floor + curvature * start / 2
    assert (high.loss_without, high.lost_without, high.lost_with) == (4.5, 3, 0)
    assert high.left_range_without == 0.0
    assert higher.peak_lr > RANGE.highest_lr
    assert higher.left_range_without == 1.0
    # the same, flown by hand
    flown = rollouts(
        [PLANT],
        [GuardSpec.load("clip")],
        {"it": np.maximum(warmup_cosine(high.peak_lr, 120), 1e-4)},
        drawn_noise(3, 120),
        engine="python",
    )
    assert high.loss_with == flown.final_loss.mean()
    assert high.effect == pytest.approx(flown.final_loss.mean() - 4.5)
    assert high.energy == flown.energy.mean()


def test_fits_that_disagree_widen_the_interval_whatever_the_number_of_seeds() -> None:
    (_, _, one, _) = simulated_effects(GuardSpec.load("clip"), PLANT, seeds=4, engine="python")
    unsure = dataclasses.replace(PLANT, draws=({"start": 0.005}, {"start": 0.02}))
    (_, _, both, _) = simulated_effects(GuardSpec.load("clip"), unsure, seeds=4, engine="python")
    assert (one.fits, one.rollouts, both.fits, both.rollouts) == (1, 4, 2, 8)
    assert one.effect_low == pytest.approx(one.effect_high, abs=1e-9)
    # start losses of 3.25 and 7: one fit loses 1.25 nats without a clip, the other 5
    assert both.effect_low == pytest.approx(-5.0, abs=0.01)
    assert both.effect_high == pytest.approx(-1.25, abs=0.01)
    assert both.effect == pytest.approx(-3.125, abs=0.01)


def test_a_rollback_cannot_be_flown_and_its_rollout_is_left_out() -> None:
    rewinding = GuardSpec.from_toml(
        'lbw_spec = 1\n[sensor]\nname = "ewma"\n[analyzer]\nname = "threshold"\nlimit_sd = 2.5\n[policy]\n'
        'name = "rewind"\n[envelope]\nmax_rollbacks = 3\n'
    )
    plant = dataclasses.replace(PLANT.with_parameters({"noise_sd": 0.5}), fitted=RANGE._replace(longest_steps=250))
    found = simulated_effects(rewinding, plant, seeds=6, engine="python")[1]
    assert (found.rollouts, found.cut) == (6, 5)
    assert (found.effect, found.effect_low) == (0.0, None), "of the one that is left"
    jumpy = rewinding.with_changes({"analyzer.limit_sd": 2.0})
    found = simulated_effects(jumpy, plant, seeds=6, engine="python")[1]
    assert (found.cut, found.effect, found.loss_with, found.loss_without) == (6, None, None, None)


def test_a_plant_without_calibration_or_without_the_guards_channel_is_refused() -> None:
    with pytest.raises(SimulateError, match="never calibrated"):
        simulated_effects(GuardSpec.load("never"), PlantSpec.load("noisy_quadratic"))
    with pytest.raises(ChannelError, match="which plant 'noisy_quadratic' does not hold"):
        simulated_effects(GuardSpec.load("paired_rollback"), PLANT, seeds=2, engine="python")
