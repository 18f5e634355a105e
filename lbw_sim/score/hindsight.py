"""Hindsight: proposes labels for a finished run, by a rule that looks ahead.

It reads the loss alone, so it cannot tell a change of data from a divergence, and it never flies: whoever scores a
guard by these labels measures how well the guard agrees with this rule, not with the truth.

Everything stands against the run's own noise (one sd, estimated around each row from the median of differences and of
residuals, so that events do not widen it) and against two baselines that look ahead as well as back:

- above the centred running median, which a smooth fall cannot bend: spikes, and single rows (`benign_outlier`);
- above the lowest earlier level: levels that stay high (divergence), and overshoots that come back (spikes), which on
  a steep fall or in a run's first rows do not stand above a centred median.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lbw_sim.errors import ScoreError
from lbw_sim.trace.alarms import stretches
from lbw_sim.trace.labels import Label
from lbw_sim.wording import counted

Floats = NDArray[np.float64]

LEAST_ROWS = 30
"""With fewer finite rows a run has no noise to stand out from; only its non-finite stretches are proposed."""
BASELINE_HALF_ROWS = 100
NOISE_HALF_ROWS = 200
LEAST_NOISE = 1e-3
"""Share of the loss below which nothing counts as noise: constant, rounded and interpolated losses have none."""
PEAK_SD = 6.0
LASTING_SD = 3.0
"""Height that a median of 5 rows must reach for an event without a peak."""
RETURN_SD = 2.0
"""An excursion lasts while the loss is this far above its baseline; one row below does not end it."""
TAIL_FACTOR = 1.5
"""A peak must also exceed this many times the run's own lower tail: heavy-tailed noise has both."""
SPIKE_STEPS = 3
"""An excursion that stands out for fewer optimizer steps is what the data did, not what training did."""
STAYS_SD = 1.5
STAYS_SHARE = 0.1
"""A level is sustained when it lasts for this share of the run, or to its end."""
OSCILLATION_SPIKES = 5
OSCILLATION_GAP_ROWS = 10


class _Found(NamedTuple):
    """A proposal in rows of the finite losses."""

    start: int
    end: int
    kind: str
    confidence: str
    note: str


def propose(steps: ArrayLike, loss: ArrayLike) -> tuple[Label, ...]:
    """Labels that the whole run suggests, by start; `source` is "hindsight" and `note` holds the evidence.

    `steps`: the step of each logged row, not falling; `loss`: one per row, non-finite allowed. Confidence says how far
    a proposal stands out. Raises ScoreError.

    >>> loss = 3.0 + 0.01 * np.sin(np.arange(300.0) ** 2)
    >>> loss[200:206] += 0.5
    >>> [(label.kind, label.start_step, label.end_step, label.confidence) for label in propose(np.arange(300), loss)]
    [('spike', 200, 205, 'high')]
    """
    steps, loss = np.asarray(steps), np.asarray(loss, dtype=np.float64)
    if steps.ndim != 1 or steps.shape != loss.shape:
        raise ScoreError(f"hindsight: {steps.shape} steps for {loss.shape} losses; give one of each per row")
    if bool(np.any(np.diff(steps) < 0)):
        raise ScoreError("hindsight: steps fall; give one lineage in order (a trace's lineage='final')")
    finite = np.isfinite(loss)
    labels = [
        Label(int(steps[start]), int(steps[end]), "nonfinite", "high", "hindsight", int(steps[start]),
              f"{counted(end - start + 1, 'row')} without a finite loss")
        for start, end in stretches(~finite).tolist()
    ]  # fmt: skip
    kept = np.flatnonzero(finite)
    if len(kept) >= LEAST_ROWS:
        steps, loss = steps[kept], loss[kept]
        labels += [
            Label(int(steps[f.start]), int(steps[f.end]), f.kind, f.confidence, "hindsight",
                  int(steps[f.start + int(np.argmax(loss[f.start : f.end + 1]))]), f.note)
            for f in _events(loss, stride=float(np.median(np.diff(steps))))
        ]  # fmt: skip
    return tuple(sorted(labels))


