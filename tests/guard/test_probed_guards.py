"""Canary, paired probe, static cap, slow start and rollback: each component on a planted case, exactly."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.guard.analyzers.bad_batch import BadBatch
from lbw_sim.guard.analyzers.canary_rise import CanaryRise
from lbw_sim.guard.analyzers.lr_cap import LrCap
from lbw_sim.guard.analyzers.probe_rise import ProbeRise
from lbw_sim.guard.guard import Analyzer, Policy
from lbw_sim.guard.policies.damp_release import DampRelease
from lbw_sim.guard.policies.roll_back import RollBack
from lbw_sim.guard.policies.slow_start import SlowStart
from lbw_sim.values import Assessment, Posture, Regime, Request, Signals, Telemetry, nan


def regimes(rule: Analyzer, signals: list[Signals]) -> list[str]:
    state, names = rule.init(), []
    for one in signals:
        state, assessment = rule.step(state, one)
        names.append(Regime(assessment.regime).name)
    return names


def requests(rule: Policy, asked: list[Regime], scale: float = 1.0) -> list[Request]:
    """The policy's requests when every scale that it asks for is granted."""
    state, found = rule.init(), []
    for regime in asked:
        state, request = rule.step(state, Assessment(int(regime)), scale)
        scale = request.scale
        found.append(request)
    return found


def canary(losses: list[float]) -> list[Signals]:
    return [Signals(canary_loss=loss, nonfinite=0.0) for loss in losses]


def test_a_canary_alarm_needs_two_evaluations_in_a_row_and_comes_once() -> None:
    rule = CanaryRise(limit_share=0.02, confirm=2, jitter_share=1.0)
    single = canary([2.0, 2.05, 2.0, 2.05, 2.0])
    assert regimes(rule, single) == ["STABLE", "STRESSED", "STABLE", "STRESSED", "STABLE"]
    lasting = canary([2.0, 2.05, 2.05, 2.05, 2.05, 2.05])
    assert regimes(rule, lasting) == ["STABLE", "STRESSED", "DIVERGING", "STABLE", "STABLE", "STABLE"]
    assert regimes(rule, canary([2.0, 2.1])) == ["STABLE", "DIVERGING"], "one far above counts double"


def test_a_canary_that_swings_is_an_alarm_and_one_that_stalls_is_none() -> None:
    rule = CanaryRise(jitter_share=0.01, progress=0.25, jitter_evaluations=6, limit_share=1.0)
    swinging = [3.3 + (0.05 if place % 2 else -0.05) for place in range(12)]
    assert regimes(rule, canary(swinging)).index("OSCILLATION") == 5
    # a learning rate that is far too low: hardly any progress, and no swings
    assert set(regimes(rule, canary([3.3 - 0.0001 * place for place in range(100)]))) == {"STABLE"}
    # steep progress moves as much as swings do
    assert set(regimes(rule, canary([5.0 * 0.97**place for place in range(30)]))) == {"STABLE"}


def test_a_canary_that_falls_silent_forgets_its_reference() -> None:
    rule = CanaryRise(stale_steps=5, limit_share=0.02)
    silence = regimes(rule, canary([2.0, 2.05, *[nan] * 6, 9.0, 9.0]))
    assert silence[:6] == ["STABLE", *["STRESSED"] * 5]
    assert silence[6:8] == ["WARMUP", "WARMUP"]
    assert silence[8:] == ["STABLE", "STABLE"]


def gains(values: list[float]) -> list[Signals]:
    return [Signals(probe_gain=value, loss_level=2.0, nonfinite=0.0) for value in values]


def test_a_paired_alarm_needs_two_losses_in_a_row_and_then_rests() -> None:
    rule = ProbeRise(limit_share=0.02, confirm=2, rest_steps=3)
    assert regimes(rule, gains([-0.1, 0.05, -0.1, 0.05, -0.1])) == [
        "STABLE",
        "STRESSED",
        "STABLE",
        "STRESSED",
        "STABLE",
    ]
    assert regimes(rule, gains([0.05] * 7)) == [
        "STRESSED", "DIVERGING", "RECOVERY", "RECOVERY", "STRESSED", "DIVERGING", "RECOVERY",
    ]  # fmt: skip


def test_gains_that_cancel_are_an_alarm_and_small_good_ones_are_none() -> None:
    rule = ProbeRise(jitter_share=0.01, progress=0.5, jitter_gains=4, limit_share=1.0)
    assert regimes(rule, gains([-0.1, 0.08, -0.05, 0.09, -0.02])).index("OSCILLATION") == 3
    assert set(regimes(rule, gains([-0.005] * 50))) == {"STABLE"}, "a learning rate that is too low"
    assert set(regimes(rule, gains([-0.1, 0.0] * 10))) == {"STABLE"}, "half of the movement is progress"


