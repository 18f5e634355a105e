"""Methods: each against its rule, computed by hand or by a plain formula, and seen to change what it should."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pytest
import torch

from lbw_sim.errors import StressError
from lbw_sim.guard import GuardSpec
from lbw_sim.stress.controls import same_mean_lr
from lbw_sim.stress.flown import fly
from lbw_sim.stress.method import Hand, Workplace
from lbw_sim.stress.methods import METHODS, fitted
from lbw_sim.stress.methods.open_loop import turned
from lbw_sim.stress.plan import FlightPlan
from lbw_sim.stress.workloads import workload


class Bench:
    """Two parameters, their optimizer, and the hand of a method on them."""

    def __init__(self, spec: str, steps: int = 300) -> None:
        self.parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
        fitting = fitted(spec, steps=steps)
        groups = [{"params": [p]} for p in self.parameters] if fitting.per_tensor else self.parameters
        self.optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)
        assert fitting.hand is not None
        self.hand: Hand = fitting.hand(Workplace(self.parameters, self.optimizer))

    def act(self, step: int, *gradients: Sequence[float], train: bool = True) -> float | Sequence[float]:
        """One step; the gradients are then what the method made of them."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = torch.tensor(gradient)
        factor = self.hand.act(step, 1.0)
        if train:
            self.optimizer.step()
        return factor

    @property
    def gradients(self) -> list[list[float]]:
        return [parameter.grad.tolist() for parameter in self.parameters if parameter.grad is not None]


def test_a_nudge_is_a_learning_rate_a_thousandth_lower_and_nothing_else() -> None:
    bench = Bench("nudge")
    assert bench.act(0, [3.0, 0.0], [4.0]) == 0.999
    assert bench.gradients == [[3.0, 0.0], [4.0]]
    plain, nudged = (fly(FlightPlan(method=how, lr=0.01, steps=30)) for how in ("adamw", "nudge"))
    assert nudged.losses[0] == plain.losses[0]
    assert nudged.losses[-1] == pytest.approx(plain.losses[-1], rel=0.02)
    assert nudged.mean_effective_lr == pytest.approx(0.999 * plain.mean_lr)
    assert not torch.equal(nudged.weights, plain.weights)


def test_clip_brings_the_norm_of_all_gradients_together_to_the_limit() -> None:
    bench = Bench("clip:0.5")
    assert bench.act(0, [3.0, 0.0], [4.0]) == 1.0
    assert bench.gradients == [pytest.approx([0.3, 0.0], rel=1e-5), pytest.approx([0.4], rel=1e-5)]
    bench.act(1, [0.3, 0.0], [0.0])
    assert bench.gradients[0][0] == pytest.approx(0.3)


def test_zclip_brings_an_outlying_norm_to_its_moments_and_leaves_the_others() -> None:
    bench = Bench("zclip")
    norms = [1.0 + 0.1 * math.sin(step) for step in range(25)]
    for step, norm in enumerate(norms):
        bench.act(step, [norm, 0.0], [0.0])
        assert bench.gradients[0][0] == pytest.approx(norm)
    bench.act(25, [0.0, 6.0], [8.0])
    mean, sd = statistics.mean(norms), statistics.pstdev(norms)
    z = (10.0 - mean) / sd
    limit = mean + 2.5 * sd / (z / 2.5)
    assert bench.gradients == [pytest.approx([0.0, 0.6 * limit], rel=1e-4), pytest.approx([0.8 * limit], rel=1e-4)]


