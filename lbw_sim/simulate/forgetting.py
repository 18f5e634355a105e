"""A power law of forgetting, kept as a bank of exponentials: a sum over all past steps at a fixed cost per step.

(1 + p x)^-b = 1/Γ(b) ∫ a^b exp(-a) exp(-a p x) d ln a, cut into octaves of the rate a p: every impulse is spread over
24 amounts that decay exponentially, each twice as fast as the one before. Because the octaves are fixed, an impulse may
bring a pace p of its own. Rates below the slowest are taken not to decay at all: do not use it for x beyond the inverse
of the slowest rate. Tests measure the error against the direct sum: below 1e-5 of the impulses in the
Multi-Power law, below 1e-4 of the sum in the functional scaling law.
"""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.simulate.powers import exponential, power


class Bank(NamedTuple):
    """What is left of all impulses, by rate: `rate0` the slowest, each further one an octave faster."""

    still: float = 0.0
    """What lies below the slowest rate and stays."""
    rate0: float = 0.0
    rate1: float = 0.0
    rate2: float = 0.0
    rate3: float = 0.0
    rate4: float = 0.0
    rate5: float = 0.0
    rate6: float = 0.0
    rate7: float = 0.0
    rate8: float = 0.0
    rate9: float = 0.0
    rate10: float = 0.0
    rate11: float = 0.0
    rate12: float = 0.0
    rate13: float = 0.0
    rate14: float = 0.0
    rate15: float = 0.0
    rate16: float = 0.0
    rate17: float = 0.0
    rate18: float = 0.0
    rate19: float = 0.0
    rate20: float = 0.0
    rate21: float = 0.0
    rate22: float = 0.0
    rate23: float = 0.0


def remembered(bank: Bank, impulse: float, elapsed: float, slowest: float, pace: float, exponent: float) -> Bank:
    """The bank after an impulse that will fade as (1 + pace · x)^-exponent, and then an advance of x by `elapsed`.

    `slowest` is the lowest rate, in 1/x; `pace` should lie between 2^10 and 2^19 times it. An exponent below 0.0144
    counts as that.

    >>> bank = remembered(Bank(), 1.0, 3.0, 1e-4, 1.0, 0.5)
    >>> abs(left(bank) - (1.0 + 3.0) ** -0.5) < 1e-5
    True
    """
    octave = max(1.01, power(2.0, exponent))
    fade = exponential(-slowest / pace)
    # weights are in units of the slowest rate's: only their shares count. Below it a geometric series of octaves
    still = 1.0 / (octave - 1.0)
    weight, total = 1.0, still
    weights = ()
    for _ in bank[1:]:
        weights = (*weights, weight * fade)  # type: ignore[assignment]
        total = total + weight * fade
        weight = weight * octave
        fade = fade * fade
    share = impulse / total
    decay = exponential(-slowest * elapsed)
    kept = (bank.still + share * still,)
    for i in range(24):
        kept = (*kept, (bank[i + 1] + share * weights[i]) * decay)  # type: ignore[assignment]
        decay = decay * decay
    return Bank(*kept)


def left(bank: Bank) -> float:
    """What all impulses still amount to."""
    total = 0.0
    for amount in bank:
        total = total + amount
    return total
