"""Programs for the learning rate that make a plant identifiable: bump, ramp, drop and random dither.

A run at one schedule shows one loss per learning rate and age of the run; it cannot tell what a change would have done.
These programs multiply the schedule, at random only by the run's seed. They look at no loss: with the probability of
every random choice recorded, what follows a choice can be compared with what follows the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lbw_sim.errors import StressError, unknown_name

EXCITATION_CHANNELS = ("excitation_factor", "excitation_propensity")
"""Extra channels of an excited run: factor on the schedule; probability with which the program would have chosen it."""

KINDS: dict[str, str] = {
    "bump": "the learning rate times `factor` for `length_steps`, then back",
    "ramp": "the learning rate rises to `factor` times the schedule over `length_steps`, then falls back at once",
    "drop": "the learning rate divided by `factor` from the onset to the end",
    "dither": "every `length_steps` one of 1/factor, 1/√factor, 1, √factor, factor, at random",
}
"""Every program and what it does."""

DITHER_PROBABILITIES = (0.15, 0.2, 0.3, 0.2, 0.15)
"""Of the five levels, lowest first."""


@dataclass(frozen=True, kw_only=True)
class Excitation:
    """One program. Raises StressError when it makes no sense.

    >>> Excitation(kind="bump", onset_step=10, length_steps=5, factor=4.0).factor_at(12, seed=0)
    (4.0, 1.0)
    """

    kind: str
    onset_step: int = 100
    length_steps: int = 20
    factor: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise StressError(unknown_name("excitation", self.kind, KINDS))
        if self.onset_step < 0 or self.length_steps < 1 or not (1.0 < self.factor <= 1000.0):
            raise StressError(
                f"excitation {self.kind!r}: onset_step={self.onset_step} has to be at least 0, length_steps="
                f"{self.length_steps} at least 1, factor={self.factor} above 1 and at most 1000"
            )

    def factor_at(self, step: int, seed: int) -> tuple[float, float]:
        """Factor on the scheduled learning rate of a step, and the probability with which it was chosen."""
        since = step - self.onset_step
        if self.kind == "dither":
            draw = np.random.default_rng((11, seed, step // self.length_steps)).choice(5, p=DITHER_PROBABILITIES)
            return float(self.factor ** ((int(draw) - 2) / 2.0)), DITHER_PROBABILITIES[int(draw)]
        if since < 0:
            return 1.0, 1.0
        if self.kind == "drop":
            return 1.0 / self.factor, 1.0
        if since >= self.length_steps:
            return 1.0, 1.0
        if self.kind == "bump":
            return self.factor, 1.0
        return float(self.factor ** ((since + 1) / self.length_steps)), 1.0

    def active(self, step: int) -> bool:
        """Whether the program changes anything from this step to the next, and the step is marked in the trace."""
        return self.kind == "dither" or self.onset_step <= step < self.onset_step + self.length_steps
