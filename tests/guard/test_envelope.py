"""No request, however absurd, pushes a decision out of the envelope or makes it hold for ever."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from lbw_sim.guard.envelope import Envelope
from lbw_sim.values import Posture, Reason, Regime, Request

requests = st.builds(
    Request,
    posture=st.sampled_from([int(p) for p in Posture] + [17, -1]),
    scale=st.floats(allow_nan=True, allow_infinity=True),
    rollback_steps=st.integers(-5, 500),
)
envelopes = st.builds(
    Envelope,
    min_scale=st.floats(0.001, 1.0),
    max_drop=st.floats(0.01, 1.0),
    max_rise=st.floats(0.05, 1.0),
    max_damped_steps=st.integers(1, 60),
    rest_steps=st.integers(0, 20),
    energy_per_1000_steps=st.floats(0.0, 1000.0),
    max_skips_in_a_row=st.integers(0, 5),
    skips_per_1000_steps=st.floats(0.0, 200.0),
    max_rollbacks=st.integers(0, 3),
    rollback_cooldown_steps=st.integers(1, 40),
)


@settings(max_examples=150, deadline=None)
@given(envelopes, st.lists(requests, max_size=200))
def test_every_decision_stays_inside_every_limit(limits: Envelope, asked: list[Request]) -> None:
    state, scale, energy, damped, in_a_row, skips = limits.init(), 1.0, 0.0, 0, 0, 0
    rollbacks: list[int] = []
    for step, request in enumerate(asked):
        state, decision = limits.step(state, int(Regime.SPIKE), request)
        assert limits.min_scale <= decision.scale <= 1.0
        assert decision.scale >= scale - limits.max_drop - 1e-12 or decision.scale == limits.min_scale
        assert decision.scale <= scale + limits.max_rise + 1e-12
        energy += (1.0 - decision.scale) ** 2
        assert math.isclose(decision.energy, energy, abs_tol=1e-9)
        damped = damped + 1 if decision.scale < 1.0 else 0
        assert damped <= limits.release_deadline_steps
        in_a_row = in_a_row + 1 if decision.posture == Posture.SKIP else 0
        skips += decision.posture == Posture.SKIP
        assert in_a_row <= limits.max_skips_in_a_row
        assert skips <= limits.skips_per_1000_steps * (1.0 + (step + 1) / 1000.0)
        if decision.posture == Posture.ROLLBACK:
            assert not rollbacks or step - rollbacks[-1] >= limits.rollback_cooldown_steps
            assert decision.rollback_steps >= 1
            rollbacks.append(step)
        assert len(rollbacks) <= limits.max_rollbacks
        assert decision.posture in set(Posture)
        assert decision.reason in set(Reason)
        scale = decision.scale


@settings(max_examples=60, deadline=None)
@given(envelopes, requests)
def test_the_same_request_for_ever_is_let_go_again_and_again(limits: Envelope, request_: Request) -> None:
    state, since_full = limits.init(), 0
    for _ in range(3 * limits.release_deadline_steps + 100):
        state, decision = limits.step(state, int(Regime.DIVERGING), request_)
        since_full = 0 if decision.scale == 1.0 else since_full + 1
        assert since_full <= limits.release_deadline_steps


def test_after_a_forced_release_damping_rests() -> None:
    limits = Envelope(max_damped_steps=5, rest_steps=4, max_rise=1.0, energy_per_1000_steps=1000.0)
    state, scales, reasons = limits.init(), [], []
    for _ in range(14):
        state, decision = limits.step(state, int(Regime.SPIKE), Request(int(Posture.DAMP), 0.5))
        scales.append(decision.scale)
        reasons.append(Reason(decision.reason).name)
    assert scales == [0.5] * 5 + [1.0] + [1.0] * 3 + [0.5] * 5
    assert reasons[5:9] == ["DAMPED_TOO_LONG", "RESTING", "RESTING", "RESTING"]


def test_control_energy_is_budgeted_over_any_stretch() -> None:
    limits = Envelope(energy_per_1000_steps=20.0, max_damped_steps=100_000, rest_steps=10)
    state, energies = limits.init(), [0.0]
    for _ in range(20_000):
        state, decision = limits.step(state, int(Regime.DIVERGING), Request(int(Posture.DAMP), 0.1))
        energies.append(decision.energy)
    # one allowance at the start, the refill, and the tail of a release under way
    tail = 0.81 * (limits.release_deadline_steps - limits.max_damped_steps)
    for start in range(0, 19_000, 500):
        assert energies[start + 1000] - energies[start] <= 2 * 20.0 + tail


def test_a_missing_request_asks_for_nothing() -> None:
    limits = Envelope()
    _, decision = limits.step(limits.init(), int(Regime.STABLE), Request(int(Posture.HOLD), math.nan))
    assert (decision.scale, decision.posture, decision.reason) == (1.0, Posture.HOLD, Reason.NONE)
