"""Long runs as lines that can be drawn: what the eye would see at the width of a figure, and no more points.

Extremes stay: a spike of one row among a million rows is still there. For drawing only; nothing is judged on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKETS = 600
"""Across the width of a figure; each draws at most five points."""
NARROW_BUCKETS = 200
"""The same for a figure on a phone."""


def thin_rows(values: NDArray[np.float64], buckets: int = BUCKETS) -> NDArray[np.int64]:
    """Rows that draw the same picture: of each bucket its first, lowest, highest, last row, and one that is not finite.

    All rows where that would save nothing.

    >>> values = np.zeros(10_000); values[1234] = 5.0; values[5000:5050] = np.nan
    >>> rows = thin_rows(values, 100)
    >>> len(rows) <= 500, 1234 in rows, bool(np.isnan(values[rows]).any())
    (True, True, True)
    """
    count = len(values)
    if count <= 5 * buckets:
        return np.arange(count)
    starts = np.arange(buckets) * count // buckets
    sizes = np.diff(starts, append=count)
    bucket = np.repeat(np.arange(buckets), sizes)
    finite = np.isfinite(values)
    rows = [starts, starts + sizes - 1]
    for fill, pick in ((np.inf, np.minimum), (-np.inf, np.maximum)):
        filled = np.where(finite, values, fill)
        extremes = pick.reduceat(filled, starts)
        hits = np.flatnonzero((filled == extremes[bucket]) & finite)
        rows.append(hits[np.unique(bucket[hits], return_index=True)[1]])
    gaps = np.flatnonzero(~finite)
    rows.append(gaps[np.unique(bucket[gaps], return_index=True)[1]])
    return np.unique(np.concatenate(rows))


def changes(values: NDArray[Any], buckets: int = BUCKETS) -> NDArray[np.int64]:
    """Rows that draw the same steps: the first, the last, and each where the value is not the one before.

    >>> changes(np.array([1.0, 1.0, 0.5, 0.5, 1.0])).tolist()
    [0, 2, 4]
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        return np.arange(0)
    same = (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))
    rows = np.unique(np.concatenate([[0], np.flatnonzero(~same) + 1, [len(values) - 1]]))
    return rows[thin_rows(values[rows], buckets)]


def merge_spans(spans: Iterable[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Spans in order, those closer than `gap` as one: nearer than a hair they are drawn as one anyway.

    >>> merge_spans([(0.0, 1.0), (1.5, 2.0), (9.0, 9.5)], gap=1.0)
    [(0.0, 2.0), (9.0, 9.5)]
    """
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] < gap:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def apart(steps: NDArray[Any], gap: float) -> NDArray[Any]:
    """Positions of markers, one per `gap`.

    >>> apart(np.array([1, 2, 3, 50]), 10.0).tolist()
    [1, 50]
    """
    if not len(steps) or gap <= 0.0:
        return steps
    places = np.floor((np.asarray(steps, dtype=float) - float(steps[0])) / gap)
    return steps[np.unique(places, return_index=True)[1]]
