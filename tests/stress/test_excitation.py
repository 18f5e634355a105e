"""Excitation programs: exactly what they say, in the trace with the probability of every choice, and replayable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lbw_sim.errors import StressError
from lbw_sim.replay import verify
from lbw_sim.stress import Excitation, RunPlan, train
from lbw_sim.stress.excitation import DITHER_PROBABILITIES
from lbw_sim.stress.schedule import scheduled_lr
from lbw_sim.trace import read_trace


def test_programs_multiply_the_schedule_as_they_say() -> None:
    def factors(kind: str) -> list[float]:
        made = Excitation(kind=kind, onset_step=2, length_steps=2, factor=4.0)
        return [made.factor_at(step, seed=0)[0] for step in range(6)]

    assert factors("bump") == [1.0, 1.0, 4.0, 4.0, 1.0, 1.0]
    assert factors("ramp") == [1.0, 1.0, 2.0, 4.0, 1.0, 1.0]
    assert factors("drop") == [1.0, 1.0, 0.25, 0.25, 0.25, 0.25]


def test_dither_draws_each_level_as_often_as_its_propensity_says() -> None:
    dither = Excitation(kind="dither", length_steps=1, factor=9.0)
    drawn = [dither.factor_at(step, seed=0) for step in range(2_000)]
    for level, probability in zip((1 / 9, 1 / 3, 1.0, 3.0, 9.0), DITHER_PROBABILITIES, strict=True):
        chosen = [propensity for factor, propensity in drawn if factor == pytest.approx(level)]
        assert len(chosen) / 2_000 == pytest.approx(probability, abs=0.03)
        assert set(chosen) == {probability}


def test_an_excited_run_carries_its_program_and_verifies(tmp_path: Path) -> None:
    program = Excitation(kind="dither", length_steps=5, factor=4.0)
    train([RunPlan(run_id="excited", steps=30, lr=1e-2, seed=3, excitation=program)], tmp_path)
    trace = read_trace(tmp_path, "excited")
    columns = trace.to_numpy()
    factors = [program.factor_at(step, 3) for step in range(30)]
    np.testing.assert_array_equal(columns["excitation_factor"], [factor for factor, _ in factors])
    np.testing.assert_array_equal(columns["excitation_propensity"], [propensity for _, propensity in factors])
    expected = [scheduled_lr(step, 30, 1e-2) * factors[step][0] for step in range(30)]
    np.testing.assert_allclose(columns["effective_lr"], expected, rtol=1e-12)
    assert len(set(columns["excitation_factor"])) > 1
    assert trace.meta.provenance["excitation_kind"] == "dither"
    assert verify(trace).rows == 30


def test_a_program_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(StressError, match="Did you mean 'bump'"):
        Excitation(kind="bum")
    with pytest.raises(StressError, match=r"factor=0\.5 above 1"):
        Excitation(kind="drop", factor=0.5)
