"""VUS-PR and affiliation: measures of alarms as stretches of rows, re-implemented from their papers.

Secondary to recall and delay at a false-alarm budget, and no operating point: both reward rows, not alarms, and a guard
that lets go early loses by them. They are here because other work reports them.

Alarms are rows, events are (first, last) rows. Events that overlap or touch are one: neither paper knows nested ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lbw_sim.errors import ScoreError
from lbw_sim.values import nan

MAX_BUFFER_ROWS = 20
"""VUS-PR averages over buffers of 0, 2, … up to this many rows, half of them on each side of an event."""


class RangeMeasures(NamedTuple):
    """All nan without events."""

    vus_pr: float = nan
    """In [0, 1]. A score that says nothing gets about the share of rows in events, not 0."""
    affiliation_precision: float = nan
    """In [0, 1]; nan without alarms. About 0.5 for random alarms."""
    affiliation_recall: float = nan
    """In [0, 1]; 0 without alarms."""


def range_measures(
    alarmed: ArrayLike, events: Iterable[tuple[int, int]], ignored: ArrayLike | None = None
) -> RangeMeasures:
    """All measures of one run. `alarmed`, `ignored`: bool per row; ignored rows count neither way. Raises ScoreError.

    >>> alarmed = np.isin(np.arange(100), [40, 41, 42, 43])
    >>> range_measures(alarmed, [(40, 43)]).affiliation_precision
    1.0
    """
    alarmed = np.asarray(alarmed, dtype=bool)
    spans = _merged(events, len(alarmed))
    precision, recall = affiliation(alarmed, spans, ignored)
    return RangeMeasures(vus_pr(alarmed, spans, ignored), precision, recall)


def vus_pr(
    score: ArrayLike,
    events: Iterable[tuple[int, int]],
    ignored: ArrayLike | None = None,
    *,
    max_buffer_rows: int = MAX_BUFFER_ROWS,
) -> float:
    """Volume under the precision-recall surface over buffer lengths (Paparrizos et al., VLDB 2022).

    `score`: one number per row, higher is more alarming, nan lowest; 0 and 1 will do. With a buffer of b rows a row d
    rows outside an event counts sqrt(1 - d/b) for d <= b/2; recall is over half of the true plus the buffered rows, at
    most 1, times the share of buffered events hit. Every distinct score is a threshold; the area is average precision
    (steps, as in the authors' code: straight lines between points flatter). nan without events. Raises
    ScoreError.

    >>> vus_pr([0, 0, 1, 1, 0, 0], [(2, 3)], max_buffer_rows=0)
    1.0
    >>> vus_pr([0, 0, 0, 0, 0, 0], [(2, 3)], max_buffer_rows=0)
    0.3333333333333333
    """
    score = np.nan_to_num(np.asarray(score, dtype=np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    spans = _merged(events, len(score))
    kept = ~_ignored(ignored, len(score), spans)
    if not spans:
        return nan
    order = np.argsort(-score, kind="stable")
    order = order[kept[order]]
    falling = score[order]
    # the last row at each threshold
    steps = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    predicted = steps + 1.0
    truth = np.zeros(len(score))
    for first, last in spans:
        truth[first : last + 1] = 1.0
    volumes = []
    for buffer in range(0, max_buffer_rows + 1, 2):
        soft = truth.copy()
        tops = []
        for first, last in spans:
            reach = min(buffer // 2, first)
            ramp = np.sqrt(1.0 - np.arange(1, buffer // 2 + 1) / max(buffer, 1))
            before, after = soft[first - reach : first], soft[last + 1 : last + 1 + buffer // 2]
            np.maximum(before, ramp[:reach][::-1], out=before)
            np.maximum(after, ramp[: len(after)], out=after)
            around = slice(first - reach, last + 1 + len(after))
            tops.append(score[around][kept[around]].max())
        true = np.cumsum(soft[order])[steps]
        positives = (truth[kept].sum() + soft[kept].sum()) / 2.0
        hit = np.searchsorted(np.sort(-np.array(tops)), -falling[steps], side="right") / len(spans)
        recall = np.minimum(true / positives, 1.0) * hit
        volumes.append(float(np.sum(np.diff(recall, prepend=0.0) * true / predicted)))
    return float(np.mean(volumes))


def affiliation(
    alarmed: ArrayLike, events: Iterable[tuple[int, int]], ignored: ArrayLike | None = None
) -> tuple[float, float]:
    """Affiliation precision and recall (Huet et al., KDD 2022), on rows instead of continuous time.

    Each event owns the rows nearer to it than to any other (the earlier event where two are as near). Precision: how
    likely a row drawn at random from those would lie no nearer to the event than an alarmed row does, averaged over its
    alarmed rows, then over events that own any. Recall: how likely it would lie no nearer to a row of the event than
    the nearest alarmed one does, averaged over the event's rows, then over all events. nan without events.
    Raises ScoreError.

    >>> affiliation([0, 0, 0, 0, 0, 0, 1, 0, 0, 0], [(4, 4)])
    (0.7, 0.7)
    """
    alarmed = np.asarray(alarmed, dtype=bool)
    spans = _merged(events, len(alarmed))
    if not spans:
        return nan, nan
    rows = np.flatnonzero(alarmed & ~_ignored(ignored, len(alarmed), spans))
    bounds = [0, *((last + first) // 2 + 1 for (_, last), (first, _) in itertools.pairwise(spans)), len(alarmed)]
    precisions, recalls = [], []
    for (first, last), low, high in zip(spans, bounds[:-1], bounds[1:], strict=True):
        mine = rows[(rows >= low) & (rows < high)]
        if not len(mine):
            recalls.append(0.0)
            continue
        away = np.maximum(np.maximum(first - mine, mine - last), 0)
        precisions.append(float(np.mean(_no_nearer(away, first - low, high - 1 - last, high - low))))
        inside = np.arange(first, last + 1)
        place = np.searchsorted(mine, inside)
        left, right = mine[np.maximum(place - 1, 0)], mine[np.minimum(place, len(mine) - 1)]
        away = np.minimum(np.abs(inside - left), np.abs(right - inside))
        recalls.append(float(np.mean(_no_nearer(away, inside - low, high - 1 - inside, high - low))))
    return _mean(precisions), _mean(recalls)


def _no_nearer(
    away: NDArray[np.int64], before: int | NDArray[np.int64], after: int | NDArray[np.int64], rows: int
) -> NDArray[np.float64]:
    """Share of `rows` at least `away` from something with `before` rows on its left and `after` on its right."""
    far = np.maximum(before - away + 1, 0) + np.maximum(after - away + 1, 0)
    return np.where(away == 0, 1.0, far / rows)


def _merged(events: Iterable[tuple[int, int]], rows: int) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted((int(event[0]), int(event[1])) for event in events):
        if not (0 <= first <= last < rows):
            raise ScoreError(f"an event of rows {first} to {last} does not fit {rows} rows; events are (first, last)")
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _ignored(ignored: ArrayLike | None, rows: int, spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Rows to leave out: never those of an event."""
    mask = np.zeros(rows, dtype=bool) if ignored is None else np.array(ignored, dtype=bool)
    if mask.shape != (rows,):
        raise ScoreError(f"{mask.shape} ignored rows for {rows} rows; give one bool per row")
    for first, last in spans:
        mask[first : last + 1] = False
    return mask


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else nan
