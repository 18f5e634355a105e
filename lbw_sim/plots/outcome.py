"""Final loss against learning rate, method by method: the stress table as a figure.

A run that ended without a finite loss is marked as lost: it is never averaged over, nor left out in silence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from lbw_sim.errors import ScoreError
from lbw_sim.plots.canvas import (
    GREY,
    LINE_COLOURS,
    LONGEST_NARROW_NAME,
    TEXT,
    WHITE,
    WIDTH,
    dress,
    footnote,
    narrow,
    new_figure,
    plain,
    short,
)
from lbw_sim.plots.loss_axis import LossAxis, loss_axis, set_loss_axis

MARKERS = ("o", "s", "D", "P", "X", "v", "p")


class MethodLine(NamedTuple):
    """One method over the learning rates."""

    method: str
    lrs: tuple[float, ...]
    """Rising; those at which the method was run."""
    means: tuple[float, ...]
    """Mean final loss over the seeds; nan where any of them did not end finite."""
    dots: tuple[tuple[float, float], ...]
    """(lr, final loss) of each run that ended finite."""
    lost: tuple[tuple[float, int], ...]
    """(lr, runs that did not end finite), where there are any."""


class OutcomeInfo(NamedTuple):
    """Everything that the figure shows."""

    title: str
    lines: tuple[MethodLine, ...]
    """In order of first appearance."""
    lrs: tuple[float, ...]
    axis: LossAxis
    initial_loss: float
    """Loss before training; nan when not given."""


def outcome_info(
    methods: Sequence[str],
    lrs: Sequence[float],
    seeds: Sequence[int],
    final_losses: Sequence[float],
    title: str = "",
    *,
    initial_loss: float = math.nan,
) -> OutcomeInfo:
    """Prepare the figure from one entry per run in each sequence; losses in nats, not finite for a diverged run.

    Raises ScoreError when the lengths differ, an lr is not above 0, or one (method, lr, seed) comes twice.
    """
    if not (len(methods) == len(lrs) == len(seeds) == len(final_losses)) or not len(methods):
        raise ScoreError(
            f"outcome figure: {len(methods)} methods, {len(lrs)} lrs, {len(seeds)} seeds and {len(final_losses)} "
            "final losses; give one of each per run, and at least one run"
        )
    if any(not (0.0 < lr < math.inf) for lr in lrs):
        raise ScoreError("outcome figure: every lr must be above 0 and finite; its axis is logarithmic")
    runs = list(zip(methods, map(float, lrs), seeds, strict=True))
    twice = [run for run in dict.fromkeys(runs) if runs.count(run) > 1]
    if twice:
        raise ScoreError(f"outcome figure: method, lr, seed {twice[0]} comes {runs.count(twice[0])} times")
    lines: list[MethodLine] = []
    for method in dict.fromkeys(methods):
        mine = [(lr, float(loss)) for (m, lr, _), loss in zip(runs, final_losses, strict=True) if m == method]
        grid = sorted({lr for lr, _ in mine})
        means: list[float] = []
        lost: list[tuple[float, int]] = []
        for lr in grid:
            ends = [loss for at, loss in mine if at == lr]
            infinite = sum(not math.isfinite(loss) for loss in ends)
            # a mean over the survivors would flatter the method
            means.append(math.nan if infinite else math.fsum(ends) / len(ends))
            if infinite:
                lost.append((lr, infinite))
        dots = tuple(sorted((lr, loss) for lr, loss in mine if math.isfinite(loss)))
        lines.append(MethodLine(method, tuple(grid), tuple(means), dots, tuple(lost)))
    losses = [loss for line in lines for _, loss in line.dots]
    if math.isfinite(initial_loss):
        # worse than untrained is all the same: the frame ends just above
        shown = [min(loss, 1.1 * initial_loss) for loss in losses] + [initial_loss]
        axis = loss_axis([np.array(shown)])._replace(largest=max([*losses, initial_loss]))
    else:
        axis = loss_axis([np.array(losses)])
    return OutcomeInfo(title, tuple(lines), tuple(sorted(set(map(float, lrs)))), axis, float(initial_loss))


def outcome_figure(
    methods: Sequence[str],
    lrs: Sequence[float],
    seeds: Sequence[int],
    final_losses: Sequence[float],
    title: str = "",
    *,
    initial_loss: float = math.nan,
    width: float = WIDTH,
) -> Figure:
    """A line per method through the means over seeds, a dot per run. Raises ScoreError."""
    info = outcome_info(methods, lrs, seeds, final_losses, title, initial_loss=initial_loss)
    figure = new_figure(5.0, width)
    draw_outcome(info, figure.subplots())
    return figure


def draw_outcome(info: OutcomeInfo, ax: Axes) -> None:
    """Runs above the frame stand on its upper edge as carets, runs that ended without a finite loss as crosses."""
    dress(ax, "nominal learning rate", "final loss [nats]")
    ax.set_xscale("log")
    set_loss_axis(ax, info.axis)
    edge = ax.get_xaxis_transform()
    if math.isfinite(info.initial_loss):
        ax.axhline(info.initial_loss, color=GREY, linewidth=1.0, linestyle="--", zorder=1)
        ax.annotate(
            "before training", (0.0, info.initial_loss), xycoords=ax.get_yaxis_transform(), xytext=(3, 3),
            textcoords="offset points", fontsize=TEXT - 1, color=GREY,
        )  # fmt: skip
    # side by side, so that methods do not hide each other
    step = min([b / a for a, b in zip(info.lrs, info.lrs[1:], strict=False)], default=2.0)
    handles: list[Line2D] = []
    for place, line in enumerate(info.lines):
        shift = step ** (0.3 * ((place + 0.5) / len(info.lines) - 0.5))
        look: dict[str, Any] = {"color": LINE_COLOURS[place % len(LINE_COLOURS)]}
        marker = MARKERS[place % len(MARKERS)]
        ax.plot([lr * shift for lr in line.lrs], line.means, linewidth=1.5, zorder=3, **look)
        ax.plot(
            [lr * shift for lr, _ in line.dots], [loss for _, loss in line.dots], marker, markersize=5.5, alpha=0.75,
            markeredgecolor=WHITE, markeredgewidth=0.3, zorder=4, **look,
        )  # fmt: skip
        name = plain(short(line.method, LONGEST_NARROW_NAME) if narrow(ax) else line.method)
        handles.append(Line2D([], [], linewidth=1.5, marker=marker, markersize=5, label=name, **look))
        above = [lr * shift for lr, loss in line.dots if loss > info.axis.high]
        ax.plot(above, [1.0] * len(above), "^", transform=edge, clip_on=False, markersize=7, zorder=4, **look)
        for lr, count in line.lost:
            ax.plot([lr * shift], [1.035], "x", transform=edge, clip_on=False, markersize=6, zorder=4, **look)
            if count > 1:
                ax.annotate(
                    f"{count}", (lr * shift, 1.035), xycoords=edge, xytext=(0, 5), textcoords="offset points",
                    fontsize=TEXT - 2, ha="center", annotation_clip=False, **look,
                )  # fmt: skip
    ax.xaxis.set_major_locator(FixedLocator(list(info.lrs)))
    ax.xaxis.set_minor_locator(NullLocator())
    named = _apart(info.lrs, 9.0 * float(ax.figure.get_size_inches()[0]))  # type: ignore[union-attr]
    ax.xaxis.set_major_formatter(lambda tick, _: f"{tick:.3g}" if tick in named else "")
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=TEXT, frameon=False)
    ax.set_title(plain(info.title), loc="left", fontsize=TEXT + 2, pad=22)
    told = ["a mark per run, the line through means over seeds"]
    if any(line.lost for line in info.lines):
        told.append("× no finite final loss, so no mean")
    if info.axis.cut:
        told.append(f"▲ {info.axis.cut}")
    footnote(ax, "; ".join(told))


def _apart(lrs: Sequence[float], letters: float) -> set[float]:
    """Those whose names do not run into one another on an axis that holds so many letters.

    >>> sorted(_apart([1e-4, 1.1e-4, 1e-3], 60.0))
    [0.0001, 0.001]
    """
    span = math.log(lrs[-1] / lrs[0]) or 1.0
    named: list[float] = []
    for lr in lrs:
        room = (len(f"{lr:.3g}") + 2) / letters
        if not named or math.log(lr / named[-1]) / span >= room:
            named.append(lr)
    return set(named)
