"""Two guards on the same runs: the loss, the alarms of each, and where their decisions differ.

Both were shown the same record, so what differs are decisions, not outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lbw_sim.errors import ScoreError
from lbw_sim.plots.canvas import BLACK, BLUE, GREY, ORANGE, TEXT, VERMILLION, dress, new_figure, plain
from lbw_sim.plots.loss_axis import LossAxis, loss_axis, median_rows, running_median, set_loss_axis
from lbw_sim.plots.thinning import merge_spans, thin_rows

MOST_RUNS = 12
Spans = tuple[tuple[float, float], ...]


class DifferenceLine(NamedTuple):
    """One run."""

    name: str
    steps: NDArray[Any]
    loss: NDArray[np.float64]
    """Running median."""
    axis: LossAxis
    alarms: tuple[Spans, Spans]
    """Of A and of B, in steps."""
    differs: Spans


class DifferenceInfo(NamedTuple):
    """Everything that the figure shows."""

    guards: tuple[str, str]
    lines: tuple[DifferenceLine, ...]
    note: str
    """What is left out; empty when nothing."""


class RunRows(NamedTuple):
    """One run as it comes, in rows."""

    name: str
    columns: Mapping[str, NDArray[Any]]
    alarms: tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]
    differs: Sequence[tuple[int, int]]


def difference_info(guards: tuple[str, str], runs: Sequence[RunRows]) -> DifferenceInfo:
    """Prepare the figure: the runs that differ most, in the order given. Raises ScoreError when there is none."""
    if not runs:
        raise ScoreError("difference figure: there is no run in which the guards differ")
    most = sorted(runs, key=lambda run: -sum(last - first for first, last in run.differs) - len(run.differs))
    kept = [run for run in runs if any(run is other for other in most[:MOST_RUNS])]
    lines = []
    for run in kept:
        steps, loss = np.asarray(run.columns["step"]), np.asarray(run.columns["loss"], dtype=float)
        loss = np.where(np.isfinite(loss), loss, np.nan)
        median = running_median(loss, median_rows(len(loss)))
        hair = float(steps[-1] - steps[0]) / 1000.0

        def spans(
            rows: Sequence[tuple[int, int]], steps: NDArray[Any] = steps, hair: float = hair
        ) -> tuple[tuple[float, float], ...]:
            return tuple(merge_spans([(float(steps[first]), float(steps[last])) for first, last in rows], hair))

        thinned = thin_rows(median)
        alarms = (spans(run.alarms[0]), spans(run.alarms[1]))
        lines.append(
            DifferenceLine(run.name, steps[thinned], median[thinned], loss_axis([loss]), alarms, spans(run.differs))
        )
    note = f"the {len(kept)} of {len(runs)} runs that differ most" if len(kept) < len(runs) else ""
    return DifferenceInfo(guards, tuple(lines), note)


def difference_figure(guards: tuple[str, str], runs: Sequence[RunRows]) -> Figure:
    """A panel per run. Raises ScoreError."""
    info = difference_info(guards, runs)
    figure = new_figure(0.7 + 1.35 * len(info.lines))
    axes = figure.subplots(len(info.lines), 1, squeeze=False)[:, 0]
    for line, ax in zip(info.lines, axes, strict=True):
        draw_difference(line, ax)
    title = f"alarms above the loss: {guards[0]}; below: {guards[1]}; shaded: they decide differently"
    figure.suptitle(plain(f"{title} ({info.note})" if info.note else title), fontsize=TEXT, x=0.01, ha="left")
    axes[-1].set_xlabel("step", fontsize=TEXT)
    return figure


def draw_difference(line: DifferenceLine, ax: Axes) -> None:
    """One run: alarms of A along the upper edge, of B along the lower one."""
    dress(ax)
    set_loss_axis(ax, line.axis)
    ax.set_ylabel("loss [nats]", fontsize=TEXT - 1)
    width = float(line.steps[-1] - line.steps[0]) or 1.0
    ax.set_xlim(float(line.steps[0]), float(line.steps[0]) + width)
    ax.plot(line.steps, line.loss, color=BLACK, linewidth=0.9)
    for start, end in line.differs:
        ax.axvspan(start, max(end, start + width / 500.0), color=ORANGE, alpha=0.35, linewidth=0, zorder=0.5)
    edge = ax.get_xaxis_transform()
    for spans, height, colour in ((line.alarms[0], 1.0, BLUE), (line.alarms[1], 0.03, VERMILLION)):
        for start, end in spans:
            ax.plot(
                [start, max(end, start + width / 500.0)], [height, height], transform=edge, color=colour,
                linewidth=3.0, solid_capstyle="butt", clip_on=False, scalex=False,
            )  # fmt: skip
    ax.set_title(plain(line.name), loc="left", fontsize=TEXT - 1, color=GREY, pad=5)