def test_without_a_loss_level_a_gain_is_no_evidence() -> None:
    assert set(regimes(ProbeRise(), [Signals(probe_gain=5.0)] * 10)) == {"STABLE"}


def batch(loss: float, canary_loss: float = nan, nonfinite: float = 0.0) -> Signals:
    return Signals(loss=loss, loss_level=2.0, loss_sd=0.1, canary_loss=canary_loss, nonfinite=nonfinite)


def test_a_leap_is_the_batchs_fault_until_the_canary_says_otherwise() -> None:
    rule = BadBatch(inner=CanaryRise(confirm=2), leap_sd=8.0, patience_steps=4)
    calm = [batch(2.0, 2.0)]
    assert regimes(rule, calm + [batch(5.0)] * 2 + [batch(2.0)]) == ["STABLE", "SPIKE", "SPIKE", "STABLE"]
    assert regimes(rule, [*calm, batch(5.0), batch(5.0, 4.9)]) == ["STABLE", "SPIKE", "DIVERGING"]
    accepted = regimes(rule, calm + [batch(5.0)] * 8 + [batch(2.0), batch(5.0)])
    assert accepted == ["STABLE", *["SPIKE"] * 4, *["STABLE"] * 5, "SPIKE"]
    assert regimes(rule, [batch(math.nan, nonfinite=1.0)]) == ["NONFINITE"]


def test_the_cap_is_a_share_of_the_weights_and_a_missing_size_caps_nothing() -> None:
    guard = GuardSpec.load("static_cap").build()
    state, scales = guard.init(), []
    for step, (lr, size) in enumerate([(0.001, 0.2), (0.02, 0.2), (0.08, 0.2), (0.08, nan), (0.08, 0.0), (40.0, 0.2)]):
        state, decision = guard.step(state, Telemetry(step, lr=lr, nonfinite=0.0, extra=(size,)))
        scales.append(decision.scale)
    assert scales == pytest.approx([1.0, 1.0, 0.25, 1.0, 1.0, 0.01])
    assert LrCap(share=0.05).step(LrCap().init(), Signals(lr=0.02, initial_weight_rms=0.2))[
        1
    ].evidence == pytest.approx(2.0)


def flown_on(guard: Guard, state: Any, steps: range, extra: tuple[float, ...]) -> tuple[Any, list[int]]:
    """Under telemetry that says the same for ever, a learning rate far above the cap: state, and steps at full rate."""
    found = []
    for step in steps:
        state, decision = guard.step(state, Telemetry(step, loss=2.0, lr=10.0, nonfinite=0.0, extra=extra))
        found += [step] if decision.scale == 1.0 else []
    return state, found


def extrapolated(before: Any, after: Any, times: int) -> Any:
    """A state that goes on changing as it did, so many times."""
    if isinstance(after, tuple):
        return type(after)(*(extrapolated(one, other, times) for one, other in zip(before, after, strict=True)))
    return after + times * (after - before)


def flat(state: Any) -> list[float]:
    return [number for part in state for number in flat(part)] if isinstance(state, tuple) else [state]


@pytest.mark.parametrize(
    ("preset", "extra"), [("static_cap", (0.2,)), ("adaptive_cap", (-0.1, 0.01, -0.08, -0.05, 0.5))]
)
def test_a_cap_outlasts_the_hundred_thousand_steps_after_which_others_are_let_go(
    preset: str, extra: tuple[float, ...]
) -> None:
    spec = GuardSpec.load(preset)
    guard = spec.build()
    states, full = [guard.init()], []
    for start in (0, 1000, 2000):
        state, found = flown_on(guard, states[-1], range(start, start + 1000), extra)
        states.append(state)
        full += found
    assert full == []
    # nothing but counters of steps has moved, and the energy: so will they in the steps that are passed over
    assert flat(states[3]) == pytest.approx(flat(extrapolated(states[1], states[2], 1)))
    later = extrapolated(states[2], states[3], 96)
    assert flown_on(guard, later, range(99_000, 100_200), extra)[1] == []
    limited = spec.with_changes({"envelope.max_damped_steps": 100_000}).build()
    assert flown_on(limited, later, range(99_000, 100_200), extra)[1] == [100_000]
    # what it would do with a limit: one leap to the full rate
    limited = spec.with_changes({"envelope.max_damped_steps": 500}).build()
    assert flown_on(limited, limited.init(), range(1200), extra)[1] == [500, 1001]


