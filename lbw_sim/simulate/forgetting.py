"""A power law of forgetting, kept as a bank of exponentials: a sum over all past steps at a fixed cost per step.

(1 + p x)^-b = 1/Γ(b) ∫ a^b exp(-a) exp(-a p x) d ln a, cut into octaves of the rate a p: every impulse is spread over
24 amounts that decay exponentially, each twice as fast as the one before. Because the octaves are fixed, an impulse may
bring a pace of its own. Rates below the slowest are taken not to decay at all: do not use it for x beyond the inverse
of the slowest rate, 65536 / pace. Rates above the fastest, 128 paces, are taken to be that. Tests measure the error
against the direct sum: below 2e-5 of the impulses in the Multi-Power law, below 1e-4 of the sum in the functional
scaling law.
"""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.simulate.powers import exponential, power

_SLOWEST = 2.0**-16
"""The slowest rate, in paces."""


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


def remembered(bank: Bank, impulse: float, elapsed: float, pace: float, exponent: float, delay: float = 0.0) -> Bank:
    """The bank after an impulse that will fade as (1 + pace · exp(-delay) · x)^-exponent, and an advance of x.

    `elapsed`: how far x advances, at most 1024 / `pace`; more counts as that. `pace` and `exponent` must stay what they
    are from step to step, `delay` need not: right between -5 and 6. An exponent below 0.0144 counts as that.

    >>> bank = remembered(Bank(), 1.0, 3.0, 1.0, 0.5)
    >>> abs(left(bank) - (1.0 + 3.0) ** -0.5) < 1e-5
    True
    """
    octave = max(1.01, power(2.0, exponent))
    # weights are in units of the slowest rate's: only their shares count. Below it a geometric series of octaves
    still = 1.0 / (octave - 1.0)
    total, weight, fade = still, 1.0, exponential(-_SLOWEST)
    for _ in bank[1:]:
        total = total + weight * fade
        weight = weight * octave
        fade = fade * fade
    # slower by e^delay, the weights move down the octaves, and what they add up to follows the power law
    slower = exponential(exponent * delay)
    share = impulse * slower * (1.0 / total)
    kept = ((bank.still + share * still),)
    fade = faded(_SLOWEST * exponential(delay))
    decay = faded(_SLOWEST * pace * elapsed)
    rest = total / slower - still
    weight = 1.0
    for amount in bank[1:-1]:
        part = weight * fade
        kept = (*kept, (amount + share * part) * decay)  # type: ignore[assignment]
        rest = rest - part
        weight = weight * octave
        fade = fade * fade
        decay = decay * decay
    # what would fade faster than the fastest rate
    kept = (*kept, (bank[24] + share * rest) * decay)  # type: ignore[assignment]
    return Bank(*kept)


def faded(x: float) -> float:
    """e to the power of -x, with x limited to [0, 1/64]; relative error below 2.3e-16.

    >>> round(faded(0.01), 12)
    0.990049833749
    """
    x = max(0.0, min(0.015625, x))
    # Taylor's series: the next term is below 5e-17
    rest = 1.0 / 24.0 - x * (1.0 / 120.0 - x * (1.0 / 720.0))
    return 1.0 - x * (1.0 - x * (0.5 - x * (1.0 / 6.0 - x * rest)))


def left(bank: Bank) -> float:
    """What all impulses still amount to."""
    total = 0.0
    for amount in bank:
        total = total + amount
    return total
