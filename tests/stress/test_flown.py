"""Closed loop, on the real tiny GPT through the real `attach`: the ways in which a guard can do harm, each once.

Every failure that the first prototype met is a test: a rollback storm, a damp spiral, a canary that misreads other
data, a probe that falls silent, a damping that sticks after a false alarm, a blow-up that is taken for bad batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_guard import broken_guard

from lbw_sim.errors import StressError
from lbw_sim.guard import GuardSpec
from lbw_sim.live import Probe
from lbw_sim.live.probes import Canary, PairedProbe
from lbw_sim.replay import verify
from lbw_sim.score.control import control_summary
from lbw_sim.stress import faults
from lbw_sim.stress.faults import Fault
from lbw_sim.stress.fleet import batches, train
from lbw_sim.stress.flown import Flown, fly
from lbw_sim.stress.plan import FlightPlan, RunPlan
from lbw_sim.stress.text import CANARY_SEED
from lbw_sim.stress.tiny_gpt import TinyGpt
from lbw_sim.trace import read_trace
from lbw_sim.values import UNSAFE_REGIMES, Posture, Regime

STEPS, ONSET, SEED = 200, 110, 0
LR = 5e-3


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def plan(fault: Fault | None = None, **more: Any) -> RunPlan:
    return RunPlan(**{"run_id": "it", "lr": LR, "seed": SEED, "steps": STEPS, "fault": fault, **more})


@cache
def unguarded(fault: Fault | None = None, **more: Any) -> Flown:
    return fly(plan(fault, **more))


def rollbacks(flown: Flown) -> int:
    return len(flown.rolled_back_to)


def skips(flown: Flown) -> list[int]:
    return [time for time, decision in enumerate(flown.decisions) if decision.posture == Posture.SKIP]


@pytest.mark.parametrize("fault", [faults.gradient_noise(10), faults.nan_gradient(10)], ids=lambda fault: fault.name)
def test_a_flown_run_is_the_fleets_run(fault: Fault) -> None:
    mine = plan(fault, steps=40)
    (fleets,) = train([mine])
    assert fly(mine).validation_loss == pytest.approx(fleets.validation_loss, rel=1e-3, nan_ok=True)
    assert math.isnan(fleets.validation_loss) == (fault.name == "nan_gradient")


def test_a_flight_says_of_itself_what_its_trace_says(tmp_path: Path) -> None:
    guarded = FlightPlan(method="guard:paired_rollback", lr=0.1, steps=60, fault=faults.nan_loss(5))
    flown = fly(guarded, folder=tmp_path / "guarded")
    trace = read_trace(tmp_path / "guarded")
    summary = control_summary(trace.to_numpy("all"))
    assert flown.skipped_steps == summary.skipped_steps >= 3
    assert rollbacks(flown) == summary.rollbacks >= 1
    assert flown.energy == pytest.approx(summary.control_energy)
    assert flown.energy > 1.0
    assert flown.active_steps == summary.control_active_steps
    assert flown.regime_switches == summary.regime_switches
    assert flown.stress_steps == summary.stress_mode_steps
    assert flown.mean_effective_lr == pytest.approx(float(trace.to_numpy("all")["effective_lr"].mean()))
    assert flown.tokens == 60 * 384
    assert len(trace.labels) == 1
    with pytest.raises(StressError, match="holds post_ln-guard_paired_rollback"):
        fly(guarded, folder=tmp_path / "guarded")

    handed = FlightPlan(workload="lstm", method="stable_adamw", lr=1.0, steps=20, seed=3, validate_every=8)
    flown = fly(handed, folder=tmp_path / "handed")
    trace = read_trace(tmp_path / "handed")
    facts = trace.meta.provenance
    told = (facts["workload"], facts["method"], facts["peak_lr"], facts["seed"], facts["text"])
    assert told == ("lstm", "stable_adamw", 1.0, 3, "prose")
    columns = trace.to_numpy()
    assert columns["loss"].tolist() == pytest.approx(list(flown.losses))
    assert columns["method_scale"].tolist() == list(flown.scales)
    assert min(flown.scales) < 1.0
    assert [step for step, _ in flown.validation_curve] == [8, 16]
    assert flown.validation_loss not in [loss for _, loss in flown.validation_curve]
    assert flown.perplexity == math.exp(flown.validation_loss)


@pytest.mark.parametrize("guard", ["paired_rollback", "canary_rollback"])
def test_without_a_fault_an_active_guard_does_nothing_at_all(guard: str) -> None:
    flown = fly(plan(), guard)
    assert torch.equal(flown.weights, unguarded().weights)
    assert {decision.scale for decision in flown.decisions} == {1.0}


def test_a_shadow_guard_that_would_act_changes_no_bit() -> None:
    bump = faults.lr_bump(ONSET)
    flown = fly(plan(bump), "paired_rollback", mode="shadow")
    assert min(decision.scale for decision in flown.decisions) < 0.2
    assert torch.equal(flown.weights, unguarded(bump).weights)


@pytest.mark.parametrize(
    ("guard", "delay_steps"), [("paired_rollback", 0), ("paired_rollback", 1), ("canary_rollback", 0)]
)
def test_a_blow_up_is_rolled_back_and_not_taken_for_bad_batches(guard: str, delay_steps: int, tmp_path: Path) -> None:
    bump = faults.lr_bump(ONSET)
    flown = fly(plan(bump), GuardSpec.load(guard).with_changes({"delay_steps": delay_steps}), folder=tmp_path)
    assert 1 <= rollbacks(flown) <= 3
    assert all(ONSET - 20 <= step <= ONSET for step in flown.rolled_back_to), "to healthy weights, and no farther"
    first = next(t for t, decision in enumerate(flown.decisions) if decision.posture == Posture.ROLLBACK)
    assert first - ONSET <= 12
    assert flown.decisions[-1].scale == 1.0, "the bump is over, and so is the damping"
    assert flown.validation_loss < unguarded().validation_loss + 0.1
    assert unguarded(bump).validation_loss > unguarded().validation_loss + 0.4
    assert verify(read_trace(tmp_path)).rows == STEPS


@pytest.mark.parametrize("guard", ["paired_rollback", "canary_rollback"])
def test_a_burst_of_bad_batches_is_skipped_and_brings_no_storm_of_rollbacks(guard: str) -> None:
    burst = faults.bad_labels(ONSET, length_steps=8)
    flown = fly(plan(burst), guard)
    assert rollbacks(flown) == 0
    assert skips(flown) == list(range(ONSET, ONSET + 8))
    assert flown.validation_loss < unguarded(burst).validation_loss - 0.02


def test_forty_bad_batches_which_no_patience_outlasts_are_no_worse_than_without_a_guard() -> None:
    long_one = faults.bad_labels(ONSET, length_steps=40)
    flown = fly(plan(long_one), "paired_rollback")
    assert rollbacks(flown) <= 4
    assert flown.validation_loss < unguarded(long_one).validation_loss + 0.02


def test_a_stall_from_a_learning_rate_that_is_too_low_is_not_answered_by_a_lower_one() -> None:
    slow = fly(plan(lr=1e-4, steps=100), "paired_rollback")
    assert {decision.scale for decision in slow.decisions} == {1.0}
    slow = fly(plan(lr=1e-4, steps=100), "canary_rollback")
    assert {decision.scale for decision in slow.decisions} == {1.0}


def test_other_data_are_no_alarm_for_the_pair_and_do_not_hold_the_canary_for_ever() -> None:
    switch = faults.data_switch(ONSET)
    paired = fly(plan(switch), "paired_rollback")
    assert rollbacks(paired) == 0
    assert paired.validation_loss < unguarded(switch).validation_loss * 1.01
    # a canary does misread them, and pays: what is promised is that the alarms end and the damping with them
    spec = GuardSpec.load("canary_rollback").with_changes({"policy.doubt_steps": 60})
    canary = fly(plan(switch, steps=320), spec)
    assert 1 <= rollbacks(canary) <= 4
    assert canary.decisions[-1].scale == 1.0
    assert not any(decision.posture == Posture.ROLLBACK for decision in canary.decisions[-60:])


def silent_after(probe: Any, step: int) -> Probe:
    """The probe, which raises from a step on."""

    class Dying:
        channels = probe.channels
        steps = 0

        def before_step(self, number: int, batch: object | None) -> Any:
            self.steps += 1
            if self.steps > step:
                raise OSError("the probe is gone")
            return probe.before_step(number, batch)

        def after_step(self, number: int) -> Any:
            return {}

    return Dying()


def canary_of(model: TinyGpt, bend: Callable[[int, float], float] = lambda call, loss: loss) -> Canary:
    """A canary on a batch of the text, its n-th loss passed through `bend`."""
    batch = batches([plan(seed=CANARY_SEED)], 0)
    calls = []

    def loss() -> float:
        calls.append(1)
        return bend(len(calls) - 1, float(model(batch)))

    return Canary(model, loss, every_steps=5)


@pytest.mark.parametrize("which", ["canary_rollback", "paired_rollback"])
def test_a_probe_that_falls_silent_while_damping_does_not_damp_for_ever(which: str) -> None:
    def probes(model: TinyGpt, optimizer: torch.optim.Optimizer) -> Sequence[Probe]:
        probe = canary_of(model) if which == "canary_rollback" else PairedProbe(model, model)
        return [silent_after(probe, 50)]

    # the learning rate is too high from the start, the alarm comes, and then no news
    spec = GuardSpec.load(which).with_changes({"policy.doubt_steps": 60})
    flown = fly(plan(lr=0.3), spec, probes=probes)
    assert rollbacks(flown) >= 1
    assert min(decision.scale for decision in flown.decisions) < 0.2
    assert flown.decisions[-1].scale == 1.0
    assert {decision.regime for decision in flown.decisions[-50:]} <= {Regime.WARMUP, Regime.STABLE}


def test_a_false_alarm_is_forgiven() -> None:
    def probes(model: TinyGpt, optimizer: torch.optim.Optimizer) -> Sequence[Probe]:
        # a canary that lies twice, in mid-run
        return [canary_of(model, lambda call, loss: loss * 1.1 if call in (24, 25) else loss)]

    spec = GuardSpec.load("canary_rollback").with_changes({"policy.doubt_steps": 60})
    flown = fly(plan(steps=260), spec, probes=probes)
    assert rollbacks(flown) == 1
    assert flown.decisions[-1].scale == 1.0
    assert flown.validation_loss < unguarded(steps=260).validation_loss * 1.03


@pytest.mark.parametrize("broken", [faults.nan_loss, faults.nan_gradient])
def test_two_steps_that_are_not_finite_cost_two_steps(broken: Callable[[int], Fault]) -> None:
    flown = fly(plan(broken(ONSET)), "paired_rollback")
    assert skips(flown) == [ONSET, ONSET + 1]
    assert flown.validation_loss < unguarded().validation_loss * 1.01


def test_a_learning_rate_a_hundred_times_too_high_is_survived_by_cap_and_feedback_alike() -> None:
    dead = unguarded(lr=1.0).validation_loss
    assert dead > 3.1
    capped = fly(plan(lr=1.0), "static_cap")
    assert capped.validation_loss < 2.7
    assert not {decision.regime for decision in capped.decisions} & UNSAFE_REGIMES, "a cap is no alarm"
    guarded = fly(plan(lr=1.0), "paired_rollback")
    assert guarded.validation_loss < 2.8
    assert not math.isnan(guarded.validation_loss)


def test_a_run_whose_guard_was_grounded_is_no_run_of_that_guard(tmp_path: Path) -> None:
    """A full disk does it as well, and the rest of the run would stand in the table under the guard's name."""
    spec = broken_guard(tmp_path, 5)
    with pytest.raises(StressError, match="grounded: ZeroDivisionError: a bug in somebody's rule"):
        fly(plan(steps=10), spec, folder=tmp_path / "traces")
    assert len(fly(plan(steps=10), spec, mode="shadow").losses) == 10, "one that only watches changes nothing"
