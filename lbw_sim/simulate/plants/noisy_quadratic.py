"""Noisy quadratic: the plant whose answers can be worked out on paper."""

from __future__ import annotations

import math
from typing import NamedTuple

from lbw_sim.params import param, plant
from lbw_sim.simulate.plants import shown, taken_lr
from lbw_sim.values import Action, Measured, Noise

_LARGEST_VARIANCE = 1e100


class NoisyQuadraticState(NamedTuple):
    """Expected square of the distance from the optimum."""

    variance: float


@plant(version=1, emits=("loss", "grad_norm"))
class NoisyQuadratic:
    """Gradient descent in one direction of constant curvature h with gradient noise of variance s², in expectation.

    v ← (1 - lr h)² v + lr² s², expected loss = floor + h v / 2, grad_norm = sqrt(h² v + s²). Settles at
    v = lr s² / (h (2 - lr h)), and diverges where lr h > 2. Source: the noisy quadratic model, Schaul et al. 2013
    (arXiv 1206.1106), Zhang et al. 2019 (arXiv 1907.04164).

    Cannot represent: a slow power law (one direction only), momentum and Adam, curvature that answers the learning
    rate, and any damage: once the learning rate is low again it forgets everything.

    >>> plant = NoisyQuadratic(curvature=1.0, gradient_sd=0.0, start=4.0, floor=1.0)
    >>> state, measured = plant.step(plant.init(), Action(0.5), Noise())
    >>> state.variance, measured.loss
    (1.0, 1.5)
    """

    floor: float = param(2.0, low=0.0, high=20.0, unit="nats", doc="loss at the optimum")
    curvature: float = param(100.0, low=1e-6, high=1e9, doc="second derivative of the loss", log=True)
    gradient_sd: float = param(1.0, low=0.0, high=1e6, doc="standard deviation of the gradient's noise")
    start: float = param(0.05, low=0.0, high=1e6, doc="square of the distance from the optimum at the start")
    noise_sd: float = param(0.03, low=0.0, high=10.0, unit="nats", doc="standard deviation of a batch's difficulty")

    def init(self) -> NoisyQuadraticState:
        """As far from the optimum as `start` says."""
        return NoisyQuadraticState(self.start)

    def step(self, state: NoisyQuadraticState, action: Action, noise: Noise) -> tuple[NoisyQuadraticState, Measured]:
        """One update and the next batch."""
        lr = taken_lr(action)
        variance = state.variance
        if action.skipped != 1.0:
            left = 1.0 - lr * self.curvature
            variance = left * left * variance + lr * lr * self.gradient_sd * self.gradient_sd
        variance = min(_LARGEST_VARIANCE, variance)
        grad_norm = math.sqrt(self.curvature * self.curvature * variance + self.gradient_sd * self.gradient_sd)
        expected = self.floor + 0.5 * self.curvature * variance
        return NoisyQuadraticState(variance), shown(expected, self.noise_sd * noise.batch, grad_norm)
