"""One moment of a run, close up: the loss around an alarm or a missed event, and the signal that decided.

It shows what was recorded; whether the alarm was right is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from lbw_sim.errors import ScoreError
from lbw_sim.plots.canvas import BLACK, BLUE, GREY, ORANGE, TEXT, VERMILLION, dress, plain
from lbw_sim.plots.thinning import thin_rows
from lbw_sim.trace.labels import EVENT_KINDS, Label

LEAD_ROWS = (20, 60)
"""Rows shown before the moment: its own length, within these."""
MOST_ROWS = 240
"""Rows shown of the moment itself; a longer one is followed only so far."""
BUCKETS = 150


class MomentInfo(NamedTuple):
    """Everything that the close-up shows."""

    steps: NDArray[Any]
    loss: NDArray[np.float64]
    """nan where it is not finite."""
    nonfinite_steps: NDArray[Any]
    start_step: float
    """Where the alarm, or the missed event, begins."""
    end_step: float
    goes_on: bool
    """It lasts beyond what is shown."""
    alarm: bool
    """An alarm; else an event without one."""
    labels: tuple[tuple[str, float, float, bool], ...]
    """(kind, from, to, whether it is an event) of labels in the window."""
    signal_name: str
    """Empty: none is shown."""
    signal: NDArray[np.float64]


def window(rows: int, first_row: int, last_row: int) -> slice:
    """The rows of a run that are shown around a moment.

    >>> window(1000, 500, 529), window(1000, 5, 900)
    (slice(470, 550, None), slice(0, 265, None))
    """
    length = last_row - first_row + 1
    lead = min(LEAD_ROWS[1], max(LEAD_ROWS[0], length))
    return slice(max(0, first_row - lead), min(rows, min(last_row + 1, first_row + MOST_ROWS) + LEAD_ROWS[0]))


def moment_info(
    columns: Mapping[str, NDArray[Any]],
    first_row: int,
    last_row: int,
    labels: Iterable[Label] = (),
    *,
    alarm: bool = True,
    signal: tuple[str, NDArray[np.float64]] | None = None,
) -> MomentInfo:
    """Prepare the close-up of rows `first_row` to `last_row`, inclusive. Raises ScoreError.

    `columns`: as `Trace.to_numpy()` gives; `signal`: name, and one value per row of the run.
    """
    count = len(columns["step"])
    if not (0 <= first_row <= last_row < count):
        raise ScoreError(f"close-up: rows {first_row} to {last_row} are not among the {count} rows of the run")
    shown = window(count, first_row, last_row)
    steps = np.asarray(columns["step"])[shown]
    loss = np.asarray(columns["loss"], dtype=float)[shown]
    broken = (np.asarray(columns["nonfinite"])[shown] == 1.0) | np.isinf(loss)
    low, high = float(steps[0]), float(steps[-1])
    return MomentInfo(
        steps=steps,
        loss=np.where(np.isfinite(loss), loss, np.nan),
        nonfinite_steps=steps[broken],
        start_step=float(columns["step"][first_row]),
        end_step=float(columns["step"][min(last_row, shown.stop - 1)]),
        goes_on=last_row >= shown.stop,
        alarm=alarm,
        labels=tuple(
            (label.kind.replace("_", " "), max(low, float(label.start_step)), min(high, float(label.end_step)),
             label.kind in EVENT_KINDS)
            for label in sorted(labels)
            if label.end_step >= low and label.start_step <= high
        ),
        signal_name=signal[0] if signal else "",
        signal=signal[1][shown] if signal else np.empty(0),
    )  # fmt: skip


def moment_figure(info: MomentInfo) -> Figure:
    """Loss, and below it the signal if there is one; small, to stand beside others."""
    with_signal = bool(info.signal_name) and bool(np.isfinite(info.signal).any())
    # places by hand: finding them out takes longer than drawing
    figure = Figure(figsize=(3.5, 2.35 if with_signal else 1.75), dpi=100)
    heights = [1.7, 1.0] if with_signal else [1.0]
    bottom = 0.17 if with_signal else 0.23
    margins = {"left": 0.165, "right": 0.985, "top": 0.91, "bottom": bottom, "hspace": 0.14}
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights, gridspec_kw=margins)[
        :, 0
    ]
    draw_moment(info, axes[0])
    if with_signal:
        draw_signal(info, axes[1])
    axes[-1].set_xlabel("step", fontsize=TEXT - 1)
    axes[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:.0f}"))
    return figure


def draw_moment(info: MomentInfo, ax: Axes) -> None:
    """The loss; the alarm as a band from a firm line on; labelled events as bars above."""
    _small(ax, "loss [nats]")
    rows = thin_rows(info.loss, BUCKETS)
    ax.plot(
        info.steps[rows], info.loss[rows], color=BLACK, linewidth=0.9, marker="." if len(rows) < 100 else "",
        markersize=2.5,
    )  # fmt: skip
    finite = info.loss[np.isfinite(info.loss)]
    if not len(finite):
        ax.text(0.5, 0.5, "no finite loss", transform=ax.transAxes, ha="center", fontsize=TEXT - 1)
        ax.set_yticks([])
    elif finite.min() > 0.0 and finite.max() > 10.0 * finite.min():
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    edge = ax.get_xaxis_transform()
    if len(info.nonfinite_steps):
        ax.plot(
            info.nonfinite_steps, np.full(len(info.nonfinite_steps), 0.04), "x", transform=edge, color=VERMILLION,
            markersize=4, clip_on=False,
        )  # fmt: skip
    _mark(info, ax)
    for _, start, end, event in info.labels:
        colour = BLACK if event else ORANGE
        width = max(end - start, 0.004 * float(info.steps[-1] - info.steps[0]))
        ax.plot(
            [start, start + width], [1.03, 1.03], transform=edge, color=colour, linewidth=2.5, clip_on=False,
            solid_capstyle="butt", scalex=False,
        )  # fmt: skip
    names = ", ".join(dict.fromkeys(kind for kind, *_ in info.labels))
    if names:
        ax.annotate(
            f"label: {names}", (0.0, 1.05), xycoords="axes fraction", xytext=(0, 2), textcoords="offset points",
            fontsize=TEXT - 2, color=GREY, annotation_clip=False,
        )  # fmt: skip


def draw_signal(info: MomentInfo, ax: Axes) -> None:
    """The signal that the analyzer decided by."""
    _small(ax, plain(info.signal_name.replace("_", " ")))
    rows = thin_rows(info.signal, BUCKETS)
    ax.plot(info.steps[rows], info.signal[rows], color=BLUE, linewidth=0.9)
    _mark(info, ax)


def _mark(info: MomentInfo, ax: Axes) -> None:
    ax.axvline(info.start_step, color=VERMILLION if info.alarm else GREY, linewidth=0.9, zorder=1)
    end = float(info.steps[-1]) if info.goes_on else info.end_step
    if end > info.start_step:
        ax.axvspan(info.start_step, end, color=VERMILLION if info.alarm else GREY, alpha=0.12, linewidth=0, zorder=0)


def _small(ax: Axes, y_label: str) -> None:
    dress(ax)
    ax.set_ylabel(y_label, fontsize=TEXT - 1)
    ax.tick_params(labelsize=TEXT - 1.5)
    ax.yaxis.set_major_locator(MaxNLocator(4))
    ax.margins(x=0.01)
