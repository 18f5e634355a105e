"""Functional scaling law: a signal that is learned in intrinsic time, and noise that is forgotten in it."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, plant
from lbw_sim.simulate.forgetting import Bank, left, remembered
from lbw_sim.simulate.plants import shown, taken_lr
from lbw_sim.simulate.powers import power
from lbw_sim.values import Action, Measured, Noise


class FunctionalScalingState(NamedTuple):
    """Intrinsic time, and the noise taken in and not yet forgotten."""

    time: float
    noise: Bank


@plant(version=3)
class FunctionalScaling:
    """L = floor + A (1 + p T)^-s + N Σ_k lr_k² (1 + p (T - T_k))^-q, T the sum of learning rates (arXiv 2509.19189).

    There q = 2 - 1/β, β > 1 being the capacity exponent of the problem; here q is fitted. The sum is kept as a bank of
    exponentials (`simulate.forgetting`). Unlike the annealing laws it knows that a constant high learning rate costs:
    noise grows with lr. A skipped step counts for nothing.

    Cannot represent: divergence, spikes or damage; derived for SGD on a kernel model, so for AdamW the form is
    borrowed.

    >>> law = FunctionalScaling(floor=2.0, amplitude=1.0, pace=3.0, exponent=0.5, noise=0.0)
    >>> round(law.step(law.init(), Action(1.0), Noise())[1].expected_loss, 12)
    2.5
    """

    floor: float = param(2.5, low=0.0, high=20.0, unit="nats", doc="loss after infinite training without noise")
    amplitude: float = param(
        4.0, low=0.0, high=100.0, unit="nats", doc="A: loss above the floor at the start", log=True
    )
    exponent: float = param(0.5, low=0.01, high=3.0, doc="s")
    pace: float = param(30.0, low=1e-3, high=1e7, doc="p: intrinsic time is measured in 1/p", log=True)
    noise: float = param(1e4, low=0.0, high=1e10, doc="N: loss per squared learning rate", log=True)
    forgetting: float = param(1.3, low=0.2, high=2.0, doc="q")
    noise_sd: float = param(0.03, low=0.0, high=10.0, unit="nats", doc="standard deviation of a batch's difficulty")

    def init(self) -> FunctionalScalingState:
        """Before the first step."""
        return FunctionalScalingState(0.0, Bank())

    def step(
        self, state: FunctionalScalingState, action: Action, noise: Noise
    ) -> tuple[FunctionalScalingState, Measured]:
        """One update and the next batch."""
        # an impulse of 0 and an advance of 0 leave the bank as it is: cheaper than choosing between two banks
        lr = taken_lr(action) if action.skipped != 1.0 else 0.0
        bank = remembered(state.noise, lr * lr, lr, self.pace, self.forgetting)
        state = FunctionalScalingState(state.time + lr, bank)
        signal = self.amplitude * power(1.0 + self.pace * state.time, -self.exponent)
        return state, shown(self.floor + signal + self.noise * left(state.noise), self.noise_sd * noise.batch)
