"""The cap that is learned from half steps: sensor, analyzer, policy and preset, each on a planted case, exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from lbw_sim.guard import GuardSpec
from lbw_sim.guard.analyzers.bad_batch import BadBatch
from lbw_sim.guard.analyzers.probe_rise import ProbeRise
from lbw_sim.guard.analyzers.trust_cap import TrustCap
from lbw_sim.guard.policies.roll_back import RollBack
from lbw_sim.guard.policies.under_cap import UnderCap
from lbw_sim.guard.sensors.paired_loss_and_trust import PairedLossAndTrust
from lbw_sim.values import Assessment, Posture, Regime, Request, Signals, Telemetry, nan

inf = math.inf


def caps(rule: TrustCap, given: Sequence[Signals]) -> list[float]:
    """The cap after each step."""
    state, found = rule.init(), []
    for signals in given:
        state, _ = rule.step(state, signals)
        found.append(state.cap)
    return found


def excesses(rule: TrustCap, rates: Sequence[float], ratio: float = 0.8) -> list[float]:
    """The evidence at each step of a schedule; the weights can take 4, a quarter of which is the first cap."""
    state, found = rule.init(), []
    for lr in rates:
        state, assessment = rule.step(state, Signals(lr=lr, full_step_lr=4.0, gain_ratio=ratio))
        found.append(assessment.evidence)
    return found


def steps(ratios: Sequence[float], lr: float = 100.0) -> list[Signals]:
    return [Signals(lr=lr, full_step_lr=4.0, gain_ratio=ratio) for ratio in ratios]


RULE = TrustCap(
    first_share=0.25,
    cut_ratio=0.75,
    alarm_ratio=0.5,
    grow_ratio=0.9,
    up=2.0,
    down=0.5,
    wait=3,
    harm_cut=0.25,
    still=0.9,
    warmup_steps=1,
)


def test_the_cap_grows_on_straight_steps_and_falls_on_crooked_ones_every_third_time() -> None:
    assert caps(RULE, steps([0.95, 0.95, 0.8, 0.9])) == [2.0, 4.0, 4.0, 4.0]
    assert caps(RULE, steps([0.5] * 7)) == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


def test_what_a_share_of_the_cap_brought_is_drawn_out_to_the_whole_and_a_small_share_says_nothing() -> None:
    assert caps(RULE, steps([0.97] * 3, lr=0.5)) == [2.0] * 3, "at a half .94, at a quarter .88"
    assert caps(RULE, steps([0.93] * 3, lr=0.5)) == [1.0] * 3
    assert caps(RULE, steps([1.0] * 3, lr=0.24)) == [1.0] * 3


def test_the_cap_grows_in_the_first_steps_that_try_it_and_never_later() -> None:
    rule = TrustCap(first_share=0.25, up=2.0, warmup_steps=1, learn_steps=3)
    untried, tried = steps([1.0] * 50, lr=0.2), steps([1.0] * 5)
    assert caps(rule, [*untried, *tried])[49:] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert caps(rule, [*tried, *steps([0.1, 0.9, 0.9])])[-3:] == pytest.approx([6.4, 8.0, 8.0]), "but takes back a cut"


def test_a_cap_in_the_way_is_reached_in_a_warm_up_and_after_a_collapse_at_once() -> None:
    rule = TrustCap(first_share=0.25, warmup_steps=4, collapse_cut=0.5)
    given = [Signals(lr=100.0, full_step_lr=4.0, gain_ratio=0.8, gradient_reach=r) for r in [0.5] * 5 + [0.0] * 8]
    state, found = rule.init(), []
    for signals in given:
        state, assessment = rule.step(state, signals)
        found.append(assessment.evidence)
    assert found == [400.0, 200.0, pytest.approx(400.0 / 3.0), *[100.0] * 8, *[200.0] * 2]
    assert excesses(rule, [0.2, 0.5, 0.9, 1.0, 2.0]) == [0.2, 0.5, 0.9, 1.0, 2.0], "none below the cap or after it"


def test_a_peak_above_the_cap_by_one_growth_or_less_is_left_alone_as_long_as_the_cap_never_fell() -> None:
    rule = TrustCap(first_share=0.25, cut_ratio=0.65, alarm_ratio=0.45, up=1.25, down=0.8, warmup_steps=3)
    assert excesses(rule, [0.5] * 3 + [1.0, 1.25, 1.26, 1.25]) == [*[0.5] * 3, 1.0, 1.0, 1.26, 1.26]
    assert excesses(rule, [1.25] * 5) == [3.75, 1.875, 1.25, 1.0, 1.0], "after the first steps"
    assert excesses(rule, [0.5] * 3 + [1.25] * 5, ratio=0.5) == [*[0.5] * 3, *[1.0] * 5], "not in the way, no cut"
    assert excesses(rule, [0.5] * 3 + [1.26], ratio=0.5)[-1] == pytest.approx(1.26 / 0.8), "in the way"
    fallen = [Signals(lr=1.25, full_step_lr=4.0, gain_ratio=ratio) for ratio in (0.8, 0.8, 0.8, 0.4, 0.7)]
    state, found = rule.init(), []
    for signals in fallen:
        state, assessment = rule.step(state, signals)
        found.append(assessment.evidence)
    assert found[3:] == pytest.approx([1.25 / 0.8] * 2), "one that fell is a cap to the end"
    dead = [Signals(lr=1.25, full_step_lr=4.0, gradient_reach=reach) for reach in [0.5] * 4 + [0.0] * 7]
    for signals in dead:
        state, assessment = rule.step(state, signals)
    assert (state.ceiling > 0.0, assessment.evidence > 1.0) == (True, True)


def test_a_cut_starts_from_what_was_in_force() -> None:
    assert caps(RULE, steps([0.6, 0.1, 0.8, 0.7], lr=0.5)) == [1.0, 0.25, 0.25, 0.25]
    assert caps(RULE, steps([0.1, 0.8, 0.8, 0.7], lr=0.5)) == [0.25, 0.25, 0.25, 0.125], "now it is in the way"


def test_while_the_schedule_comes_down_the_cap_only_takes_back_its_last_cut() -> None:
    down = [Signals(lr=80.0, full_step_lr=4.0, gain_ratio=ratio) for ratio in (0.95, 0.95, 0.1, 0.95, 0.95)]
    assert caps(RULE, [*steps([0.8]), *down]) == [1.0, 1.0, 1.0, 0.5, 1.0, 1.0]
    # between the two ratios, above their middle, it takes back a false alarm and no more
    assert caps(RULE, steps([0.1, 0.82, 0.83, 0.83])) == [0.5, 0.5, 1.0, 1.0]


def test_an_alarm_of_the_inner_analyzer_cuts_deeper() -> None:
    rule = TrustCap(
        inner=ProbeRise(limit_share=0.02, confirm=1), first_share=0.25, harm_cut=0.25, settle_steps=0, warmup_steps=1
    )
    harmed = Signals(lr=100.0, full_step_lr=4.0, gain_ratio=0.99, probe_gain=1.0, loss_level=2.0)
    state, assessment = rule.step(rule.init(), harmed)
    assert (assessment.regime, state.cap, assessment.evidence) == (Regime.DIVERGING, 0.25, 400.0)


def test_without_ratios_the_cap_opens_and_without_a_size_there_is_none_before_the_first_cut() -> None:
    silent = caps(TrustCap(first_share=0.25, stale_steps=10), steps([nan] * 200))
    assert silent[8:11] == pytest.approx([1.0, 1.05, 1.1025])
    assert silent[-1] > 100.0
    assert caps(RULE, [Signals(lr=8.0, gain_ratio=ratio) for ratio in (nan, 0.95, 0.1)]) == [0.0, 0.0, 4.0]
    assert caps(RULE, [Signals(lr=lr, full_step_lr=4.0, gain_ratio=0.5) for lr in (nan, 0.0, -1.0)]) == [1.0] * 3


def test_the_peak_stands_for_the_schedule_to_its_end_and_for_a_bump_as_long_as_it_lasted() -> None:
    cosine = [(place + 1) / 20 for place in range(20)]
    cosine += [0.5 + 0.5 * math.cos(math.pi * place / 280) for place in range(280)]
    assert set(excesses(RULE, [40.0 * lr for lr in cosine])[20:]) == {40.0}
    bump = excesses(RULE, [0.5] * 200 + [15.0] * 20 + [0.5] * 30)
    assert bump[199:220] == [0.5, *[15.0] * 20]
    assert bump[220:240] == [*[15.0] * 19, 0.5]
    assert set(bump[240:]) == {0.5}
    assert excesses(RULE, [10.0] * 3 + [9.0] * 3 + [20.0]) == [*[10.0] * 6, 20.0]


def test_at_first_no_batch_is_called_bad() -> None:
    rule = TrustCap(inner=BadBatch(leap_sd=8.0), settle_steps=2)
    state, found = rule.init(), []
    for _ in range(4):
        state, assessment = rule.step(state, Signals(loss=9.0, loss_level=2.0, loss_sd=0.1, canary_loss=2.0))
        found.append(Regime(assessment.regime).name)
    assert found == ["WARMUP", "WARMUP", "SPIKE", "SPIKE"]


def test_a_collapse_goes_back_halves_the_cap_for_good_and_is_not_told_twice() -> None:
    rule = TrustCap(
        inner=ProbeRise(limit_share=0.02, confirm=1),
        first_share=0.25,
        collapse_share=0.1,
        collapse_cut=0.5,
        settle_steps=5,
    )
    harmed = Signals(lr=100.0, full_step_lr=4.0, probe_gain=1.0, loss_level=2.0)
    state, found = rule.init(), []
    reaches = [0.5] * 3 + [0.0] * 7 + [0.5] + [0.0] * 5
    for step, reach in enumerate(reaches):
        state, assessment = rule.step(state, harmed._replace(gradient_reach=reach, probe_gain=float(step > 9)))
        found.append((Regime(assessment.regime).name, state.cap))
    # 0.7 to the seventh is the first below a tenth; what the pair says of the weights before is not heard
    assert [place for place, (name, _) in enumerate(found) if name == "OSCILLATION"] == [9]
    assert {cap for _, cap in found[:9]} == {1.0}
    assert {cap for _, cap in found[9:]} == {0.5}
    assert "DIVERGING" not in {name for name, _ in found[9:15]}
    for _ in range(20):
        state, _ = rule.step(state, Signals(lr=100.0, full_step_lr=4.0, gain_ratio=0.99, gradient_reach=0.5))
    assert state.cap == 0.5


def test_while_the_reach_is_whole_the_cap_grows_at_a_lower_ratio_and_without_one_nothing_changes() -> None:
    rule = TrustCap(first_share=0.25, whole_share=0.75, whole_ratio=0.85, whole_up=1.5, warmup_steps=1)

    def given(reach: float) -> list[Signals]:
        return [Signals(lr=100.0, full_step_lr=4.0, gain_ratio=0.9, gradient_reach=r) for r in (0.8, reach)]

    assert caps(rule, given(0.8)) == [1.5, 2.25]
    assert caps(rule, given(0.1)) == [1.5, 1.5], "0.3 of the way down: 0.59 of 0.8"
    assert caps(rule, steps([0.9, 0.9])) == [1.0, 1.0]


def requests(rule: UnderCap, asked: Sequence[tuple[Regime, float]]) -> list[Request]:
    state, scale, found = rule.init(), 1.0, []
    for regime, evidence in asked:
        state, request = rule.step(state, Assessment(int(regime), evidence, 1.0), scale)
        scale = request.scale
        found.append(request)
    return found


CALM, DAMAGE = Regime.STABLE, Regime.DIVERGING


def test_a_cap_that_opens_opens_at_once_and_the_inner_damping_lets_go_by_itself() -> None:
    rule = UnderCap(inner=RollBack(cut=0.25, hold_steps=2, release=2.0, trust=1.0, young_steps=0, rollback_steps=7))
    found = requests(rule, [(CALM, nan), (CALM, 10.0), (CALM, 0.5)])
    assert [(Posture(r.posture).name, r.scale) for r in found] == [("RELEASE", 1.0), ("DAMP", 0.1), ("RELEASE", 1.0)]
    # the cut is one of the scale in force, a tenth; it doubles under a cap that no longer counts
    found = requests(rule, [(CALM, 10.0), (DAMAGE, 10.0), (CALM, 1.0), (CALM, 1.0), (CALM, 1.0)])
    assert [r.scale for r in found] == pytest.approx([0.1, 0.025, 0.025, 0.05, 0.1])
    assert (Posture(found[1].posture).name, found[1].rollback_steps) == ("ROLLBACK", 7)
    assert [Posture(r.posture).name for r in requests(rule, [(Regime.SPIKE, 10.0)])] == ["SKIP"]


def ratios(measured: Sequence[tuple[float, float]], keep: float) -> list[float]:
    sensor = PairedLossAndTrust(keep=keep)
    state, found = sensor.init(), []
    for step, (whole, half) in enumerate(measured):
        state, signals = sensor.step(state, Telemetry(step, loss=2.0, extra=(nan, 0.1, whole, half, nan)))
        found.append(signals.gain_ratio)
    return found


def test_the_ratio_is_one_of_means_and_comes_with_a_measurement() -> None:
    assert ratios([(-0.5, -0.25), (nan, nan), (0.0, 0.0), (-0.25, -0.25)], keep=0.5) == pytest.approx(
        [1.0, nan, nan, 0.5 / 0.75], nan_ok=True
    )
    assert ratios([(1.0, 0.5), (-1.0, 0.5)], keep=0.0) == pytest.approx([-1.0, nan], nan_ok=True)
    # of a step that is worth a thousand others, three count
    assert ratios([(-1.0, -0.5), (1000.0, -500.0)], keep=0.5) == pytest.approx([1.0, (-0.5 + 3.0) / (-0.5 - 3.0)])
    assert not any(math.isinf(ratio) for ratio in ratios([(inf, -inf), (-inf, inf), (1e300, -1e300)], keep=0.9))


def scales(given: Sequence[Telemetry]) -> list[float]:
    guard = GuardSpec.load("adaptive_cap").build()
    state, found = guard.init(), []
    for telemetry in given:
        state, decision = guard.step(state, telemetry)
        found.append(decision.scale)
    return found


def test_the_preset_leaves_a_rate_that_the_weights_can_take_alone_and_can_hold_one_to_a_thousandth() -> None:
    low = [Telemetry(s, loss=2.0, lr=1e-3, nonfinite=0.0, extra=(-0.1, 0.01, -0.19, -0.1, 0.5)) for s in range(300)]
    assert set(scales(low)) == {1.0}
    high = [Telemetry(s, loss=2.0, lr=10.0, nonfinite=0.0, extra=(-0.1, 0.01, 0.1, 0.1, 0.5)) for s in range(300)]
    assert scales(high)[0] == 0.001
    assert set(scales(high)) == {0.001}


def test_the_preset_goes_back_only_when_the_weights_are_worse_by_a_fifth() -> None:
    guard = GuardSpec.load("adaptive_cap").build()
    calm = [Telemetry(s, loss=2.0, lr=1e-3, nonfinite=0.0, extra=(-0.1, 0.01, -0.19, -0.1, 0.5)) for s in range(40)]
    for gain, expected in ((0.3, set()), (0.5, {2}), (0.9, {0})):
        state, went_back = guard.init(), set()
        for telemetry in [
            *calm,
            *[
                Telemetry(40 + s, loss=2.0, lr=1e-3, extra=(gain if s % 2 == 0 else nan, 0.01, nan, nan, nan))
                for s in range(3)
            ],
        ]:
            state, decision = guard.step(state, telemetry)
            if decision.posture == Posture.ROLLBACK:
                went_back.add(telemetry.step - 40)
        assert went_back == expected
