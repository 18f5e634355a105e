"""The default analyzer, sign by sign, from hand-built signals; and the sensor that feeds it, from planted losses."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest

from lbw_sim.guard.analyzers.composite import Composite
from lbw_sim.guard.sensors.robust_loss import RobustLoss
from lbw_sim.values import Regime, Signals, Telemetry

CALM = Signals(loss_z=0.0, loss_rise=0.0, loss_trend=0.0, cadence_steps=1.0, oscillation=0.0, nonfinite=0.0)


def regimes(rule: Composite, seen: Iterable[Signals]) -> list[str]:
    state, names = rule.init(), []
    for signals in seen:
        state, assessment = rule.step(state, signals)
        names.append(Regime(assessment.regime).name)
    return names


def test_three_hot_steps_are_a_spike_and_one_row_of_a_sparse_log_is_three_steps() -> None:
    hot = CALM._replace(loss_z=5.0)
    rule = Composite(spike_sd=4.8, hold_rows=1, recovery_rows=0)
    assert regimes(rule, [hot, hot, hot, CALM]) == ["STABLE", "STABLE", "SPIKE", "STABLE"]
    assert regimes(rule, [hot._replace(cadence_steps=5.0), CALM]) == ["SPIKE", "STABLE"]
    assert regimes(rule, [CALM._replace(loss_z=15.0), CALM]) == ["SPIKE", "STABLE"], "far above, at once"


def test_a_rise_is_divergence_while_it_climbs_stress_when_it_does_not_and_a_plateau_when_a_spike_left_it() -> None:
    rule = Composite(rise_sd=2.0, plateau_rows=5, spike_steps=1.0)
    up = CALM._replace(loss_rise=3.0, loss_trend=0.1)
    flat = CALM._replace(loss_rise=3.0, loss_trend=-0.1)
    assert regimes(rule, [up, flat]) == ["DIVERGING", "STRESSED"]
    names = regimes(rule, [CALM._replace(loss_z=9.0), *[flat] * 9])
    assert names[0] == "SPIKE"
    assert names[-1] == "PLATEAU"


def test_what_lasts_is_tolerated_and_more_of_it_is_a_new_alarm() -> None:
    rule = Composite(rise_sd=2.0, tolerate_rows=10, hold_rows=2, recovery_rows=0)
    high, higher = CALM._replace(loss_rise=3.0), CALM._replace(loss_rise=6.0)
    names = regimes(rule, [*[high] * 30, *[higher] * 3, *[CALM] * 5, high])
    assert names[:9] == ["STRESSED"] * 9
    assert set(names[9:30]) == {"STABLE"}
    assert names[30] == "STRESSED"
    assert names[-1] == "STRESSED", "what was tolerated is forgotten once it is gone"


def test_swings_that_last_are_tolerated_too() -> None:
    rule = Composite(oscillation_share=0.2, tolerate_rows=10, hold_rows=2, recovery_rows=0)
    swinging, worse = CALM._replace(oscillation=0.4), CALM._replace(oscillation=0.7)
    names = regimes(rule, [*[swinging] * 60, worse])
    assert names[:9] == ["OSCILLATION"] * 9
    assert set(names[9:60]) == {"STABLE"}
    assert names[60] == "OSCILLATION"


def test_a_growing_gradient_is_divergence_and_a_missing_one_is_nothing() -> None:
    rule = Composite(grad_limit=2.0)
    assert regimes(rule, [CALM._replace(grad_ratio=2.5)]) == ["DIVERGING"]
    assert regimes(rule, [CALM._replace(grad_ratio=math.nan)]) == ["STABLE"]


def test_at_the_start_only_a_rebound_counts() -> None:
    rule = Composite(rebound_share=0.25, hold_rows=1, recovery_rows=0)
    start = CALM._replace(loss_rebound=0.0, loss_z=50.0, loss_rise=50.0)
    assert regimes(rule, [start, start._replace(loss_rebound=0.3)]) == ["WARMUP", "DIVERGING"]


def test_an_alarm_is_held_and_then_recovers() -> None:
    rule = Composite(hold_rows=3, recovery_rows=4)
    names = regimes(rule, [CALM._replace(oscillation=0.5), *[CALM] * 7])
    assert names == ["OSCILLATION"] * 3 + ["RECOVERY"] * 4 + ["STABLE"]


def test_nonfinite_is_named_on_its_step_only() -> None:
    broken = CALM._replace(nonfinite=1.0, loss_z=math.nan, loss_rise=math.nan)
    names = regimes(Composite(hold_rows=3, recovery_rows=1), [broken, broken, *[CALM] * 4])
    assert names == ["NONFINITE", "NONFINITE", "STRESSED", "STRESSED", "RECOVERY", "STABLE"]


def sensed(losses: Iterable[float], every: int = 1, **parameters: float) -> list[Signals]:
    sensor = RobustLoss(**parameters)  # type: ignore[arg-type]
    state, found = sensor.init(), []
    for row, loss in enumerate(losses):
        state, signals = sensor.step(state, Telemetry(row * every, loss, nonfinite=0.0))
        found.append(signals)
    return found


def noisy(rows: int, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [3.0 + rng.gauss(0.0, 0.1) for _ in range(rows)]


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_measured_to_a_quarter_and_a_trend_does_not_inflate_it(seed: int) -> None:
    falling = [loss - 0.02 * row for row, loss in enumerate(noisy(400, seed))]
    assert sensed(falling)[-1].loss_sd == pytest.approx(0.1, rel=0.25)


def test_a_lone_outlier_is_hidden_in_a_dense_log_and_shown_in_a_sparse_one() -> None:
    losses = noisy(200, 0)
    losses[150] += 2.0
    assert sensed(losses)[150].loss_z < 3.0
    assert sensed(losses, every=5)[150].loss_z > 10.0
    assert max(s.loss_rise for s in sensed(losses)[150:]) < 2.0


def test_the_start_up_rebound_is_the_share_of_the_fall_given_back() -> None:
    found = sensed([11.0, 10.0, 9.0, 8.0, 7.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    assert [s.loss_rebound for s in found] == [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.75]
    assert [s.loss_rebound for s in sensed([2.0, 2.5, 3.0, 3.5, 4.0])][-1] == 1.0, "never fell"
    assert math.isnan(sensed(noisy(20, 0))[-1].loss_rebound)


@pytest.mark.parametrize("row", [4, 8, 12])
@pytest.mark.parametrize("size", [1.0, -1.0])
def test_one_lone_loss_at_the_start_is_no_rebound(row: int, size: float) -> None:
    losses = [3.0] * 20
    losses[row] += size
    assert max(s.loss_rebound for s in sensed(losses)[:15]) == 0.0


def startup_alarms(runs: Iterable[list[float]], every: int = 1) -> list[int | None]:
    """The row of each run's first start-up alarm."""
    limit = Composite().rebound_share
    found = [[s.loss_rebound > limit for s in sensed(losses, every)] for losses in runs]
    return [hits.index(True) if True in hits else None for hits in found]


