"""Guards against each other: how many events they see, and how often they cry wolf.

Detection only: what acting on the alarms would have done is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from lbw_sim.plots.canvas import BLACK, BLUE, GREY, LINE_COLOURS, TEXT, WHITE, WIDTH, dress, footnote, new_figure, plain
from lbw_sim.score.detection import FALSE_ALARM_BUDGET_PER_10K, Interval, RunScore, bootstrap, pooled
from lbw_sim.wording import counted

Array = NDArray[np.float64]
REFERENCES = ("never", "oracle", "random")
"""Drawn hollow: they are no guards."""


class GuardPoint(NamedTuple):
    """One guard."""

    name: str
    recall: float
    recall_interval: Interval
    false_alarms_per_10k: float
    false_alarms_interval: Interval
    reference: bool


class GuardCurve(NamedTuple):
    """One guard over the range of its sensitivity."""

    name: str
    false_alarms_per_10k: tuple[float, ...]
    recall: tuple[float, ...]


class DetectionInfo(NamedTuple):
    """Everything that the figure shows."""

    title: str
    points: tuple[GuardPoint, ...]
    undefined: tuple[str, ...]
    """Guards without a place: no events or no clean rows."""
    events: int
    runs: int
    curves: tuple[GuardCurve, ...] = ()


def detection_info(
    scores: Mapping[str, Sequence[RunScore]],
    title: str = "",
    *,
    seed: int,
    sweeps: Mapping[str, Sequence[Sequence[RunScore]]] | None = None,
) -> DetectionInfo:
    """Prepare the figure: pooled rates with bootstrap intervals over runs.

    `scores`: guard to its runs. The reference rows are given like guards, by the names in `REFERENCES`. `sweeps`: guard
    to its runs at each of several sensitivities, in order.
    """
    points: list[GuardPoint] = []
    undefined: list[str] = []
    events = runs = 0
    for name, mine in scores.items():
        counts, intervals = pooled(mine), bootstrap(mine, seed=seed)
        events, runs = max(events, counts.events), max(runs, counts.runs)
        if math.isnan(counts.recall) or math.isnan(counts.false_alarms_per_10k):
            undefined.append(name)
            continue
        points.append(
            GuardPoint(
                name, counts.recall, intervals.recall, counts.false_alarms_per_10k, intervals.false_alarms_per_10k,
                name in REFERENCES,
            )
        )  # fmt: skip
    curves = []
    for name, settings in (sweeps or {}).items():
        found = [pooled(mine) for mine in settings]
        rates = [(c.false_alarms_per_10k, c.recall) for c in found if not math.isnan(c.false_alarms_per_10k + c.recall)]
        if rates:
            curves.append(GuardCurve(name, *map(tuple, zip(*rates, strict=True))))
    return DetectionInfo(title, tuple(points), tuple(undefined), events, runs, tuple(curves))


def detection_figure(
    scores: Mapping[str, Sequence[RunScore]],
    title: str = "",
    *,
    seed: int,
    sweeps: Mapping[str, Sequence[Sequence[RunScore]]] | None = None,
    width: float = WIDTH,
) -> Figure:
    """Recall against false alarms of several guards, with 95 % intervals; with `sweeps`, a curve through each."""
    info = detection_info(scores, title, seed=seed, sweeps=sweeps)
    figure = new_figure(5.4, width)
    draw_detection(info, figure.subplots())
    return figure


def draw_detection(info: DetectionInfo, ax: Axes) -> None:
    """A named point per guard. The horizontal axis is linear up to 1 and logarithmic beyond."""
    dress(ax, "false alarms per 10,000 clean rows", "event recall")
    ax.set_xscale("symlog", linthresh=1.0, linscale=0.6)
    most = max([10.0, *(p.false_alarms_interval.high for p in info.points), *(p[3] for p in info.points)])
    ax.set_xlim(-0.12, 1.6 * most)
    ax.set_ylim(-0.08, 1.08)
    ticks = [0.0, 0.5, *(10.0**k for k in range(math.ceil(math.log10(1.6 * most))))]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,g}"))
    ax.axvline(FALSE_ALARM_BUDGET_PER_10K, color=GREY, linewidth=1.0, linestyle="--", zorder=1)
    ax.annotate(
        "budget",
        (FALSE_ALARM_BUDGET_PER_10K, 1.08),
        xytext=(3, -9),
        textcoords="offset points",
        fontsize=TEXT - 1,
        color=GREY,
    )
    colours = {curve.name: LINE_COLOURS[place % len(LINE_COLOURS)] for place, curve in enumerate(info.curves)}
    for curve in info.curves:
        ax.plot(
            curve.false_alarms_per_10k, curve.recall, color=colours[curve.name], linewidth=1.3, marker=".", markersize=4
        )
    for point in info.points:
        x, y = point.false_alarms_per_10k, point.recall
        colour = GREY if point.reference else colours.get(point.name, BLUE)
        ax.plot(point.false_alarms_interval, (y, y), color=colour, linewidth=1.2, alpha=0.6)
        ax.plot((x, x), point.recall_interval, color=colour, linewidth=1.2, alpha=0.6)
        ax.plot(
            [x], [y], "D" if point.reference else "o", color=colour, clip_on=False,
            # a guard as good as a reference stands inside its mark
            markersize=9.0 if point.reference else 6.5, zorder=3.5 if point.reference else 4.0,
            markerfacecolor=WHITE if point.reference else colour,
        )  # fmt: skip
    if not info.points:
        ax.text(0.5, 0.5, "no labelled event, so no recall", transform=ax.transAxes, ha="center", fontsize=TEXT)
    ax.set_title(plain(info.title), loc="left", fontsize=TEXT + 2)
    note = (
        f"{counted(info.events, 'event')}, {counted(info.runs, 'run')}; bars: 95 % bootstrap over runs within families"
    )
    if info.undefined:
        note += f"; undefined: {', '.join(info.undefined)}"
    footnote(ax, plain(note))
    _name_points(info, ax)


def _name_points(info: DetectionInfo, ax: Axes) -> None:
    """Names where they cover no point, bar or other name, as near as possible; in pixels of the axes as laid out."""
    figure = ax.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]
    to_pixels = ax.transData.transform
    taken: list[tuple[float, ...]] = []
    for point in info.points:
        x, y = to_pixels((point.false_alarms_per_10k, point.recall))
        taken.append((x - 6, y - 6, x + 6, y + 6))
        for a, b in (
            ((point.false_alarms_interval.low, point.recall), (point.false_alarms_interval.high, point.recall)),
            ((point.false_alarms_per_10k, point.recall_interval.low), (point[3], point.recall_interval.high)),
        ):
            if not math.isfinite(sum((*a, *b))):
                continue
            (x0, y0), (x1, y1) = to_pixels(a), to_pixels(b)
            taken.append((x0 - 1, y0 - 1, x1 + 1, y1 + 1))
    frame = ax.get_window_extent().extents
    for point in info.points:
        x, y = to_pixels((point.false_alarms_per_10k, point.recall))
        text = ax.annotate(
            plain(point.name), (point.false_alarms_per_10k, point.recall), xytext=(0, 0), textcoords="offset points",
            fontsize=TEXT, color=BLACK, annotation_clip=False, va="center", ha="center",
        )  # fmt: skip
        _, _, width, height = text.get_window_extent().bounds
        offsets = [
            (right * (width / 2 + 8 + (reach if up == 0 else reach / 2)), up * (height / 2 + 5 + reach))
            for reach in (0, 8, 18, 30, 44)
            for right, up in ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
        ]
        dx, dy = np.array(offsets).T
        left, bottom = x + dx - width / 2, y + dy - height / 2
        # all places at once: one by one they took a quarter of a report's time
        boxes = np.stack([left, bottom, left + width, bottom + height])
        covered = sum((_overlap(boxes, other) for other in taken), np.zeros(len(offsets)))
        best = int(np.argmin(covered + 10.0 * (width * height - _overlap(boxes, frame))))
        taken.append(tuple(boxes[:, best]))
        points_per_pixel = 72.0 / figure.dpi
        text.set_position((offsets[best][0] * points_per_pixel, offsets[best][1] * points_per_pixel))


def _overlap(boxes: Array, other: Sequence[float]) -> Array:
    """Area that each box, a column of its left, bottom, right and top edge, shares with another."""
    width = np.minimum(boxes[2], other[2]) - np.maximum(boxes[0], other[0])
    height = np.minimum(boxes[3], other[3]) - np.maximum(boxes[1], other[1])
    shared: Array = width.clip(min=0.0) * height.clip(min=0.0)
    return shared
