"""A run as a picture of the size of a stamp: loss, labelled events, alarms. Many of them make an overview.

For finding the run that is worth a look, not for reading numbers off it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

from lbw_sim.plots.canvas import BLACK, GREY, ORANGE, PALE, TEXT, VERMILLION
from lbw_sim.plots.loss_axis import LossAxis, loss_axis, median_rows, running_median
from lbw_sim.plots.thinning import merge_spans, thin_rows
from lbw_sim.trace.labels import EVENT_KINDS, Label

BUCKETS = 110


class StampInfo(NamedTuple):
    """Everything that a stamp shows."""

    steps: NDArray[Any]
    loss: NDArray[np.float64]
    """Running median, thinned out."""
    axis: LossAxis
    events: tuple[tuple[float, float], ...]
    """Labelled events, steps."""
    benign: tuple[tuple[float, float], ...]
    alarms: tuple[tuple[float, float], ...]
    """Steps in alarm."""


def stamp_info(
    columns: Mapping[str, NDArray[Any]], alarms: Sequence[tuple[int, int]], labels: Iterable[Label] = ()
) -> StampInfo:
    """Prepare a stamp. `columns`: as `Trace.to_numpy()` gives, at least a row; `alarms`: (first row, last row)."""
    steps = np.asarray(columns["step"], dtype=float)
    loss = np.asarray(columns["loss"], dtype=float)
    loss = np.where(np.isfinite(loss), loss, np.nan)
    median = running_median(loss, median_rows(len(loss)))
    rows = thin_rows(median, BUCKETS)
    hair = float(steps[-1] - steps[0]) / 300.0
    labels = tuple(labels)

    def spans(event: bool) -> tuple[tuple[float, float], ...]:
        found = [(float(x.start_step), float(x.end_step)) for x in labels if (x.kind in EVENT_KINDS) == event]
        return tuple(merge_spans(found, hair))

    return StampInfo(
        steps[rows], median[rows], loss_axis([loss]), spans(True), spans(False),
        tuple(merge_spans([(float(steps[first]), float(steps[last])) for first, last in alarms], hair)),
    )  # fmt: skip


def stamp_figure(info: StampInfo) -> Figure:
    """One stamp."""
    # a layout of its own: hundreds of these are drawn
    figure = Figure(figsize=(2.5, 1.05), dpi=100)
    draw_stamp(info, figure.add_axes((0.16, 0.17, 0.82, 0.72)))
    return figure


def short(value: float) -> str:
    """A number in the five characters for which a stamp has room.

    >>> short(8.031), short(-0.5), short(0.000223), short(1.33e-8), short(123456.0)
    ('8.03', '-0.5', '2e-4', '1e-8', '1e5')
    """
    text = f"{value:.3g}"
    if len(text) <= 5:
        return text
    digits, _, exponent = f"{value:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"


def draw_stamp(info: StampInfo, ax: Axes) -> None:
    """Black bars above: labelled events; orange: benign changes; red bars below: alarms."""
    ax.set_yscale("log" if info.axis.log else "linear")
    ax.set_ylim(info.axis.low, info.axis.high)
    width = float(info.steps[-1] - info.steps[0]) or 1.0
    ax.set_xlim(float(info.steps[0]), float(info.steps[0]) + width)
    ax.plot(info.steps, info.loss, color=BLACK, linewidth=0.8)
    edge = ax.get_xaxis_transform()
    for spans, height, colour in (
        (info.benign, 1.05, ORANGE),
        (info.events, 1.05, BLACK),
        (info.alarms, 0.03, VERMILLION),
    ):
        for start, end in spans:
            ax.plot(
                [start, max(end, start + width / 150.0)], [height, height], transform=edge, color=colour, linewidth=2.4,
                solid_capstyle="butt", clip_on=False, scalex=False,
            )  # fmt: skip
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(PALE)
    ends = [float(info.axis.low), float(info.axis.high)] if np.isfinite(info.loss).any() else []
    ax.yaxis.set_major_locator(FixedLocator(ends))
    ax.yaxis.set_minor_locator(FixedLocator([]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: short(tick)))
    ax.xaxis.set_major_locator(FixedLocator([]))
    ax.xaxis.set_minor_locator(FixedLocator([]))
    ax.tick_params(labelsize=TEXT - 2, length=0, pad=2, labelcolor=GREY)
    if not ends:
        ax.text(0.5, 0.5, "no finite loss", transform=ax.transAxes, ha="center", va="center", fontsize=TEXT - 1)
