"""Smooth law × instability × damage that no later learning rate heals: the combination that reality needs."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from lbw_sim.params import param, plant
from lbw_sim.simulate.instability import DEAD, LEAST_SWING, damaged, grown, wandered
from lbw_sim.simulate.plants import shown, taken_lr
from lbw_sim.simulate.powers import power
from lbw_sim.values import Action, Measured, Noise


class LastingDamageState(NamedTuple):
    """Progress, heat, swing, damage."""

    time: float
    """Learning rates summed up, each saturated."""
    heat: float
    """Recent learning rate, saturated; in [0, 1]."""
    swing: float
    """Amplitude of the instability; in [0.001, 1]."""
    damage: float
    """In [0, 1]; never falls."""
    drift: float
    """Where the critical learning rate has wandered to; standard deviations."""


@plant(version=2)
class LastingDamage:
    """A run that learns, overheats, and is damaged for good while its learning rate stays above a critical one.

    Healthy loss = floor + A (1 + p T)^-α + heat, T = Σ lr / (1 + lr / lr_saturation): a high rate costs at once and is
    forgiven once it falls. Above `critical_lr` a swing grows by (lr / critical_lr)² a step, at most fourfold, as at the
    edge of stability (38 over the sharpness, for AdamW; arXiv 2207.14484, 2209.15594). The swing raises the loss, and
    damages: each step takes hazard × swing × (lr / critical_lr) of what is still whole. The damaged share stays at
    `dead_loss`, makes no progress and never heals; above one half the run is dead. Below the critical rate nothing is
    damaged, ever.

    Found necessary on post-LN tiny GPTs, where a rate above ten times the best kills within tens of steps and no later
    cut helps, while a reversible plant ranked guards at random. The critical rate wanders from run to run and step to
    step by `critical_spread`, driven by `Noise.walk`.

    Cannot represent: damage by bad data at a harmless learning rate; slow recovery from damage; a critical rate that
    depends on the age of the run; deaths whose loss goes to another level than `dead_loss`.

    >>> plant = LastingDamage(critical_lr=0.02, critical_spread=0.0)
    >>> state = plant.init()
    >>> for lr in [0.2] * 40 + [1e-3] * 400:
    ...     state, measured = plant.step(state, Action(lr), Noise())
    >>> measured.dead
    1.0
    """

    # which parameter is the run-to-run spread of which: no expected loss depends on a spread
    SPREADS: ClassVar = {"critical_spread": "critical_lr"}

    floor: float = param(2.0, low=0.0, high=20.0, unit="nats", doc="loss after infinite training at a low rate")
    amplitude: float = param(2.5, low=0.0, high=100.0, unit="nats", doc="A: loss above the floor at the start")
    exponent: float = param(0.5, low=0.05, high=3.0, doc="α")
    pace: float = param(20.0, low=1e-2, high=1e5, doc="p: progress is measured in 1/p", log=True)
    lr_saturation: float = param(0.03, low=1e-5, high=10.0, doc="rate above which progress stops growing", log=True)
    heat_loss: float = param(
        0.5, low=0.0, high=20.0, unit="nats", doc="loss of an infinite learning rate, forgiven later"
    )
    heat_lr: float = param(0.1, low=1e-5, high=100.0, doc="rate that costs half of it", log=True)
    heat_steps: float = param(20.0, low=1.0, high=10_000.0, unit="steps", doc="how long heat lasts", log=True)
    critical_lr: float = param(0.02, low=1e-6, high=100.0, doc="rate above which the swing grows", log=True)
    critical_spread: float = param(0.1, low=0.0, high=1.0, doc="relative standard deviation of the critical rate")
    swing_loss: float = param(0.3, low=0.0, high=20.0, unit="nats", doc="loss of a full swing")
    hazard: float = param(
        0.02, low=1e-6, high=1.0, unit="1/step", doc="damage of a full swing at the critical rate", log=True
    )
    dead_loss: float = param(3.2, low=0.0, high=20.0, unit="nats", doc="loss of what is damaged")
    noise_sd: float = param(0.06, low=0.0, high=10.0, unit="nats", doc="standard deviation of a batch's difficulty")

    def init(self) -> LastingDamageState:
        """Whole and cold."""
        return LastingDamageState(0.0, 0.0, LEAST_SWING, 0.0, 0.0)

    def step(self, state: LastingDamageState, action: Action, noise: Noise) -> tuple[LastingDamageState, Measured]:
        """One update and the next batch."""
        lr = taken_lr(action)
        if action.skipped != 1.0:
            drift = wandered(state.drift, noise.walk)
            ratio = lr / (self.critical_lr * max(0.05, 1.0 + self.critical_spread * drift))
            swing = grown(state.swing, ratio)
            damage = damaged(state.damage, swing, ratio, self.hazard)
            time = state.time + (1.0 - damage) * lr / (1.0 + lr / self.lr_saturation)
            heat = state.heat + (lr / (lr + self.heat_lr) - state.heat) / self.heat_steps
            state = LastingDamageState(time, heat, swing, damage, drift)
        healthy = self.floor + self.amplitude * power(1.0 + self.pace * state.time, -self.exponent)
        healthy = healthy + self.heat_loss * state.heat + self.swing_loss * (state.swing - LEAST_SWING)
        expected = healthy + state.damage * max(0.0, self.dead_loss - healthy)
        return state, shown(expected, self.noise_sd * noise.batch, dead=1.0 if state.damage > DEAD else 0.0)
