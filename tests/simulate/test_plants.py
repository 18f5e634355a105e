"""Each plant against its own formula, and against what it claims it can and cannot represent."""

from __future__ import annotations

import math
import random
from decimal import Decimal, localcontext
from itertools import pairwise

import pytest

from lbw_sim.params import params_of
from lbw_sim.simulate.forgetting import faded
from lbw_sim.simulate.plants.functional_scaling import FunctionalScaling
from lbw_sim.simulate.plants.growing_weights import GrowingWeights
from lbw_sim.simulate.plants.lasting_damage import LastingDamage
from lbw_sim.simulate.plants.multi_power_law import MultiPowerLaw
from lbw_sim.simulate.plants.noisy_quadratic import NoisyQuadratic
from lbw_sim.simulate.plants.stability_edge import StabilityEdge
from lbw_sim.simulate.plants.tissue_law import TissueLaw
from lbw_sim.simulate.powers import exponential, logarithm, power
from lbw_sim.values import Action, Measured, Noise

COSINE = [3e-4 * (0.1 + 0.45 * (1.0 + math.cos(math.pi * step / 2_000))) for step in range(2_000)]
CUT = [3e-4] * 1_000 + [9e-5] * 1_000
RISE = [1e-4] * 500 + [3e-4] * 500 + [3e-5] * 500
DEEP_CUT = [3e-4] * 500 + [3e-6] * 500
TO_NOTHING = [3e-4] * 500 + [3e-4 * (1.0 - step / 500) for step in range(500)]


def flown(plant: object, lrs: list[float], walk: float = 0.0) -> list[Measured]:
    state, shown = plant.init(), []  # type: ignore[attr-defined]
    for lr in lrs:
        state, measured = plant.step(state, Action(lr), Noise(0.0, walk))  # type: ignore[attr-defined]
        shown.append(measured)
    return shown


def test_powers_are_as_exact_as_they_say_against_fifty_digits() -> None:
    chance = random.Random(0)
    edges = [1e-12, 0.5, 0.7071067811865475, 0.7071067811865476, 0.999, 1.0, 1.0000000000000002, 2.0, 1e12]
    with localcontext(prec=50):
        for x in [*edges, *(10.0 ** chance.uniform(-12.0, 12.0) for _ in range(500))]:
            true = Decimal(x).ln()
            assert abs(Decimal(logarithm(x)) - true) <= Decimal("2.3e-16") * abs(true)
            argument = chance.uniform(-40.0, 40.0)
            true = Decimal(argument).exp()
            assert abs(Decimal(exponential(argument)) - true) <= Decimal("2.3e-16") * true
            exponent = chance.uniform(-1.4, 1.4)
            size = Decimal(exponent) * Decimal(x).ln()
            bound = Decimal("4e-16") + Decimal("2.3e-16") * abs(size)
            assert abs(Decimal(power(x, exponent)) / size.exp() - 1) <= bound


def test_what_fades_slowly_is_as_exact_as_it_says() -> None:
    chance = random.Random(1)
    with localcontext(prec=50):
        for x in [0.0, 1.0 / 64.0, *(2.0 ** chance.uniform(-40.0, -6.0) for _ in range(500))]:
            true = Decimal(-x).exp()
            assert abs(Decimal(faded(x)) - true) <= Decimal("2.3e-16") * true
    assert faded(-1.0) == 1.0
    assert faded(1.0) == faded(1.0 / 64.0)


def test_powers_stay_within_their_limits_and_nan_counts_as_the_largest() -> None:
    assert exponential(0.0) == 1.0
    assert exponential(1e9) == exponential(math.inf) == exponential(math.nan) == exponential(40.0)
    assert exponential(-math.inf) == exponential(-40.0) > 0.0
    assert logarithm(1.0) == 0.0
    assert logarithm(-1.0) == logarithm(0.0) == logarithm(1e-12)
    assert logarithm(math.inf) == logarithm(math.nan) == logarithm(1e12)


def test_noisy_quadratic_settles_where_the_arithmetic_says_and_diverges_beyond_two_over_curvature() -> None:
    plant = NoisyQuadratic(floor=1.0, curvature=10.0, gradient_sd=0.5, start=3.0, noise_sd=0.0)
    lr = 0.05
    settled = lr * 0.5**2 / (10.0 * (2.0 - lr * 10.0))
    assert flown(plant, [lr] * 200)[-1].loss == pytest.approx(1.0 + 0.5 * 10.0 * settled, rel=1e-12)
    assert flown(plant, [0.199] * 3000)[-1].nonfinite == 0.0
    assert flown(plant, [0.201] * 3000)[-1].nonfinite == 1.0


@pytest.mark.parametrize("lrs", [COSINE, CUT, RISE], ids=["cosine", "cut", "rise"])
def test_tissue_law_is_its_formula(lrs: list[float]) -> None:
    law = TissueLaw(memory=0.99)
    momentum = annealing = 0.0
    for before, now in pairwise(lrs):
        momentum = 0.99 * momentum + (before - now)
        annealing += momentum
    direct = law.floor + law.amplitude * (law.start_lr_sum + math.fsum(lrs)) ** -law.exponent
    assert flown(law, lrs)[-1].loss == pytest.approx(direct - law.annealing_gain * annealing, rel=1e-12)


