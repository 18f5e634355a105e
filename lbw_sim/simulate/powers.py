"""Exponential, logarithm and power from + - * / and square root alone.

The machine's own exp, log and pow differ by a rounding between libraries, are no vector instructions, and so would cost
a plant both its equal bits on every machine and its lanes. These cover what a plant needs and no more: arguments are
bounded first, as said below, and there is no answer for numbers that are not positive.
"""

from __future__ import annotations

import math

_ROOTS = (1, 2, 3, 4, 5, 6)
# the series below are cut where the next term no longer counts in float64 for the arguments that reach them
_EXPONENTIAL = tuple(1.0 / math.factorial(n) for n in range(14, -1, -1))
_ARC_TANGENT = tuple(1.0 / (2 * n + 1) for n in range(11, -1, -1))

LARGEST_EXPONENT = 40.0
"""exp is taken of at most this, either way: beyond it a plant has nothing to tell."""
SMALLEST, LARGEST = 1e-12, 1e12
"""Logarithms are taken between these."""


def exponential(x: float) -> float:
    """e to the power of x, with x limited to ±40; relative error below 2e-14.

    >>> abs(exponential(-1.0) - math.exp(-1.0)) < 1e-15
    True
    """
    part = max(-LARGEST_EXPONENT, min(LARGEST_EXPONENT, x)) / 64.0
    value = 0.0
    for coefficient in _EXPONENTIAL:
        value = value * part + coefficient
    for _ in _ROOTS:
        value = value * value
    return value


def logarithm(x: float) -> float:
    """Natural logarithm of x limited to [1e-12, 1e12]; absolute error below 4e-14.

    >>> abs(logarithm(10.0) - math.log(10.0)) < 1e-14
    True
    """
    root = max(SMALLEST, min(LARGEST, x))
    for _ in _ROOTS:
        root = math.sqrt(root)
    ratio = (root - 1.0) / (root + 1.0)
    square = ratio * ratio
    value = 0.0
    for coefficient in _ARC_TANGENT:
        value = value * square + coefficient
    return 128.0 * ratio * value


def power(base: float, exponent: float) -> float:
    """base to the power of exponent, within the limits of `logarithm` and `exponential`.

    >>> abs(power(2.0, -0.5) - 2.0**-0.5) < 1e-15
    True
    """
    return exponential(exponent * logarithm(base))
