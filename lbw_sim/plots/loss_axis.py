"""The loss axis that figures share: a robust smooth line, limits that a diverged run cannot spoil, few plain ticks.

For the eye only: the smooth line looks ahead, and nothing is judged by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Values = NDArray[np.float64]

ABSURD = 1e100
"""Beyond this it is no loss, and its logarithms and ratios overflow."""
LONG_ROWS = 5_000
"""From here on medians are worth loading pandas for."""


class LossAxis(NamedTuple):
    """The part of the loss that a figure shows."""

    low: float
    high: float
    log: bool
    """Logarithmic: the frame spans more than a factor of 2, all above 0."""
    smallest: float
    """The smallest finite loss, in the frame or below it; nan when there is none."""
    largest: float

    @property
    def cut(self) -> str:
        """What is not shown, in words; empty when everything is."""
        if self.smallest < self.low and self.largest > self.high:
            return f"outside the frame: {self.smallest:.3g} to {self.largest:.3g}"
        if self.largest > self.high:
            return f"above the frame: up to {self.largest:.3g}"
        return f"below the frame: down to {self.smallest:.3g}" if self.smallest < self.low else ""


def running_median(values: Values, window_rows: int) -> Values:
    """Centred median of the finite values; for the eye, not for judging: it looks ahead.

    The window shrinks evenly towards both ends. Where a value is not finite there is nan.

    >>> running_median(np.array([1.0, 9.0, 2.0, 3.0, 30.0]), 3).tolist()
    [1.0, 2.0, 3.0, 3.0, 30.0]
    """
    out = np.full(len(values), np.nan)
    rows = np.flatnonzero(np.isfinite(values))
    finite = values[rows]
    half = min(window_rows // 2, (len(finite) - 1) // 2)
    if half < 1:
        out[rows] = finite
        return out
    smooth = np.empty(len(finite))
    if len(finite) > LONG_ROWS:
        # the same values, in a hundredth of the time
        import pandas as pd

        middle = pd.Series(finite).rolling(2 * half + 1, center=True).median().to_numpy()
        smooth[half:-half] = middle[half:-half]
    else:
        smooth[half:-half] = np.median(sliding_window_view(finite, 2 * half + 1), axis=1)
    for k in range(half):
        smooth[k] = np.median(finite[: 2 * k + 1])
        smooth[-1 - k] = np.median(finite[len(finite) - 2 * k - 1 :])
    out[rows] = smooth
    return out


def median_rows(rows: int) -> int:
    """The smoothing window: 1/150 of the run, odd, from 5 to 101 rows.

    >>> median_rows(300), median_rows(3000), median_rows(100_000)
    (5, 21, 101)
    """
    return min(101, max(5, rows // 150 | 1))


def loss_axis(curves: Iterable[Values]) -> LossAxis:
    """Limits for these losses together.

    The first hundredth of each curve does not count: it is a few pixels wide, and the fall in it would take most of the
    height. From the lowest loss, but for one row in a thousand, to the highest of the rest; at most to the start plus a
    third of the fall, or to 4 times the lowest loss if that is more, so that a run that blew up does not flatten
    everything. A loss that falls 30-fold and more is shown up to its start. What lies outside is left out.
    """
    finite = [values[np.isfinite(values)] for values in curves]
    smallest = min((float(values.min()) for values in finite if len(values)), default=math.nan)
    largest = max((float(values.max()) for values in finite if len(values)), default=math.nan)
    finite = [kept for values in finite if len(kept := values[np.abs(values) < ABSURD])]
    if not finite:
        return LossAxis(0.0, 1.0, False, smallest, largest)
    shown = [values[len(values) // 100 :] for values in finite]
    best = min(float(np.quantile(values, 0.001)) for values in shown)
    first = max(float(values[:3].max()) for values in finite)
    start = max(float(values[:3].max()) for values in shown)
    room = start + 0.35 * (start - best)
    if 0.0 < best < 1.0 / ABSURD:
        best = 0.0
    if best > 0.0:
        room = max(start * min(start / best, 4.0) ** 0.35, 4.0 * best, first if first > 30.0 * best else 0.0)
    elif start == best:
        room = max(float(np.quantile(values, 0.95)) for values in shown)
    top = min(max(float(values.max()) for values in shown), room)
    if best > 0.0 and top > 2.0 * best:
        pad = (top / best) ** 0.05
        return LossAxis(best / pad, top * pad, True, smallest, largest)
    pad = 0.05 * (top - best) or 0.05 * abs(best) or 0.5
    return LossAxis(best - pad, top + pad, False, smallest, largest)


def loss_ticks(axis: LossAxis) -> list[float]:
    """At most 7 round numbers inside the limits."""
    if axis.log:
        decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        for digits in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)):
            ticks = [digit * 10.0**k for k in decades for digit in digits if axis.low <= digit * 10.0**k <= axis.high]
            if len(ticks) >= 4:
                return ticks[:: math.ceil(len(ticks) / 7)]
    ticks = [float(tick) for tick in MaxNLocator(6).tick_values(axis.low, axis.high)]
    return [tick for tick in ticks if axis.low <= tick <= axis.high]


def set_loss_axis(ax: Axes, axis: LossAxis) -> None:
    """Scale, limits and ticks of the vertical axis."""
    ax.set_yscale("log" if axis.log else "linear")
    ax.set_ylim(axis.low, axis.high)
    ax.yaxis.set_major_locator(FixedLocator(loss_ticks(axis)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:.6g}"))


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart to at least `gap`, as little as it takes, inside [low, high] where they fit.

    >>> spread([0.5, 0.5, 0.9], 0.2, 0.0, 1.0)
    [0.4, 0.6, 0.9]
    """
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    # blocks of touching labels, each at the mean of what its members want
    blocks: list[list[int]] = []

    def centre(block: list[int]) -> float:
        half = gap * (len(block) - 1) / 2
        mean = sum(wanted[k] for k in block) / len(block)
        return max(low + half, min(high - half, mean))

    for k in order:
        blocks.append([k])
        while len(blocks) > 1:
            before, last = blocks[-2], blocks[-1]
            apart = gap * (len(before) + len(last)) / 2
            if centre(last) - centre(before) >= apart - 1e-12:
                break
            blocks[-2:] = [before + last]
    placed = [0.0] * len(wanted)
    for block in blocks:
        for place, k in enumerate(block):
            placed[k] = round(centre(block) + gap * (place - (len(block) - 1) / 2), 9)
    return placed