DAMAGE, CALM = Regime.DIVERGING, Regime.STABLE


def test_rollback_cuts_holds_releases_to_what_is_trusted_and_forgives_in_the_end() -> None:
    rule = RollBack(cut=0.25, young_steps=0, hold_steps=3, release=1.25, trust=0.5, doubt_steps=12)
    found = requests(rule, [DAMAGE] + [CALM] * 20)
    assert Posture(found[0].posture) == Posture.ROLLBACK
    assert found[0].rollback_steps == 10
    assert [request.scale for request in found[:4]] == pytest.approx([0.25, 0.25, 0.25, 0.3125])
    assert max(request.scale for request in found[:13]) == 0.5, "half of the scale that failed"
    assert found[-1].scale == 1.0
    assert {Posture(request.posture) for request in found[1:3]} == {Posture.HOLD}


def test_what_failed_is_the_learning_rate_so_the_end_of_a_bump_ends_the_damping() -> None:
    rule = RollBack(cut=0.25, young_steps=0, hold_steps=3, release=2.0, trust=0.25, doubt_steps=500)
    state, scale, scales = rule.init(), 1.0, []
    for step in range(30):
        # ten times too high until step 10; a quarter of what failed is more than the schedule's own rate
        lr = 0.1 if step < 10 else 0.01
        regime = DAMAGE if step == 2 else CALM
        state, request = rule.step(state, Assessment(int(regime), lr=lr), scale)
        scale = request.scale
        scales.append(scale)
    assert scales[2:10] == [0.25] * 8
    assert scales[10:13] == [0.5, 1.0, 1.0]


def test_every_further_failure_is_held_against_the_run_for_twice_as_long() -> None:
    rule = RollBack(cut=0.25, young_steps=0, hold_steps=2, release=2.0, trust=0.25, doubt_steps=10)
    scales = [request.scale for request in requests(rule, [DAMAGE, *[CALM] * 19, DAMAGE, *[CALM] * 29])]
    assert [step for step in range(1, 50) if scales[step] > scales[step - 1]][:2] == [11, 12]
    assert [step for step in range(21, 50) if scales[step] > scales[step - 1]] == [41, 42]


def test_an_alarm_soon_after_the_last_goes_back_twice_as_far_up_to_the_deepest() -> None:
    rule = RollBack(rollback_steps=10, deepest_steps=35, young_steps=0, hold_steps=5)
    found = requests(rule, [DAMAGE, *[CALM] * 5, DAMAGE, *[CALM] * 5, DAMAGE, *[CALM] * 60, DAMAGE])
    assert [request.rollback_steps for request in found if request.rollback_steps] == [10, 20, 35, 10]


def test_a_young_run_goes_back_deepest_and_so_does_one_that_swings() -> None:
    rule = RollBack(rollback_steps=10, deepest_steps=60, young_steps=50, hold_steps=5)
    assert requests(rule, [*[CALM] * 49, DAMAGE])[-1].rollback_steps == 60
    assert requests(rule, [*[CALM] * 50, DAMAGE])[-1].rollback_steps == 10
    assert requests(rule, [*[CALM] * 90, Regime.OSCILLATION])[-1].rollback_steps == 60
    # back at the beginning, the run is young again
    again = requests(rule, [*[CALM] * 60, Regime.OSCILLATION, *[CALM] * 40, DAMAGE])
    assert again[-1].rollback_steps == 60


def test_a_stall_is_not_answered_and_bad_batches_are_skipped() -> None:
    found = requests(RollBack(), [Regime.PLATEAU] * 3 + [Regime.SPIKE, Regime.NONFINITE])
    assert [request.scale for request in found] == [1.0] * 5
    assert [Posture(request.posture).name for request in found[3:]] == ["SKIP", "SKIP"]


def test_a_slow_start_climbs_stands_still_in_danger_and_ends_at_the_first_alarm() -> None:
    rule = SlowStart(inner=DampRelease(cut=0.5, hold_steps=1), start_scale=0.1, growth=2.0)
    free = requests(rule, [Regime.WARMUP, CALM, Regime.STRESSED, CALM, CALM, CALM])
    assert [request.scale for request in free] == pytest.approx([0.1, 0.2, 0.4, 0.4, 0.8, 0.84])
    caught = requests(rule, [CALM, CALM, Regime.SPIKE, CALM, CALM])
    assert [request.scale for request in caught[:3]] == pytest.approx([0.1, 0.2, 0.1])
    assert caught[4].scale < 0.12, "from here on the inner policy releases at its own pace"