def healthy(seed: int, sd: float, fall: float, *, heavy: bool, every: int) -> list[float]:
    """15 losses at 2, with a slow fall; heavy: Student's t with 3 degrees of freedom."""
    rng = random.Random(seed)
    losses = []
    for row in range(15):
        noise = rng.gauss(0.0, 1.0)
        if heavy:
            noise /= math.sqrt(sum(rng.gauss(0.0, 1.0) ** 2 for _ in range(3)))
        losses.append(2.0 + fall * math.exp(-row * every / 50.0) + sd * noise)
    return losses


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("fall", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("sd", [0.05, 0.2, 0.5])
def test_noise_of_any_size_is_no_rebound(sd: float, fall: float, heavy: bool, every: int) -> None:
    runs = [healthy(seed, sd, fall, heavy=heavy, every=every) for seed in range(400)]
    raised = sum(row is not None for row in startup_alarms(runs, every))
    # at most 4.7 in 100 are expected: 19 of 400, with a standard deviation of 4
    assert raised <= 32


@pytest.mark.parametrize("seed", range(5))
def test_a_blow_up_in_the_first_rows_is_seen_within_four(seed: int) -> None:
    rng = random.Random(seed)
    runs = [
        [11.1, 9.2, 12.0, 14.2, 14.5, 14.8, 15.0, *[14.5] * 8],
        [11.0, 10.0, 9.2, 8.5, 8.0, 7.6, 7.3, 9.0, 10.5, 11.5, *[12.0] * 5],
        # behind a row that stands out alone, which would hide it if it counted as noise
        [11.1, 9.7, 10.1, 10.2, 10.9, 25.0, 12.8, 11.5, 10.8, *[10.0] * 6],
    ]
    noised = [[loss + rng.gauss(0.0, 0.1) for loss in losses] for losses in runs]
    assert startup_alarms(noised) == [6, 9, 6]


def test_a_missing_loss_gives_no_signal_and_leaves_no_trace() -> None:
    losses = noisy(100, 1)
    with_hole = sensed([*losses[:60], math.nan, *losses[60:]], every=1)
    assert math.isnan(with_hole[60].loss_z)
    assert math.isnan(with_hole[60].loss_rise)
    assert with_hole[-1].loss_level == sensed(losses)[-1].loss_level
