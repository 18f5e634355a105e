"""Tissue's law: loss as a power of the learning rates summed up, less what annealing gains."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, plant
from lbw_sim.simulate.plants import shown, taken_lr
from lbw_sim.simulate.powers import power
from lbw_sim.values import Action, Measured, Noise


class TissueLawState(NamedTuple):
    """Sums over the steps so far."""

    lr_sum: float
    momentum: float
    annealing: float
    previous_lr: float
    """0 before the first step."""


@plant(version=2)
class TissueLaw:
    """L = floor + A S1^-α - C S2 (Tissue et al. 2024, arXiv 2408.11029).

    S1 is the sum of learning rates; S2 the sum of m_i with m_i = λ m_(i-1) + (lr_(i-1) - lr_i): a fall of the learning
    rate pays out over 1/(1 - λ) steps. A skipped step counts for nothing.

    Cannot represent: divergence, spikes or damage (a learning rate a hundred times too high is only progress); a gain
    from a cut that depends on how long one trains on; an optimum of the learning rate that moves.

    >>> law = TissueLaw(floor=2.0, amplitude=1.0, exponent=0.5, annealing_gain=0.0, start_lr_sum=0.25)
    >>> round(law.step(law.init(), Action(0.75), Noise())[1].expected_loss, 12)
    3.0
    """

    floor: float = param(2.5, low=0.0, high=20.0, unit="nats", doc="loss after infinite training")
    amplitude: float = param(0.5, low=0.0, high=100.0, unit="nats", doc="A: loss above the floor at S1 = 1", log=True)
    exponent: float = param(0.5, low=0.01, high=3.0, doc="α")
    annealing_gain: float = param(500.0, low=0.0, high=1e6, unit="nats", doc="C: what a unit of S2 gains", log=True)
    memory: float = param(0.999, low=0.5, high=0.99999, doc="λ, per step")
    start_lr_sum: float = param(0.3, low=1e-9, high=1e6, doc="S1 before the first step, as of a warm-up", log=True)
    noise_sd: float = param(0.03, low=0.0, high=10.0, unit="nats", doc="standard deviation of a batch's difficulty")

    def init(self) -> TissueLawState:
        """Nothing annealed."""
        return TissueLawState(self.start_lr_sum, 0.0, 0.0, 0.0)

    def step(self, state: TissueLawState, action: Action, noise: Noise) -> tuple[TissueLawState, Measured]:
        """One update and the next batch."""
        lr = taken_lr(action)
        if action.skipped != 1.0:
            fall = state.previous_lr - lr if state.previous_lr > 0.0 else 0.0
            momentum = self.memory * state.momentum + fall
            state = TissueLawState(state.lr_sum + lr, momentum, state.annealing + momentum, lr)
        expected = self.floor + self.amplitude * power(state.lr_sum, -self.exponent)
        expected = expected - self.annealing_gain * state.annealing
        return state, shown(expected, self.noise_sd * noise.batch)