def test_adagc_clips_each_tensor_to_the_memory_of_its_own_norms() -> None:
    bench = Bench("adagc", steps=6)  # the first two steps are the start
    seen = [([0.3, 0.4], [0.2]), ([3.0, 4.0], [0.0]), ([0.0, 9.0], [0.1]), ([0.0, 0.4], [5.0]), ([0.0, 3.0], [0.1])]
    memory = [math.inf, math.inf]
    for step, gradients in enumerate(seen):
        norms = [math.hypot(*gradient) for gradient in gradients]
        if step < 2:
            factors = [min(1.0, 1.0 / math.hypot(*norms))] * 2
            memory = [min(old, norm * f) for old, norm, f in zip(memory, norms, factors, strict=True)]
        else:
            factors = [min(1.0, 1.05 * old / norm) for old, norm in zip(memory, norms, strict=True)]
            clipped = [norm * f for norm, f in zip(norms, factors, strict=True)]
            memory = [0.98 * old + 0.02 * now for old, now in zip(memory, clipped, strict=True)]
        bench.act(step, *gradients)
        wanted = [pytest.approx([f * x for x in g], abs=1e-5) for f, g in zip(factors, gradients, strict=True)]
        assert bench.gradients == wanted, step
    bench.act(5, [math.nan, 0.0], [0.0])
    bench.act(6, [0.0, 9.0], [0.0])
    assert bench.gradients[0][1] == pytest.approx(1.05 * memory[0], rel=1e-5), "no nan in the memory"


def test_spam_clips_single_elements_and_resets_the_moments() -> None:
    bench = Bench("spam:40")
    for step in range(25):
        assert bench.act(step, [0.01, 0.0], [1.0]) == 1.0
    memory = bench.optimizer.state[bench.parameters[0]]["exp_avg_sq"].clone()
    bench.act(25, [-5.0, 0.5], [2.0], train=False)
    assert bench.gradients[0][0] == pytest.approx(-math.sqrt(5000.0 * float(memory[0])), rel=1e-5)
    assert bench.gradients[0][1:] + bench.gradients[1] == [0.5, 2.0], "no memory, and no outlier"
    for step in range(25, 40):
        bench.act(step, [0.01, 0.0], [1.0])
    assert bench.act(40, [9.0, 0.0], [1.0], train=False) == pytest.approx(0.01)
    assert not bench.optimizer.state
    assert bench.gradients[0][0] == 9.0, "a memory that young is not trusted"
    back = [bench.act(step, [0.01, 0.0], [1.0]) for step in range(40, 54)]
    assert back[6] == pytest.approx(1.0 - 0.99 * 0.5), "half of the way back of 12 steps"
    assert back[12:] == [1.0, 1.0]


def test_stable_adamw_divides_by_the_root_mean_square_of_each_tensor() -> None:
    bench = Bench("stable_adamw")
    memory = [torch.zeros(2), torch.zeros(1)]
    for step, gradients in enumerate([([1.0, 2.0], [1.0]), ([1.0, 20.0], [0.1]), ([0.1, 2.0], [30.0])]):
        squares = [torch.tensor(gradient) ** 2 for gradient in gradients]
        memory = [0.999 * old + 0.001 * square for old, square in zip(memory, squares, strict=True)]
        bias = 1.0 - 0.999 ** (step + 1)
        wanted = [
            1.0 / max(1.0, float((square / (old / bias)).mean().sqrt()))
            for square, old in zip(squares, memory, strict=True)
        ]
        assert bench.act(step, *gradients) == pytest.approx(wanted, rel=1e-4)
    assert wanted[1] < 0.8 < wanted[0]


def test_a_factor_for_each_tensor_reaches_that_tensor() -> None:
    flown = fly(FlightPlan(method="stable_adamw", lr=0.1, steps=20))
    plain = fly(FlightPlan(method="adamw", lr=0.1, steps=20))
    assert flown.scales[0] == 1.0
    assert min(flown.scales) < 1.0
    assert flown.mean_effective_lr < plain.mean_effective_lr == plain.mean_lr
    assert not torch.equal(flown.weights, plain.weights)


