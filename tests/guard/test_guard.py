"""The loop as a whole: planted events, null components, state through JSON, and what is refused."""

from __future__ import annotations

import json
import math
import random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbw_sim.errors import ChannelError, ComponentError
from lbw_sim.guard import Guard, GuardSpec, preset_names, state_from_data, state_to_data
from lbw_sim.guard.analyzers.composite import Composite
from lbw_sim.guard.analyzers.debounce import Debounce
from lbw_sim.guard.analyzers.never import Never
from lbw_sim.guard.analyzers.threshold import Threshold
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.policies.damp_release import DampRelease
from lbw_sim.guard.policies.hold import Hold
from lbw_sim.guard.sensors.raw import Raw
from lbw_sim.guard.sensors.robust_loss import RobustLoss
from lbw_sim.params import sensor
from lbw_sim.values import UNSAFE_REGIMES, Decision, Posture, Regime, Signals, Telemetry


def falling_losses(steps: int, seed: int) -> list[float]:
    """A healthy run: power-law fall with 0.03 nats of noise."""
    rng = random.Random(seed)
    return [2.0 + 3.0 / math.sqrt(1.0 + step / 20.0) + rng.gauss(0.0, 0.03) for step in range(steps)]


def fly(guard: Guard, losses: list[float]) -> list[Decision]:
    """The decisions of a guard on a list of losses."""
    state, decisions = guard.init(), []
    for step, loss in enumerate(losses):
        broken = 0.0 if math.isfinite(loss) else 1.0
        extra = (loss,) * len(guard.extra_channels)
        state, decision = guard.step(state, Telemetry(step, loss, 1e-3, nonfinite=broken, extra=extra))
        decisions.append(decision)
    return decisions


def alarm_starts(decisions: list[Decision]) -> list[int]:
    unsafe = [d.regime in UNSAFE_REGIMES for d in decisions]
    return [i for i, now in enumerate(unsafe) if now and not (i and unsafe[i - 1])]


@pytest.mark.parametrize("seed", range(4))
def test_default_guard_is_silent_and_harmless_on_a_healthy_run(seed: int) -> None:
    decisions = fly(GuardSpec.load("default").build(), falling_losses(3000, seed))
    assert alarm_starts(decisions) == []
    assert decisions[-1].energy == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_default_guard_sees_a_spike_within_three_steps_damps_and_lets_go(seed: int) -> None:
    losses = falling_losses(1200, seed)
    for step in range(600, 640):
        losses[step] += 0.6
    decisions = fly(GuardSpec.load("default").build(), losses)
    (alarm,) = alarm_starts(decisions)
    assert 600 <= alarm <= 603
    assert Regime.SPIKE in {d.regime for d in decisions[alarm : alarm + 5]}
    assert min(d.scale for d in decisions) <= 0.5
    assert decisions[-1].scale == 1.0
    assert decisions[-1].regime == Regime.STABLE


@pytest.mark.parametrize("seed", range(4))
def test_default_guard_forgives_one_outlying_batch(seed: int) -> None:
    losses = falling_losses(1200, seed)
    losses[700] += 1.0
    assert alarm_starts(fly(GuardSpec.load("default").build(), losses)) == []


@pytest.mark.parametrize("seed", range(4))
def test_default_guard_sees_a_slow_divergence(seed: int) -> None:
    losses = [loss + max(0, step - 500) * 0.01 for step, loss in enumerate(falling_losses(700, seed))]
    alarms = alarm_starts(fly(GuardSpec.load("default").build(), losses))
    assert alarms
    assert 500 <= alarms[0] <= 600


@pytest.mark.parametrize("seed", range(2))
def test_default_guard_accepts_a_level_shift_in_the_end(seed: int) -> None:
    losses = [loss + (2.0 if step > 500 else 0.0) for step, loss in enumerate(falling_losses(2500, seed))]
    decisions = fly(GuardSpec.load("default").build(), losses)
    assert decisions[-1].regime == Regime.STABLE
    assert decisions[-1].scale == 1.0


@pytest.mark.parametrize("change", ["level", "gradient"])
def test_default_guard_does_not_stay_in_alarm_over_what_lasts(change: str) -> None:
    rng, guard = random.Random(0), GuardSpec.load("default").build()
    state, unsafe = guard.init(), []
    for step in range(4000):
        after = step > 500
        loss = 2.0 + rng.gauss(0.0, 0.03)
        if after and change == "level":
            loss += 2.0
        grad_norm = 8.0 if after and change == "gradient" else 1.0
        state, decision = guard.step(state, Telemetry(step, loss, 1e-3, grad_norm, nonfinite=0.0))
        unsafe.append(decision.regime in UNSAFE_REGIMES)
    assert any(unsafe[500:600])
    assert sum(unsafe[2000:]) < 0.05 * 2000


