"""Intervals over seeds, a paired test and ranks with critical differences: short enough to stand here, so no scipy.

They tell how far what was measured is from chance in these runs. They know nothing of models, texts and budgets that
were not run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.values import nan

LEVEL = 0.95
MOST_FLIPS = 4096
"""Sign patterns that are all tried; with more, so many are drawn."""


class Estimate(NamedTuple):
    """A mean over seeds and its interval at `LEVEL`, by Student's t."""

    mean: float
    low: float
    """nan with fewer than two seeds."""
    high: float
    values: int

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2.0


class Ranks(NamedTuple):
    """Methods ranked within blocks (Demšar, JMLR 7, 2006); rank 1 is the lowest loss."""

    methods: tuple[str, ...]
    """Best first."""
    mean_ranks: tuple[float, ...]
    blocks: int
    p: float
    """Of the Friedman test in the form of Iman and Davenport: that all methods are alike."""
    critical_difference: float
    """Nemenyi: mean ranks nearer than this are not told apart at `LEVEL`."""


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Mean and t interval of values that are independent of each other; nan as soon as one of them is.

    >>> mean_estimate([1.0, 2.0, 3.0])
    Estimate(mean=2.0, low=-0.4841377118, high=4.4841377118, values=3)
    >>> mean_estimate([1.0])
    Estimate(mean=1.0, low=nan, high=nan, values=1)
    """
    count = len(values)
    if not count or any(math.isnan(value) for value in values):
        return Estimate(nan, nan, nan, count)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, nan, nan, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = student_quantile(0.5 + LEVEL / 2.0, count - 1) * deviation / math.sqrt(count)
    # ten digits: the quantile is no better, and every machine prints the same
    return Estimate(mean, round(mean - half, 10), round(mean + half, 10), count)


def sign_flip_p(sums: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of a mean difference, when under the null hypothesis each block's sum could as well be its negative.

    `sums`: for each block of pairs that share something (weights, data) the sum of its differences. All sign patterns
    are tried up to `MOST_FLIPS` of them; with more, that many are drawn. With three blocks p cannot be below 0.25. nan
    without blocks, or when a sum is not finite.

    >>> sign_flip_p([-1.0, -2.0, -1.5])
    0.25
    """
    values = np.asarray(sums, dtype=float)
    if not values.size or not np.isfinite(values).all():
        return nan
    observed = abs(float(values.sum())) * (1.0 - 1e-12)
    if 2**values.size <= MOST_FLIPS:
        patterns = (np.arange(2**values.size)[:, None] >> np.arange(values.size)) & 1
        return float((np.abs((1.0 - 2.0 * patterns) @ values) >= observed).mean())
    drawn = np.random.default_rng(seed).integers(0, 2, (MOST_FLIPS - 1, values.size))
    hits = int((np.abs((1.0 - 2.0 * drawn) @ values) >= observed).sum())
    return (1 + hits) / MOST_FLIPS


def rank_methods(methods: Sequence[str], losses: NDArray[np.float64]) -> Ranks:
    """Rank `losses` [blocks, methods] within each block; equal losses share their ranks.

    p and critical difference are nan with fewer than two blocks or methods.

    >>> rank_methods(["a", "b"], np.array([[1.0, 2.0], [1.5, 1.5]])).mean_ranks
    (1.25, 1.75)
    """
    blocks, count = losses.shape
    ranks = np.array([_ranks(row) for row in losses]).reshape(blocks, count)
    mean = ranks.mean(axis=0) if blocks else np.full(count, nan)
    order = np.argsort(mean, kind="stable")
    p = difference = nan
    if blocks > 1 and count > 1:
        between = blocks * float(((mean - (count + 1) / 2.0) ** 2).sum())
        within = float(((ranks - (count + 1) / 2.0) ** 2).sum())
        if within > 0.0:
            # with ties divided out; equal to Friedman's statistic over blocks × (count - 1)
            share = between / within
            ratio = math.inf if share >= 1.0 else (blocks - 1) * share / (1.0 - share)
            p = _f_survival(ratio, count - 1, (count - 1) * (blocks - 1))
        difference = studentized_range(count) / math.sqrt(2.0) * math.sqrt(count * (count + 1) / (6.0 * blocks))
    return Ranks(
        tuple(methods[place] for place in order), tuple(float(mean[place]) for place in order), blocks, p, difference
    )


def student_quantile(p: float, degrees: int) -> float:
    """Quantile of Student's t, for p in (0.5, 1).

    >>> round(student_quantile(0.975, 2), 6)
    4.302653
    """

    def survival(t: float) -> float:
        return 0.5 * _regularised_beta(degrees / 2.0, 0.5, degrees / (degrees + t * t))

    return _falling_to(survival, 1.0 - p)


def studentized_range(count: int, level: float = LEVEL) -> float:
    """Quantile of the range of `count` standard normal draws (infinite degrees of freedom).

    >>> round(studentized_range(2), 3), round(studentized_range(10), 3)
    (2.772, 4.474)
    """
    z = np.linspace(-8.0, 8.0, 4001)
    density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in z])

    def survival(width: float) -> float:
        # the lowest of the draws at z, all others within the width above it
        within = np.interp(z + width, z, below, right=1.0) - below
        inside = count * density * within ** (count - 1)
        return 1.0 - float(((inside[1:] + inside[:-1]) / 2.0).sum() * (z[1] - z[0]))

    return _falling_to(survival, 1.0 - level)


def _ranks(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, ties averaged; nan, which is no loss, behind all others."""
    row = np.where(np.isnan(row), np.inf, row)
    below = (row[:, None] > row[None, :]).sum(axis=1)
    equal = (row[:, None] == row[None, :]).sum(axis=1)
    ranks: NDArray[np.float64] = below + (equal + 1) / 2.0
    return ranks


def _f_survival(ratio: float, above: int, below: int) -> float:
    return 0.0 if math.isinf(ratio) else _regularised_beta(below / 2.0, above / 2.0, below / (below + above * ratio))


def _falling_to(function: Callable[[float], float], value: float) -> float:
    """Where a function that falls from above `value` at 0 reaches it, by bisection."""
    low, high = 0.0, 1.0
    while function(high) > value:
        low, high = high, 2.0 * high
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if function(middle) > value else (low, middle)
    return (low + high) / 2.0


def _regularised_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function, by its continued fraction (Lentz; DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _regularised_beta(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    fraction, numerator, denominator = 1.0, 1.0, 0.0
    for place in range(400):
        m = place // 2
        if place == 0:
            term = 1.0
        elif place % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        denominator = 1.0 / (1.0 + term * denominator or tiny)
        numerator = 1.0 + term / numerator or tiny
        change = numerator * denominator
        fraction *= change
        if place and abs(change - 1.0) < 1e-14:
            break
    return front * (fraction - 1.0)
