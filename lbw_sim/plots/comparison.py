"""Several runs over each other: smoothed losses, and the scales below.

It does not say which run is better: they may differ in more than their guards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lbw_sim.errors import ScoreError
from lbw_sim.plots.canvas import (
    GREY,
    LINE_COLOURS,
    LONGEST_NARROW_NAME,
    PALE,
    TEXT,
    WIDTH,
    dress,
    narrow,
    new_figure,
    plain,
    short,
)
from lbw_sim.plots.loss_axis import LossAxis, loss_axis, median_rows, running_median, set_loss_axis, spread
from lbw_sim.plots.thinning import changes, thin_rows

NAMED_RUNS = 10
"""More lines than this cannot be told apart: the others are drawn grey and without a name."""
UNNAMED_BUCKETS = 100
DASHES = ("-", "--", ":")


class RunLine(NamedTuple):
    """One run."""

    name: str
    steps: NDArray[Any]
    loss: NDArray[np.float64]
    """Running median; nan where the loss is not finite."""
    scale: NDArray[np.float64]
    end_loss: float
    """The last finite loss of the line; nan when there is none."""
    fate: str
    """What its end in the figure alone would not tell; empty when nothing."""


class ComparisonInfo(NamedTuple):
    """Everything that the comparison shows."""

    title: str
    lines: tuple[RunLine, ...]
    """Named runs, in the order given."""
    unnamed: tuple[RunLine, ...]
    """Runs beyond `NAMED_RUNS`."""
    axis: LossAxis
    note: str
    """What the figure leaves out; empty when nothing."""


def comparison_info(runs: Mapping[str, Mapping[str, NDArray[Any]]], title: str = "") -> ComparisonInfo:
    """Prepare the comparison. `runs`: name to columns as `Trace.to_numpy()` gives. Raises ScoreError."""
    lines: list[RunLine] = []
    for name, columns in runs.items():
        missing = [column for column in ("step", "loss", "scale") if column not in columns]
        if missing or not len(columns["step"]):
            raise ScoreError(f"comparison: run {name!r} has no {', '.join(missing) or 'rows'}")
        loss = np.asarray(columns["loss"], dtype=float)
        median = running_median(loss, median_rows(len(loss)))
        steps, scale = np.asarray(columns["step"]), np.asarray(columns["scale"], dtype=float)
        rows = np.flatnonzero(np.isfinite(median))
        lines.append(RunLine(name, steps, median, scale, float(median[rows[-1]]) if len(rows) else math.nan, ""))
    if not lines:
        raise ScoreError("comparison: there is no run to draw")
    axis = loss_axis(line.loss for line in lines)
    last = max(line.steps[-1] for line in lines)
    lines = [line._replace(fate=_fate(line, axis, last)) for line in lines]
    notes = []
    if len(lines) > NAMED_RUNS:
        notes.append(f"{NAMED_RUNS} of {len(lines)} runs named, the others grey")
    if axis.cut:
        notes.append(axis.cut)
    return ComparisonInfo(title, tuple(lines[:NAMED_RUNS]), tuple(lines[NAMED_RUNS:]), axis, "; ".join(notes))


def comparison_figure(
    runs: Mapping[str, Mapping[str, NDArray[Any]]], title: str = "", *, width: float = WIDTH
) -> Figure:
    """Smoothed losses of several runs with their names at the right, and their scales. Raises ScoreError."""
    info = comparison_info(runs, title)
    figure = new_figure(5.8, width)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.2])
    draw_losses(info, upper)
    draw_scales(info, lower)
    lower.set_xlabel("step", fontsize=TEXT)
    lines = info.lines + info.unnamed
    lower.set_xlim(min(float(line.steps[0]) for line in lines), max(float(line.steps[-1]) for line in lines))
    return figure


def draw_losses(info: ComparisonInfo, ax: Axes) -> None:
    """One line per run; names beside the frame, at the height where the line ends."""
    dress(ax, y_label="loss, running median [nats]")
    set_loss_axis(ax, info.axis)
    for line in info.unnamed:
        rows = thin_rows(line.loss, UNNAMED_BUCKETS)
        ax.plot(line.steps[rows], line.loss[rows], color=PALE, linewidth=0.8, zorder=1)
    for place, line in enumerate(info.lines):
        rows = thin_rows(line.loss)
        ax.plot(line.steps[rows], line.loss[rows], linewidth=1.4, label=plain(line.name), zorder=2, **_look(place))
    height = ax.transLimits.transform
    ends = []
    for line in info.lines:
        value = line.end_loss if np.isfinite(line.end_loss) else info.axis.high
        value = min(info.axis.high, max(info.axis.low, value))
        ends.append(float(height((0.0, np.log10(value) if info.axis.log else value))[1]))
    for place, (line, want, at) in enumerate(zip(info.lines, ends, spread(ends, 0.062, 0.0, 1.0), strict=True)):
        look = _look(place)
        name = short(line.name, LONGEST_NARROW_NAME) if narrow(ax) else line.name
        name = f"{name} ({line.fate})" if line.fate else name
        # a thin leader from where the line ends to where its name had to move
        ax.annotate(
            plain(name), (line.steps[-1], want), xycoords=ax.get_xaxis_transform(), xytext=(1.035, at),
            textcoords="axes fraction", fontsize=TEXT, color=look["color"], va="center", annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": look["color"], "linestyle": ":", "linewidth": 1.0,
                "shrinkA": 0, "shrinkB": 0, "relpos": (0.0, 0.5),
            },
        )  # fmt: skip
    ax.set_title(plain(info.title), loc="left", fontsize=TEXT + 2, pad=20 if info.note else 6)
    if info.note:
        ax.annotate(
            info.note, (0.0, 1.0), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points",
            fontsize=TEXT - 1, color=GREY, annotation_clip=False,
        )  # fmt: skip


def draw_scales(info: ComparisonInfo, ax: Axes) -> None:
    """Scale of each run, in the same looks."""
    dress(ax, y_label="scale")
    ax.set_ylim(0.0, 1.08)
    ax.set_yticks([0.0, 0.5, 1.0])
    for line in info.unnamed:
        rows = changes(line.scale, UNNAMED_BUCKETS)
        ax.plot(line.steps[rows], line.scale[rows], color=PALE, linewidth=0.8, drawstyle="steps-post", zorder=1)
    for place, line in enumerate(info.lines):
        rows = changes(line.scale)
        ax.plot(line.steps[rows], line.scale[rows], linewidth=1.2, drawstyle="steps-post", zorder=2, **_look(place))


def _fate(line: RunLine, axis: LossAxis, last_step: int) -> str:
    rows = np.flatnonzero(np.isfinite(line.loss))
    if not len(rows):
        return "no finite loss"
    if rows[-1] < len(line.steps) - 1:
        return f"no finite loss after {line.steps[rows[-1]]:,}"
    parts = ["above the frame"] if line.end_loss > axis.high else []
    return ", ".join(parts + ([f"ends at {line.steps[-1]:,}"] if line.steps[-1] < last_step else []))


def _look(place: int) -> dict[str, Any]:
    """Colour and dash: no two of `NAMED_RUNS` lines share both."""
    return {
        "color": LINE_COLOURS[place % len(LINE_COLOURS)],
        "linestyle": DASHES[place // len(LINE_COLOURS) % len(DASHES)],
    }
