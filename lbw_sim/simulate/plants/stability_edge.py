"""Stability edge: curvature rises until the learning rate is too high for it; the swing that follows brings it down."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, plant
from lbw_sim.simulate.plants import shown, taken_lr
from lbw_sim.simulate.powers import power
from lbw_sim.values import Action, Measured, Noise

ADAMW_EDGE = 38.0
"""(2 + 2 β1) / (1 - β1) for β1 = 0.9: AdamW is unstable where preconditioned sharpness times lr exceeds it."""
_SMALLEST_SHARPNESS = 1e-6
_LARGEST_SWING = 1e60


class StabilityEdgeState(NamedTuple):
    """Curvature of the steepest direction, and the square of the swing along it."""

    lr_sum: float
    sharpness: float
    swing: float


@plant(version=2, emits=("loss", "grad_norm"))
class StabilityEdge:
    """Self-stabilising spikes at AdamW's edge of stability, on a falling loss.

    With r = 2 lr S / 38 the swing's square takes the factor (1 - r)² a step, so it grows where S lr > 38; it lowers the
    sharpness, which sharpens by itself otherwise: S ← S + S lr (sharpening - relief × swing). Expected loss = floor + A
    (1 + T)^-α + swing × weight. Sources: self-stabilisation, arXiv 2209.15594; the edge of AdamW, arXiv 2207.14484.

    Cannot represent: damage (every spike heals), noise that grows with lr, more than one unstable direction. It
    over-fires as every rule on the largest eigenvalue does: a spike needs the gradient to point that way (arXiv
    2506.04805).

    >>> edge = StabilityEdge(start_sharpness=1000.0)
    >>> state = edge.init()
    >>> high = edge.step(state, Action(0.05), Noise())[0].swing
    >>> low = edge.step(state, Action(0.03), Noise())[0].swing
    >>> high > state.swing > low
    True
    """

    floor: float = param(2.0, low=0.0, high=20.0, unit="nats", doc="loss after infinite training without swings")
    amplitude: float = param(1.0, low=0.0, high=100.0, unit="nats", doc="A: loss above the floor at the start")
    exponent: float = param(0.5, low=0.01, high=3.0, doc="α")
    start_sharpness: float = param(1000.0, low=1e-3, high=1e9, doc="preconditioned sharpness at the start", log=True)
    sharpening: float = param(0.2, low=0.0, high=1e4, doc="relative growth of the sharpness per unit of lr")
    relief: float = param(
        20.0, low=0.0, high=1e8, doc="relative fall of the sharpness per unit of lr and swing", log=True
    )
    kick: float = param(1e-8, low=1e-12, high=1.0, doc="square of what noise adds to the swing in a step", log=True)
    swing_loss: float = param(10.0, low=0.0, high=1e6, unit="nats", doc="loss of a unit of swing", log=True)
    noise_sd: float = param(0.03, low=0.0, high=10.0, unit="nats", doc="standard deviation of a batch's difficulty")

    def init(self) -> StabilityEdgeState:
        """No swing beyond the noise."""
        return StabilityEdgeState(0.0, self.start_sharpness, self.kick)

    def step(self, state: StabilityEdgeState, action: Action, noise: Noise) -> tuple[StabilityEdgeState, Measured]:
        """One update and the next batch."""
        lr = taken_lr(action)
        if action.skipped != 1.0:
            factor = 1.0 - 2.0 * lr * state.sharpness / ADAMW_EDGE
            kick = self.kick * min(100.0, noise.walk * noise.walk) if noise.walk == noise.walk else self.kick
            swing = min(_LARGEST_SWING, max(factor * factor * state.swing, 1e-3 * self.kick) + kick)
            # relief is limited: no single step takes more than half of the sharpness
            change = max(-0.5, min(0.5, lr * (self.sharpening - self.relief * state.swing)))
            sharpness = max(_SMALLEST_SHARPNESS, min(1e12, state.sharpness * (1.0 + change)))
            state = StabilityEdgeState(state.lr_sum + lr, sharpness, swing)
        expected = self.floor + self.amplitude * power(1.0 + state.lr_sum, -self.exponent)
        expected = expected + self.swing_loss * state.swing
        grad_norm = 1.0 + min(1e6, state.sharpness * state.swing)
        return state, shown(expected, self.noise_sd * noise.batch, grad_norm)