def unknown_so_far(proposals: Iterable[Label], labels: Iterable[Label]) -> tuple[Label, ...]:
    """The proposals that overlap no label: what is known stands, and no event is written down twice.

    >>> seen = [Label(10, 12, "spike", source="hindsight"), Label(40, 44, "spike", source="hindsight")]
    >>> [label.start_step for label in unknown_so_far(seen, [Label(12, 20, "benign_shift")])]
    [40]
    """
    known = tuple(labels)
    return tuple(p for p in proposals if not any(overlap(p, label) for label in known))


def overlap(one: Label, other: Label) -> bool:
    """Whether two labels share a step."""
    return one.start_step <= other.end_step and other.start_step <= one.end_step


def _events(loss: Floats, stride: float) -> list[_Found]:
    baseline = _running_median(loss, BASELINE_HALF_ROWS)
    noise = _noise(loss, baseline)
    lasting = _divergences(loss, noise)
    peaks = list(_excursions((loss - baseline) / noise, stride))

    def adds(found: _Found) -> bool:
        """What stayed high is not also a spike of that length, and the centred median places a spike better, but near
        the ends, where it is blind."""
        blind = found.start < BASELINE_HALF_ROWS or found.end >= len(loss) - BASELINE_HALF_ROWS
        return not _any_overlap(found, lasting) and (blind or not _any_overlap(found, peaks))

    overshoots = [found for found in _overshoots(loss, noise, stride) if adds(found)]
    peaks = [found for found in peaks if not _any_overlap(found, overshoots)]
    return lasting + _with_oscillations(sorted(overshoots + peaks))


def _any_overlap(one: _Found, others: Iterable[_Found]) -> bool:
    return any(one.start <= other.end and other.start <= one.end for other in others)


def _excursions(height: Floats, stride: float) -> Iterator[_Found]:
    """Spikes and single rows above the centred baseline; `height` is in sd."""
    tail = float(np.quantile(np.maximum(-height, 0.0), 0.999))
    peak_sd = max(PEAK_SD, TAIL_FACTOR * tail)
    lasting = _running_median(height, 2)
    for start, end in stretches(_bridged(height > RETURN_SD)).tolist():
        inside = height[start : end + 1]
        top, held = float(inside.max()), float(lasting[start : end + 1].max())
        strong = np.flatnonzero(inside > max(LASTING_SD, 0.2 * min(top, 5 * peak_sd)))
        rows = len(strong)
        if top < peak_sd:
            # no single row is beyond chance, several that agree are
            if held >= LASTING_SD * max(1.0, tail / 4.0):
                note = f"{counted(end - start + 1, 'row')} above the running median, at most {top:.1f} sd"
                yield _Found(start, end, "spike", "medium" if held >= 1.3 * LASTING_SD else "low", note)
            continue
        note = f"{top:.1f} sd above the running median, {counted(rows, 'row stands', 'rows stand')} out"
        # an ordinary high row beside an event is none of it
        sure_rows = start + np.flatnonzero(inside > LASTING_SD)
        start, end = int(sure_rows[0]), int(sure_rows[-1])
        if rows * stride < SPIKE_STEPS and rows == 1:
            peak = start + int(np.argmax(height[start : end + 1]))
            yield _Found(peak, peak, "benign_outlier", "high" if top >= 1.5 * peak_sd else "medium", note)
        elif rows * stride < SPIKE_STEPS:
            yield _Found(start, end, "spike", "low", note)
        else:
            sure = top >= 1.5 * peak_sd
            yield _Found(start, end, "spike", "high" if sure else "medium", note)


def _overshoots(loss: Floats, noise: Floats, stride: float) -> Iterator[_Found]:
    """Rises above the lowest level of the rows just before that come back."""
    level = _running_median(loss, 1)
    # not the lowest of all: in a long run that is an extreme, far below ordinary rows
    before = np.concatenate([np.full(2 * BASELINE_HALF_ROWS, np.inf), level])
    best = np.lib.stride_tricks.sliding_window_view(before, 2 * BASELINE_HALF_ROWS + 1).min(axis=1)
    rise = (level - best) / noise
    for start, end in stretches(rise > RETURN_SD).tolist():
        top = float(rise[start : end + 1].max())
        if top < PEAK_SD or (end - start + 1) * stride < SPIKE_STEPS:
            continue
        sure = "high" if top >= 2 * PEAK_SD else "medium" if top >= 1.25 * PEAK_SD else "low"
        if end == len(loss) - 1:
            note = f"{top:.1f} sd above the lowest level just before when the run ends"
            yield _Found(start, end, "divergence", "medium" if sure == "high" else "low", note)
        elif end - start + 1 < max(BASELINE_HALF_ROWS, STAYS_SHARE * len(loss)):
            note = f"{top:.1f} sd above the lowest level just before, and back"
            yield _Found(start, end, "spike", sure, note)


