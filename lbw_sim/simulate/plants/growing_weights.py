"""Lasting damage by degrees: a step counts for what it is beside the weights, and every step makes the weights grow."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

from lbw_sim.params import param, plant
from lbw_sim.simulate.instability import DEAD, LEAST_SWING, damaged, grown, wandered
from lbw_sim.simulate.plants import shown, taken_lr
from lbw_sim.simulate.powers import power
from lbw_sim.values import Action, Measured, Noise

_LARGEST = 1e12


class GrowingWeightsState(NamedTuple):
    """Progress, size, heat, swing, damage."""

    time: float
    """Relative learning rates summed up, each saturated."""
    square: float
    """Square of the weights' size, in units of the initial one; never falls."""
    heat: float
    """Recent relative rate, saturated; in [0, 1]."""
    swing: float
    """Amplitude of the instability; in [0.001, 1]."""
    damage: float
    """In [0, 1]; never falls."""
    drift: float
    """Where the critical rate has wandered to; standard deviations."""


@plant(version=2)
class GrowingWeights:
    """`lasting_damage` on a relative learning rate, and weights that wear.

    size² ← size² + (lr / weight_size)²: under Adam every weight moves by about lr, and moves add up as in a random
    walk. All else sees r = lr / size (of normalised weights only the direction counts: arXiv 1706.05350). Healthy loss
    = floor + A (1 + p T)^-α + heat + wear_loss (1 - 1/size), T = Σ r / (1 + r / lr_saturation). So a high rate early in
    the run is the most dangerous, leaves weights on which no later rate does much, and costs by degrees; heat, swing
    and the damage above a critical rate are those of `lasting_damage`, which this is where `weight_size` is large.

    On pre-LN tiny GPTs no run dies, and yet no later cut brings back what thirty steps at a high rate cost; there, and
    on post-LN ones, `weight_size` is fitted at 0.2 to 0.6 and the RMS of the initial weights is 0.18.

    Cannot represent: weight decay that shrinks the weights again; damage by bad data at a harmless rate.

    >>> plant = GrowingWeights(critical_lr=1.0)
    >>> early = late = plant.init()
    >>> for step in range(200):
    ...     early, measured = plant.step(early, Action(0.2 if step < 20 else 0.01), Noise())
    ...     late, other = plant.step(late, Action(0.2 if 100 <= step < 120 else 0.01), Noise())
    >>> measured.expected_loss > other.expected_loss + 0.01
    True
    """

    # which parameter is the run-to-run spread of which: no expected loss depends on a spread
    SPREADS: ClassVar = {"critical_spread": "critical_lr"}

    floor: float = param(1.8, low=0.0, high=20.0, unit="nats", doc="loss after infinite training at a low rate")
    amplitude: float = param(3.7, low=0.0, high=100.0, unit="nats", doc="A: loss above the floor at the start")
    exponent: float = param(0.32, low=0.05, high=3.0, doc="α")
    pace: float = param(230.0, low=1e-2, high=1e5, doc="p: progress is measured in 1/p", log=True)
    lr_saturation: float = param(
        0.02, low=1e-5, high=10.0, doc="relative rate above which progress saturates", log=True
    )
    weight_size: float = param(0.2, low=1e-4, high=1e4, doc="initial size of the weights, in learning rates", log=True)
    wear_loss: float = param(0.7, low=0.0, high=20.0, unit="nats", doc="loss of weights grown without end")
    heat_loss: float = param(2.0, low=0.0, high=20.0, unit="nats", doc="loss of an endless rate, forgiven later")
    heat_lr: float = param(0.3, low=1e-5, high=100.0, doc="relative rate that costs half of it", log=True)
    heat_steps: float = param(8.0, low=1.0, high=10_000.0, unit="steps", doc="how long heat lasts", log=True)
    critical_lr: float = param(0.02, low=1e-6, high=100.0, doc="relative rate above which the swing grows", log=True)
    critical_spread: float = param(0.1, low=0.0, high=1.0, doc="relative standard deviation of the critical rate")
    swing_loss: float = param(0.02, low=0.0, high=20.0, unit="nats", doc="loss of a full swing")
    hazard: float = param(0.01, low=1e-6, high=1.0, unit="1/step", doc="damage of a full swing", log=True)
    dead_loss: float = param(3.2, low=0.0, high=20.0, unit="nats", doc="loss of what is damaged")
    noise_sd: float = param(0.06, low=0.0, high=10.0, unit="nats", doc="standard deviation of a batch's difficulty")

    def init(self) -> GrowingWeightsState:
        """Whole, cold and small."""
        return GrowingWeightsState(0.0, 1.0, 0.0, LEAST_SWING, 0.0, 0.0)

    def step(self, state: GrowingWeightsState, action: Action, noise: Noise) -> tuple[GrowingWeightsState, Measured]:
        """One update and the next batch."""
        lr = taken_lr(action)
        if action.skipped != 1.0:
            drift = wandered(state.drift, noise.walk)
            relative = lr / math.sqrt(state.square)
            ratio = relative / (self.critical_lr * max(0.05, 1.0 + self.critical_spread * drift))
            swing = grown(state.swing, ratio)
            damage = damaged(state.damage, swing, ratio, self.hazard)
            time = state.time + (1.0 - damage) * relative / (1.0 + relative / self.lr_saturation)
            heat = state.heat + (relative / (relative + self.heat_lr) - state.heat) / self.heat_steps
            stride = lr / self.weight_size
            square = min(_LARGEST, state.square + stride * stride)
            state = GrowingWeightsState(time, square, heat, swing, damage, drift)
        healthy = self.floor + self.amplitude * power(1.0 + self.pace * state.time, -self.exponent)
        healthy = healthy + self.heat_loss * state.heat + self.swing_loss * (state.swing - LEAST_SWING)
        healthy = healthy + self.wear_loss * (1.0 - 1.0 / math.sqrt(state.square))
        expected = healthy + state.damage * max(0.0, self.dead_loss - healthy)
        return state, shown(expected, self.noise_sd * noise.batch, dead=1.0 if state.damage > DEAD else 0.0)