@pytest.mark.parametrize(
    "lrs", [COSINE, CUT, RISE, DEEP_CUT, TO_NOTHING], ids=["cosine", "cut", "rise", "deep cut", "to nothing"]
)
@pytest.mark.parametrize(("beta", "gamma", "pace"), [(0.4, 0.65, 60.0), (1.2, 0.5, 115.0)])
def test_multi_power_law_is_its_sum_over_all_past_steps(
    lrs: list[float], beta: float, gamma: float, pace: float
) -> None:
    law = MultiPowerLaw(annealing_exponent=beta, lr_exponent=gamma, pace=pace, annealing_gain=500.0)
    gain = 0.0
    for k in range(1, len(lrs)):
        since = math.fsum(lrs[k:])
        gain += (lrs[k - 1] - lrs[k]) * (1.0 - (1.0 + pace * (lrs[k] / law.reference_lr) ** -gamma * since) ** -beta)
    direct = law.floor + law.amplitude * (law.start_lr_sum + math.fsum(lrs)) ** -law.exponent
    error = flown(law, lrs)[-1].loss - (direct - 500.0 * gain)
    assert abs(error) < 2e-5 * 500.0 * math.fsum(abs(a - b) for a, b in pairwise(lrs))


@pytest.mark.parametrize("lrs", [COSINE, CUT, RISE], ids=["cosine", "cut", "rise"])
def test_functional_scaling_is_its_sum_over_all_past_steps(lrs: list[float]) -> None:
    law = FunctionalScaling(pace=300.0)
    noise = math.fsum(lr * lr * (1.0 + law.pace * math.fsum(lrs[k:])) ** -law.forgetting for k, lr in enumerate(lrs))
    signal = law.amplitude * (1.0 + law.pace * math.fsum(lrs)) ** -law.exponent
    excess = flown(law, lrs)[-1].loss - law.floor - signal
    assert excess == pytest.approx(law.noise * noise, rel=1e-4)


def test_the_stability_edge_spikes_comes_back_and_spikes_again() -> None:
    plant = StabilityEdge(amplitude=0.0, start_sharpness=700.0)
    losses = [measured.loss - plant.floor for measured in flown(plant, [0.05] * 3_000, walk=1.0)]
    high = [loss > 0.05 for loss in losses]
    spikes = sum(now and not before for before, now in pairwise(high))
    assert spikes >= 10
    assert sum(high) < 0.2 * len(high)
    # a sharpness of 700 is far below the edge, 38 / 0.01
    calm = flown(plant, [0.01] * 100, walk=1.0)
    assert max(measured.loss - plant.floor for measured in calm) < 1e-5


def test_damage_is_for_ever_and_a_rate_below_the_critical_one_does_none() -> None:
    plant = LastingDamage(critical_lr=0.02, critical_spread=0.0, hazard=0.05)
    assert flown(plant, [0.019] * 5_000)[-1].dead == 0.0
    rescued = flown(plant, [0.01] * 100 + [0.3] * 40 + [1e-3] * 5_000)
    assert rescued[-1].dead == 1.0
    assert rescued[-1].loss > 0.9 * plant.dead_loss
    in_time = flown(plant, [0.01] * 100 + [0.3] * 3 + [1e-3] * 5_000)
    assert in_time[-1].dead == 0.0


def test_weights_that_do_not_grow_are_lasting_damage() -> None:
    plain = LastingDamage(floor=2.1, pace=90.0, critical_lr=0.02, critical_spread=0.2, hazard=0.05)
    shared = {name: getattr(plain, name) for name in params_of(plain)}
    huge = GrowingWeights(weight_size=1e4, wear_loss=0.0, **shared)
    lrs = [0.01] * 100 + [0.3] * 6 + [1e-3] * 200
    ours, theirs = flown(huge, lrs, 0.3), flown(plain, lrs, 0.3)
    assert [one.expected_loss for one in ours] == pytest.approx([one.expected_loss for one in theirs], rel=1e-6)
    assert plain.dead_loss > theirs[-1].loss > flown(plain, [0.01] * 306)[-1].loss + 0.1


def test_grown_weights_are_its_formula_and_no_later_rate_undoes_it() -> None:
    plant = GrowingWeights(weight_size=0.1, wear_loss=0.5, heat_loss=0.0, swing_loss=0.0, hazard=1e-6, floor=2.0)
    lrs = [0.2] * 30 + [0.01] * 500
    square, time = 1.0, 0.0
    for lr in lrs:
        relative = lr / math.sqrt(square)
        time += relative / (1.0 + relative / plant.lr_saturation)
        square += (lr / 0.1) ** 2
    direct = 2.0 + plant.amplitude * (1.0 + plant.pace * time) ** -plant.exponent + 0.5 * (1.0 - square**-0.5)
    assert flown(plant, lrs)[-1].expected_loss == pytest.approx(direct, abs=1e-3)
    # the same rates in the other order: what is learned first, with small weights, is learned
    assert flown(plant, lrs[::-1])[-1].expected_loss < direct - 0.2


@pytest.mark.parametrize(
    "plant",
    [
        NoisyQuadratic(),
        TissueLaw(),
        MultiPowerLaw(),
        FunctionalScaling(),
        StabilityEdge(),
        LastingDamage(),
        GrowingWeights(),
    ],
)
def test_a_skipped_update_leaves_the_weights_alone(plant: object) -> None:
    state = plant.init()  # type: ignore[attr-defined]
    for lr in (1e-3, 2e-3):
        state, _ = plant.step(state, Action(lr), Noise())  # type: ignore[attr-defined]
    after, _ = plant.step(state, Action(0.5, skipped=1.0), Noise(1.0, 1.0))  # type: ignore[attr-defined]
    assert after == state