def _divergences(loss: Floats, noise: Floats) -> list[_Found]:
    """Levels that stay above the best earlier one."""
    half = min(max(len(loss) // 40, 2), 25)
    # the lowest of many medians lies below an ordinary one, the more the fewer rows each is of
    least = max(STAYS_SD, 1.0 + 5.0 / np.sqrt(2 * half + 1))
    rise, at_once = (_rise(_running_median(loss, reach), noise) for reach in (half, 2))
    found = []
    for start, end in stretches(rise > 0.5 * STAYS_SD).tolist():
        rows = end - start + 1
        to_end = end >= len(loss) - 1 - half
        held = float(np.median(rise[start : end + 1]))
        if held < least or rows < (max(4 * half, LEAST_ROWS // 2) if to_end else STAYS_SHARE * len(loss)):
            continue
        confidence = "high" if to_end and held >= 2 * PEAK_SD else "medium" if to_end else "low"
        note = f"{rows} rows {held:.1f} sd above the best earlier level{', to the end' * to_end}"
        # the long window sees a step before it comes
        onset = start + int(np.argmax(at_once[start : end + 1] > max(0.25 * held, 0.5 * STAYS_SD)))
        found.append(_Found(onset, len(loss) - 1 if to_end else end, "divergence", confidence, note))
    return found


def _with_oscillations(found: list[_Found]) -> list[_Found]:
    """The same, with spikes that follow each other at once taken for one oscillation."""
    groups: list[list[_Found]] = []
    for spike in (f for f in found if f.kind == "spike" and f.confidence != "low"):
        if groups and spike.start - groups[-1][-1].end <= OSCILLATION_GAP_ROWS:
            groups[-1].append(spike)
        else:
            groups.append([spike])
    for group in groups:
        if len(group) < OSCILLATION_SPIKES:
            continue
        start, end = group[0].start, group[-1].end
        note = f"{len(group)} spikes at most {OSCILLATION_GAP_ROWS} rows apart"
        whole = _Found(start, end, "oscillation", "medium", note)
        found = [f for f in found if not start <= f.start <= end] + [whole]
    return found


def _rise(level: Floats, noise: Floats) -> Floats:
    """How far each row stands above the lowest level so far, in the larger sd of the two."""
    best = np.minimum.accumulate(level)
    lowest = np.maximum.accumulate(np.where(level <= best, np.arange(len(level)), 0))
    return np.asarray((level - best) / np.maximum(noise, noise[lowest]))


def _noise(loss: Floats, baseline: Floats) -> Floats:
    """One sd around each row."""
    # a difference holds sqrt(2) times the noise and of the trend only its slope
    change = np.diff(loss, prepend=loss[0])
    steady = np.abs(change - _running_median(change, BASELINE_HALF_ROWS)) / np.sqrt(2.0)
    apart = np.abs(loss - baseline)
    spread = [1.4826 * _running_median(values, NOISE_HALF_ROWS, shrink=False) for values in (steady, apart)]
    least = np.maximum(LEAST_NOISE * np.abs(baseline), 1e-12)
    return np.maximum(np.maximum(*spread), least)


def _running_median(values: Floats, half: int, *, shrink: bool = True) -> Floats:
    """Median of the rows at most `half` away.

    Near the ends the window shrinks on both sides, so that a slope gives no bias there; with shrink=False it is cut on
    one side only, so that it still holds rows.
    """
    count = len(values)
    half = min(half, (count - 1) // 2)
    found = np.empty(count)
    found[half : count - half] = np.median(np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1), axis=1)
    for i in range(half):
        reach = i if shrink else half
        found[i] = np.median(values[: i + reach + 1])
        found[count - 1 - i] = np.median(values[count - 1 - i - reach :])
    return found


def _bridged(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The same with gaps of one row filled."""
    filled = mask.copy()
    filled[1:-1] |= mask[:-2] & mask[2:]
    return filled
