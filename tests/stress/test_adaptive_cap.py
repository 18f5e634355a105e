"""Closed loop, on real training: the cap that is learned in flight, on two models with one configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from lbw_sim.guard import GuardSpec
from lbw_sim.live import Probe
from lbw_sim.live.probes import FullStepLr, PairedProbe
from lbw_sim.stress.flown import fly
from lbw_sim.stress.plan import FlightPlan


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_rate_a_hundred_times_too_high_ends_like_a_good_one_and_a_low_one_is_left_alone() -> None:
    high = fly(FlightPlan(lr=1.0, steps=150, method="guard:adaptive_cap"))
    assert high.validation_loss < 2.6
    assert fly(FlightPlan(lr=1.0, steps=40)).validation_loss > 3.3, "without it, dead"
    low = FlightPlan(lr=3e-3, steps=40)
    assert torch.equal(fly(low, "adaptive_cap").weights, fly(low).weights)


def test_the_same_configuration_opens_where_the_model_can_take_more() -> None:
    lstm = fly(FlightPlan(workload="lstm", lr=0.1, steps=60, method="guard:adaptive_cap"))
    rates = [lstm.plan.lr_at(step) * scale for step, scale in enumerate(lstm.scales)]
    assert rates[0] < 0.004
    assert max(rates) > 4.0 * rates[0]


def test_a_good_rate_a_little_above_the_first_cap_is_left_alone() -> None:
    plan = FlightPlan(workload="vit", lr=1e-2, seed=1, steps=30)
    assert set(fly(plan, "adaptive_cap").scales) == {1.0}
    assert min(fly(dataclasses.replace(plan, lr=2e-2), "adaptive_cap").scales) < 0.5


def test_a_deep_post_ln_model_that_dies_with_straight_steps_is_taken_back_to_its_beginning() -> None:
    plan = FlightPlan(workload="post_ln_wide", lr=0.03, seed=2, steps=40)
    guarded = fly(plan, "adaptive_cap")
    assert guarded.rolled_back_to == (0,)
    rates = [plan.lr_at(step) * scale for step, scale in enumerate(guarded.scales)]
    assert max(rates[-10:]) <= 0.5 * max(rates), "halved for good"
    blind = GuardSpec.load("adaptive_cap").with_changes({"analyzer.collapse_share": 0.0})
    assert fly(plan, blind).rolled_back_to == (), "nothing else sees it"


def test_when_half_steps_are_never_measured_the_cap_does_not_hold_for_ever() -> None:
    def probes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[Probe]:
        return [FullStepLr(model), PairedProbe(model, model)]

    flown = fly(FlightPlan(lr=0.04, steps=150), "adaptive_cap", probes=probes)
    assert flown.scales[90] < 0.5
    assert flown.scales[-1] == 1.0
