import math

import numpy as np
import pytest

from lbw_sim import GuardSpec, Regime, Telemetry
from lbw_sim.errors import ScoreError
from lbw_sim.score.control import ControlSummary, control_summary


def planted(**changes):
    columns = {
        "scale": np.array([1.0, 0.5, 0.25, 1.0]),
        "lr": np.array([1.0, 2.0, 4.0, 1.0]),
        "regime": np.array([Regime.WARMUP, Regime.SPIKE, Regime.SPIKE, Regime.RECOVERY], dtype=np.int8),
        "skipped": np.array([False, True, False, False]),
        "rolled_back_to": np.array([-1, -1, 0, -1]),
    }
    return columns | changes


def test_every_measure_of_a_planted_run_is_exact():
    assert control_summary(planted()) == ControlSummary(
        steps=4,
        control_energy=0.25 + 0.5625,
        control_active_steps=2,
        regime_switches=2,
        stress_mode_steps=2,
        mean_scale=2.75 / 4,
        lr_mass_removed=(0.5 * 2 + 0.75 * 4) / 8,
        skipped_steps=1,
        rollbacks=1,
    )


def test_lr_mass_is_taken_over_steps_whose_lr_was_recorded_and_is_nan_without_any():
    assert control_summary(planted(lr=np.array([np.nan, 2.0, np.nan, 2.0]))).lr_mass_removed == 0.25
    assert math.isnan(control_summary(planted(lr=np.full(4, np.nan))).lr_mass_removed)
    assert math.isnan(control_summary(planted(lr=np.zeros(4))).lr_mass_removed)


def test_an_empty_run_has_no_mean_scale():
    summary = control_summary({name: column[:0] for name, column in planted().items()})
    assert (summary.steps, summary.control_energy, summary.regime_switches) == (0, 0.0, 0)
    assert math.isnan(summary.mean_scale)


def test_a_missing_column_is_named():
    columns = planted()
    del columns["lr"]
    with pytest.raises(ScoreError, match="needs column lr; there is regime"):
        control_summary(columns)


def test_control_energy_is_what_the_guard_itself_counted():
    guard = GuardSpec.load("default").build()
    state, decisions = guard.init(), []
    for step in range(600):
        loss = 3.0 + 0.02 * math.sin(7.0 * step) + (2.0 if 300 <= step < 330 else 0.0)
        state, decision = guard.step(state, Telemetry(step=step, loss=loss, lr=1e-3, nonfinite=0.0))
        decisions.append(decision)
    count = len(decisions)
    summary = control_summary(
        {
            "scale": np.array([d.scale for d in decisions]),
            "lr": np.full(count, 1e-3),
            "regime": np.array([d.regime for d in decisions]),
            "skipped": np.zeros(count, dtype=bool),
            "rolled_back_to": np.full(count, -1),
        }
    )
    assert summary.control_energy > 1.0
    assert summary.control_energy == pytest.approx(decisions[-1].energy, rel=1e-12)
