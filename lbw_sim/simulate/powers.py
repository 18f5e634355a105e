"""Exponential, logarithm and power from + - * / and the exact split of a float into fraction and exponent.

The machine's own exp, log and pow differ by a rounding between libraries, are no vector instructions, and so would cost
a plant both its equal bits on every machine and its lanes. `math.frexp` and `math.ldexp` only move bits: they are exact
everywhere, and have lanes. These cover what a plant needs and no more: arguments are bounded first, as said below, and
there is no answer for numbers that are not positive. Polynomials and split of ln 2: fdlibm, e_log.c and e_exp.c.
"""

from __future__ import annotations

import math

_LN2_HIGH = 6.93147180369123816490e-01
"""The leading bits of ln 2: times a whole number below 2**20 it is exact."""
_LN2_LOW = 1.90821492927058770002e-10
_LOG2_E = 1.44269504088896338700
_ROOT_HALF = 0.7071067811865476

LARGEST_EXPONENT = 40.0
"""exp is taken of at most this, either way: beyond it a plant has nothing to tell."""
SMALLEST, LARGEST = 1e-12, 1e12
"""Logarithms are taken between these."""


def exponential(x: float) -> float:
    """e to the power of x, with x limited to ±40; relative error below 2.3e-16.

    >>> exponential(-1.0) == math.exp(-1.0)
    True
    """
    bounded = max(-LARGEST_EXPONENT, min(LARGEST_EXPONENT, x))
    octaves = math.floor(bounded * _LOG2_E + 0.5)
    # half of ln 2 at most, either way: said so that the compiled form need not look for zero divisors and overflow
    high = max(-0.35, min(0.35, bounded - octaves * _LN2_HIGH))
    low = octaves * _LN2_LOW
    rest = high - low
    t = rest * rest
    even = 1.66666666666666019037e-01 + t * t * (6.61375632143793436117e-05 + t * t * 4.13813679705723846039e-08)
    odd = -2.77777777770155933842e-03 + t * t * -1.65339022054652515390e-06
    c = rest - t * (even + t * odd)
    return math.ldexp(1.0 - ((low - (rest * c) / (2.0 - c)) - high), octaves)


def logarithm(x: float) -> float:
    """Natural logarithm of x limited to [1e-12, 1e12]; relative error below 2.3e-16.

    >>> logarithm(10.0) == math.log(10.0)
    True
    """
    fraction, exponent = math.frexp(max(SMALLEST, min(LARGEST, x)))
    if fraction < _ROOT_HALF:
        fraction, exponent = fraction + fraction, exponent - 1
    f = fraction - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    odd = 6.666666666666735130e-01 + w * (
        2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)
    )
    even = 3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01)
    half = 0.5 * f * f
    series = s * (half + (z * odd + w * even))
    return exponent * _LN2_HIGH - ((half - (series + exponent * _LN2_LOW)) - f)


def power(base: float, exponent: float) -> float:
    """base to the power of exponent, within the limits of `logarithm` and `exponential`.

    Relative error below 4e-16 + 2.3e-16 |exponent · ln(base)|.

    >>> abs(power(2.0, -0.5) - 2.0**-0.5) < 1e-15
    True
    """
    return exponential(exponent * logarithm(base))