def test_rules_that_a_guard_carries_out_are_flown_as_that_guard() -> None:
    def guard(spec: str) -> GuardSpec | None:
        return fitted(spec, steps=300).guard

    assert guard("skip_step") == GuardSpec.load("olmo_skip_step")
    assert guard("metaseq") == GuardSpec.load("metaseq_ewm")
    assert guard("guard:paired_rollback") == GuardSpec.load("paired_rollback")
    assert guard("static_cap") == GuardSpec.load("static_cap")
    capped = GuardSpec.load("static_cap").with_changes({"analyzer.share": 0.05})
    assert guard("static_cap:0.05") == capped
    checked = GuardSpec.load("reduce_on_plateau").with_changes({"analyzer.check_steps": 5})
    assert guard("plateau") == checked


def test_a_slow_start_alone_grows_whatever_happens() -> None:
    flown = fly(FlightPlan(method="slow_start", lr=1.0, steps=40))
    assert flown.scales == pytest.approx([min(1.0, 0.05 * 1.1**step) for step in range(40)])


def test_going_back_passes_over_batches_or_lowers_the_learning_rate_for_good() -> None:
    rewind, restart = (fly(FlightPlan(method=m, lr=0.1, steps=60)) for m in ("rewind:20", "restart:0.25"))
    first = rewind.skipped.index(True)
    assert rewind.losses[: first + 1] == restart.losses[: first + 1]
    assert rewind.rolled_back_to[0] == 0, "nothing else was old enough"
    assert rewind.retrained_steps >= first
    # so the first weights meet a batch 60 further on than the one that is due
    session = workload("post_ln").session(0)
    assert rewind.losses[first + 1] == float(session.loss(session.batch(first + 1 + 60)).detach())
    assert set(rewind.scales) == {1.0}
    assert restart.scales[first : first + 2] == (1.0, 0.25)
    assert restart.scales[-1] == 0.25 ** len(restart.rolled_back_to)


def test_open_loop_controls_play_what_they_were_given() -> None:
    guarded = fly(FlightPlan(method="slow_start", lr=0.1, steps=20))
    assert min(guarded.scales) < 1.0
    played = fly(FlightPlan(method="playback", lr=0.1, steps=20, scales=guarded.scales))
    assert played.scales == guarded.scales
    assert torch.equal(played.weights, guarded.weights), "the guard of this run had no feedback to lose"
    moved = fly(FlightPlan(method="random_damping", lr=0.1, steps=20, seed=5, scales=guarded.scales))
    assert moved.scales == turned(guarded.scales, seed=5) != guarded.scales
    assert moved.scales != turned(guarded.scales, seed=6), "the times follow from the seed"
    assert moved.energy == pytest.approx(guarded.energy)
    frozen = fly(FlightPlan(method="frozen_floor", lr=0.1, steps=20, scales=guarded.scales))
    low = fly(FlightPlan(method="adamw", lr=0.1 * min(guarded.scales), steps=20))
    assert torch.equal(frozen.weights, low.weights)
    assert fly(same_mean_lr(guarded, "mean")).mean_lr == pytest.approx(guarded.mean_effective_lr)
    untouched = fly(FlightPlan(method="untouched", steps=20))
    assert untouched.tokens == 0
    assert untouched.validation_loss > 4.5


def test_every_method_says_what_it_is_and_refuses_what_it_cannot_take() -> None:
    assert all(method.about for method in METHODS.values())
    with pytest.raises(StressError, match=r"no method named 'clipp'.*Did you mean 'clip'"):
        fitted("clipp", steps=10)
    with pytest.raises(StressError, match=r"clip.*'-1' is not a number in"):
        FlightPlan(method="clip:-1")
    with pytest.raises(StressError, match="adamw takes nothing after its name"):
        fitted("adamw:2", steps=10)
    with pytest.raises(StressError, match="clip takes the largest norm"):
        fitted("clip:", steps=10)
    with pytest.raises(StressError, match="needs the scales of a guarded run"):
        FlightPlan(method="playback")
    with pytest.raises(StressError, match="2 scales for 300 steps"):
        FlightPlan(method="playback", scales=(1.0, 1.0))
