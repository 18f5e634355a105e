"""Multi-Power law: what a cut of the learning rate gains grows as a power law of the training after it."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, plant
from lbw_sim.simulate.forgetting import Bank, left, remembered
from lbw_sim.simulate.plants import shown, taken_lr
from lbw_sim.simulate.powers import logarithm, power
from lbw_sim.values import Action, Measured, Noise


class MultiPowerLawState(NamedTuple):
    """Sums over the steps so far."""

    lr_sum: float
    gained: float
    """Sum of all falls of the learning rate: what their gains grow towards."""
    pending: Bank
    """The part that has not yet paid out."""
    previous_lr: float
    """0 before the first step."""


@plant(version=3)
class MultiPowerLaw:
    """L = floor + A S1^-α - B Σ_k (lr_(k-1) - lr_k) G(lr_k^-γ S_k), G(x) = 1 - (1 + C x)^-β (arXiv 2503.12811).

    S1 is the sum of learning rates, `start_lr_sum` of the warm-up included; S_k that from step k on. The sum over all
    past k is kept as a bank of exponentials (`simulate.forgetting`); `tests/simulate` measures its error against the
    direct sum: below 2e-5 of B times the falls, for falls to a hundredth of `reference_lr` at γ up to 0.65. Where
    (reference_lr / lr)^γ nears 128 a fall pays out too late: to a thousandth at γ = 0.65 by up to 5e-2. Beyond
    S = 65536 / `pace` nothing pays out any more. A skipped step counts for nothing.

    Cannot represent: divergence, spikes or damage. Fitted on cosine and constant schedules it predicts a sudden cut to
    a third within some 10 to 35 % of its effect, and a cut to a tenth hardly at all (docs/results/lr_cut_effect.md).

    >>> law = MultiPowerLaw(floor=2.0, amplitude=1.0, exponent=0.5, start_lr_sum=0.25)
    >>> round(law.step(law.init(), Action(0.75), Noise())[1].expected_loss, 12)
    3.0
    """

    floor: float = param(2.5, low=0.0, high=20.0, unit="nats", doc="loss after infinite training")
    amplitude: float = param(0.5, low=0.0, high=100.0, unit="nats", doc="A: loss above the floor at S1 = 1", log=True)
    exponent: float = param(0.5, low=0.01, high=3.0, doc="α")
    annealing_gain: float = param(500.0, low=0.0, high=1e6, unit="nats", doc="B: gain of a unit of fall", log=True)
    pace: float = param(60.0, low=1e-3, high=1e4, doc="C reference_lr^-γ: C at the reference learning rate", log=True)
    annealing_exponent: float = param(0.5, low=0.05, high=2.0, doc="β")
    lr_exponent: float = param(0.5, low=0.0, high=1.5, doc="γ: a fall to a lower learning rate pays out sooner in S")
    start_lr_sum: float = param(0.3, low=1e-9, high=1e6, doc="S1 before the first step, as of a warm-up", log=True)
    reference_lr: float = param(3e-4, low=1e-9, high=10.0, doc="peak learning rate, of which `pace` holds", log=True)
    noise_sd: float = param(0.03, low=0.0, high=10.0, unit="nats", doc="standard deviation of a batch's difficulty")

    def init(self) -> MultiPowerLawState:
        """Nothing annealed."""
        return MultiPowerLawState(self.start_lr_sum, 0.0, Bank(), 0.0)

    def step(self, state: MultiPowerLawState, action: Action, noise: Noise) -> tuple[MultiPowerLawState, Measured]:
        """One update and the next batch."""
        lr = taken_lr(action)
        moved = action.skipped != 1.0
        # a fall of 0 and an advance of 0 leave the bank as it is: cheaper than choosing between two banks
        elapsed = lr if moved else 0.0
        fall = state.previous_lr - lr if moved and state.previous_lr > 0.0 else 0.0
        delay = self.lr_exponent * logarithm(max(lr * (1.0 / self.reference_lr), 0.001))
        pending = remembered(state.pending, fall, elapsed, self.pace, self.annealing_exponent, delay)
        state = MultiPowerLawState(
            state.lr_sum + elapsed, state.gained + fall, pending, lr if moved else state.previous_lr
        )
        expected = self.floor + self.amplitude * power(state.lr_sum, -self.exponent)
        expected = expected - self.annealing_gain * (state.gained - left(state.pending))
        return state, shown(expected, self.noise_sd * noise.batch)