def test_a_loss_that_leaps_for_ever_stays_alarming_but_is_let_go_again_and_again() -> None:
    losses = [
        loss + (0.5 * (-1) ** (step // 6) if step > 500 else 0.0) for step, loss in enumerate(falling_losses(4000, 0))
    ]
    guard = GuardSpec.load("default").build()
    damped = longest = 0
    for decision in fly(guard, losses):
        damped = damped + 1 if decision.scale < 1.0 else 0
        longest = max(longest, damped)
    assert 0 < longest <= guard.envelope.release_deadline_steps


def test_default_guard_skips_nonfinite_steps_until_the_budget_says_no() -> None:
    losses = falling_losses(200, 0)
    losses[100:110] = [math.nan] * 10
    decisions = fly(GuardSpec.load("default").build(), losses)
    postures = [Posture(d.posture).name for d in decisions[100:110]]
    assert postures[:3] == ["SKIP"] * 3
    assert postures[3] == "HOLD"
    assert [d.regime for d in decisions[100:110]] == [Regime.NONFINITE] * 10


def test_only_the_nonfinite_steps_are_skipped_not_the_healthy_ones_after() -> None:
    losses = falling_losses(200, 1)
    losses[100] = losses[101] = math.nan
    decisions = fly(GuardSpec.load("default").build(), losses)
    assert [step for step, d in enumerate(decisions) if d.posture == Posture.SKIP] == [100, 101]


def test_a_loss_that_is_merely_missing_is_no_alarm() -> None:
    guard = GuardSpec.load("default").build()
    state = guard.init()
    for step in range(300):
        state, decision = guard.step(state, Telemetry(step))
        assert decision.regime not in UNSAFE_REGIMES
        assert decision.scale == 1.0


def test_never_and_hold_do_nothing_on_a_disaster() -> None:
    decisions = fly(GuardSpec.load("never").build(), [1.0, math.nan, 1e9, math.inf] * 50)
    assert {(d.regime, d.posture, d.scale, d.energy) for d in decisions} == {(Regime.STABLE, Posture.HOLD, 1.0, 0.0)}


most_extra = max(len(GuardSpec.load(preset).build().extra_channels) for preset in preset_names())
telemetry = st.builds(
    Telemetry,
    step=st.integers(0, 10**6),
    loss=st.floats(),
    lr=st.floats(),
    grad_norm=st.floats(),
    update_norm=st.floats(),
    tokens=st.floats(),
    nonfinite=st.sampled_from([0.0, 1.0, math.nan]),
    extra=st.tuples(*[st.floats()] * most_extra),
)


@pytest.mark.parametrize("preset", preset_names())
@settings(max_examples=40, deadline=None)
@given(st.lists(telemetry, min_size=1, max_size=120))
def test_any_telemetry_gives_finite_decisions_inside_the_envelope(preset: str, seen: list[Telemetry]) -> None:
    guard = GuardSpec.load(preset).build()
    state = guard.init()
    for row in seen:
        state, decision = guard.step(state, row._replace(extra=row.extra[: len(guard.extra_channels)]))
        assert guard.envelope.min_scale <= decision.scale <= 1.0
        assert math.isfinite(decision.energy)
        assert decision.regime in set(Regime)


@pytest.mark.parametrize("preset", preset_names())
def test_state_through_json_continues_with_the_same_bits(preset: str) -> None:
    guard = GuardSpec.load(preset).build()
    losses = falling_losses(300, 3)
    losses[120] = math.nan
    losses[140:150] = [9.0] * 10
    whole = fly(guard, losses)
    state = guard.init()
    resumed = []
    for step, loss in enumerate(losses):
        state = state_from_data(guard.init(), json.loads(json.dumps(state_to_data(state))))
        broken = 0.0 if math.isfinite(loss) else 1.0
        extra = (loss,) * len(guard.extra_channels)
        state, decision = guard.step(state, Telemetry(step, loss, 1e-3, nonfinite=broken, extra=extra))
        resumed.append(decision)
    assert resumed == whole


def test_state_of_another_guard_is_refused() -> None:
    state = state_to_data(GuardSpec.load("zscore").build().init())
    with pytest.raises(ComponentError, match="saved by another guard or version"):
        state_from_data(GuardSpec.load("default").build().init(), state)


def test_a_sensor_that_lacks_the_analyzers_signal_is_refused_by_name() -> None:
    with pytest.raises(ComponentError, match="analyzer 'composite' needs loss_z, loss_rise, which sensor 'raw'"):
        Guard(sensor=Raw(), analyzer=Composite(), policy=DampRelease(), envelope=Envelope())


def test_a_source_that_lacks_a_channel_is_refused_by_name() -> None:
    with pytest.raises(ChannelError, match=r"sensor 'robust_loss' .* needs channel loss, which run-7 does not hold"):
        GuardSpec.load("default").build().require(["lr", "grad_norm"], "run-7")


def test_what_an_analyzer_or_a_wrapped_one_needs_is_needed_by_the_guard() -> None:
    envelope = Envelope()
    wrapped = Guard(sensor=RobustLoss(), analyzer=Debounce(inner=Composite()), policy=DampRelease(), envelope=envelope)
    assert wrapped.needs == ("loss",)
    with pytest.raises(ComponentError, match="'debounce' needs loss_z"):
        Guard(sensor=Raw(), analyzer=Debounce(inner=Threshold()), policy=DampRelease(), envelope=envelope)
    assert "loss" in GuardSpec.load("internevo_spike").build().needs


class QkState(NamedTuple):
    rows: int


@sensor(version=1, emits=("loss",), needs=(), extra=("qk_entropy",))
class QkEntropy:
    """Shows an extra channel as the loss."""

    def init(self) -> QkState:
        return QkState(0)

    def step(self, state: QkState, telemetry: Telemetry) -> tuple[QkState, Signals]:
        return QkState(state.rows + 1), Signals(loss=telemetry.extra[0])


def test_an_extra_channel_arrives_with_the_guards_delay_and_is_missing_before_the_first_step() -> None:
    guard = Guard(sensor=QkEntropy(), analyzer=Never(), policy=Hold(), envelope=Envelope(), delay_steps=1)
    first, second = Telemetry(0, extra=(5.0,)), Telemetry(1, extra=(6.0,))
    assert math.isnan(guard.seen(first, guard.not_yet).extra[0])
    assert guard.seen(second, first).extra == (5.0,)
    guard.step(guard.init(), guard.seen(first, guard.not_yet))
    assert guard.needs == ("qk_entropy",)
