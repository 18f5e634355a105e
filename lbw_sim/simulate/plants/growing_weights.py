"""Steps count relative to the weights, and steps make the weights grow: damage by degrees, beside the sudden one."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

from lbw_sim.params import param, plant
from lbw_sim.simulate.plants import shown, taken_lr
from lbw_sim.simulate.powers import power
from lbw_sim.values import Action, Measured, Noise

_LEAST_SWING = 1e-3
_FASTEST_GROWTH = 4.0
_DRIFT_MEMORY = 0.98
_DRIFT_STEP = 0.199
"""√(1 - 0.98²): the drift has variance 1."""
_LARGEST = 1e12
DEAD = 0.5
"""Share of damage from which on a run counts as dead."""


class GrowingWeightsState(NamedTuple):
    """Progress, size, heat, swing, damage."""

    time: float
    square: float
    """Square of the weights' size, in units of the initial one."""
    heat: float
    swing: float
    damage: float
    drift: float


@plant(version=1)
class GrowingWeights:
    """doc"""

    SPREADS: ClassVar = {"critical_spread": "critical_lr"}

    floor: float = param(2.0, low=0.0, high=20.0, unit="nats", doc="loss after infinite training at a low rate")
    amplitude: float = param(2.5, low=0.0, high=100.0, unit="nats", doc="A: loss above the floor at the start")
    exponent: float = param(0.5, low=0.05, high=3.0, doc="α")
    pace: float = param(100.0, low=1e-2, high=1e5, doc="p: progress is measured in 1/p", log=True)
    lr_saturation: float = param(0.03, low=1e-5, high=10.0, doc="rate above which progress stops growing", log=True)
    weight_size: float = param(0.3, low=1e-4, high=1e4, doc="initial size of the weights, in learning rates", log=True)
    wear_loss: float = param(0.2, low=0.0, high=20.0, unit="nats", doc="loss of weights grown without end")
    heat_loss: float = param(0.5, low=0.0, high=20.0, unit="nats", doc="loss of an infinite rate, forgiven later")
    heat_lr: float = param(0.1, low=1e-5, high=100.0, doc="rate that costs half of it", log=True)
    heat_steps: float = param(20.0, low=1.0, high=10_000.0, unit="steps", doc="how long heat lasts", log=True)
    critical_lr: float = param(0.02, low=1e-6, high=100.0, doc="rate above which the swing grows", log=True)
    critical_spread: float = param(0.1, low=0.0, high=1.0, doc="relative standard deviation of the critical rate")
    swing_loss: float = param(0.3, low=0.0, high=20.0, unit="nats", doc="loss of a full swing")
    hazard: float = param(0.02, low=1e-6, high=1.0, unit="1/step", doc="damage of a full swing", log=True)
    dead_loss: float = param(3.2, low=0.0, high=20.0, unit="nats", doc="loss of what is damaged")
    noise_sd: float = param(0.06, low=0.0, high=10.0, unit="nats", doc="standard deviation of a batch's difficulty")

    def init(self) -> GrowingWeightsState:
        """Whole, cold and small."""
        return GrowingWeightsState(0.0, 1.0, 0.0, _LEAST_SWING, 0.0, 0.0)

    def step(self, state: GrowingWeightsState, action: Action, noise: Noise) -> tuple[GrowingWeightsState, Measured]:
        """One update and the next batch."""
        lr = taken_lr(action)
        if action.skipped != 1.0:
            walk = max(-10.0, min(10.0, noise.walk)) if noise.walk == noise.walk else 0.0
            drift = _DRIFT_MEMORY * state.drift + _DRIFT_STEP * walk
            relative = lr / math.sqrt(state.square)
            ratio = relative / (self.critical_lr * max(0.05, 1.0 + self.critical_spread * drift))
            swing = min(1.0, max(_LEAST_SWING, state.swing * min(_FASTEST_GROWTH, ratio * ratio)))
            harm = min(1.0, self.hazard * (swing - _LEAST_SWING) * min(100.0, ratio))
            damage = min(1.0, state.damage + (1.0 - state.damage) * harm)
            time = state.time + (1.0 - damage) * relative / (1.0 + relative / self.lr_saturation)
            heat = state.heat + (relative / (relative + self.heat_lr) - state.heat) / self.heat_steps
            stride = lr / self.weight_size
            square = min(_LARGEST, state.square + stride * stride)
            state = GrowingWeightsState(time, square, heat, swing, damage, drift)
        healthy = self.floor + self.amplitude * power(1.0 + self.pace * state.time, -self.exponent)
        healthy = healthy + self.heat_loss * state.heat + self.swing_loss * (state.swing - _LEAST_SWING)
        healthy = healthy + self.wear_loss * (1.0 - 1.0 / math.sqrt(state.square))
        expected = healthy + state.damage * max(0.0, self.dead_loss - healthy)
        return state, shown(expected, self.noise_sd * noise.batch, dead=1.0 if state.damage > DEAD else 0.0)
