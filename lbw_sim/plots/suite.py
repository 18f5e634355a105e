"""A stress suite drawn: loss over nominal and applied learning rate, and ranks with their critical difference.

What is drawn is the counted loss, at most that before training, so that one diverged run does not set the frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from lbw_sim.plots.canvas import BLACK, GREY, LINE_COLOURS, PALE, TEXT, WHITE, WIDTH, dress, footnote, new_figure, plain
from lbw_sim.plots.outcome import MARKERS
from lbw_sim.score.significance import Ranks
from lbw_sim.score.stress_judgement import Judgement
from lbw_sim.score.stress_results import BASELINE, SuiteRun
from lbw_sim.values import nan

MOST_COLOURED = len(LINE_COLOURS)


class Curve(NamedTuple):
    """One method on one workload; every tuple has one value per nominal learning rate, rising."""

    label: str
    lrs: tuple[float, ...]
    effective_lrs: tuple[float, ...]
    """Mean over steps and seeds of the learning rate applied."""
    means: tuple[float, ...]
    lows: tuple[float, ...]
    """Of the best seed."""
    highs: tuple[float, ...]
    coloured: bool
    """Whether it has a colour and a name in the legend."""


class SensitivityInfo(NamedTuple):
    """Everything that the figure shows."""

    workloads: tuple[str, ...]
    units: tuple[str, ...]
    curves: tuple[tuple[Curve, ...], ...]
    """Per workload."""
    best_losses: tuple[float, ...]
    """Of AdamW, per workload."""
    best_lrs: tuple[float, ...]
    coloured: tuple[str, ...]
    """Labels in the order of the legend."""


def sensitivity_info(judgement: Judgement) -> SensitivityInfo:
    """Curves of every method; AdamW, guards and the least sensitive others get colours."""
    suite = judgement.suite
    methods = suite.labels(controls=False)
    coloured = _coloured(judgement, methods)
    names = [facts for facts in suite.facts.workloads if facts.name in judgement.references]
    return SensitivityInfo(
        tuple(facts.name for facts in names),
        tuple(facts.unit for facts in names),
        tuple(
            tuple(_curve(label, runs, label in coloured) for label in methods if (runs := suite.of(facts.name, label)))
            for facts in names
        ),
        tuple(judgement.references[facts.name].best_loss for facts in names),
        tuple(judgement.references[facts.name].best_lr for facts in names),
        tuple(coloured),
    )


def sensitivity_figure(judgement: Judgement, *, width: float = WIDTH) -> Figure:
    """A row per workload: loss over the nominal learning rate, and over the one applied."""
    info = sensitivity_info(judgement)
    rows = max(1, len(info.workloads))
    figure = new_figure(2.75 * rows + 0.7, width)
    axes = figure.subplots(rows, 2, squeeze=False, sharey="row")
    for place in range(len(info.workloads)):
        draw_sensitivity(info, place, axes[place][0], effective=False)
        draw_sensitivity(info, place, axes[place][1], effective=True)
    looks = [(label, _look(info, label)) for label in info.coloured]
    handles = [Line2D([], [], linewidth=1.6, markersize=5, label=plain(label), **look) for label, look in looks]
    if any(not curve.coloured for curves in info.curves for curve in curves):
        handles.append(Line2D([], [], color=PALE, linewidth=1.0, label="other methods"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=TEXT, frameon=False)
    return figure


def draw_sensitivity(info: SensitivityInfo, place: int, ax: Axes, *, effective: bool) -> None:
    """One panel. Bars reach from the best to the worst seed; the dashed line is AdamW's best loss."""
    dress(ax, "mean learning rate applied" if effective else "nominal peak learning rate")
    if not effective:
        ax.set_ylabel(f"final loss [nats per {info.units[place]}]", fontsize=TEXT)
        ax.set_title(plain(info.workloads[place]), loc="left", fontsize=TEXT + 2)
    ax.set_xscale("log")
    ax.axhline(info.best_losses[place], color=GREY, linewidth=1.0, linestyle="--", zorder=1)
    if effective:
        ax.annotate(
            "AdamW's best", (1.0, info.best_losses[place]), xycoords=ax.get_yaxis_transform(), xytext=(-2, 3),
            textcoords="offset points", ha="right", fontsize=TEXT - 1, color=GREY,
        )  # fmt: skip
    curves = sorted(info.curves[place], key=lambda curve: curve.coloured)
    for curve in curves:
        where = curve.effective_lrs if effective else curve.lrs
        if not curve.coloured:
            ax.plot(where, curve.means, color=PALE, linewidth=0.9, zorder=2)
            continue
        look = _look(info, curve.label)
        ax.plot(where, curve.means, linewidth=1.6, markersize=4.5, markeredgecolor=WHITE, markeredgewidth=0.4,
                zorder=4, **look)  # fmt: skip
        ax.vlines(where, curve.lows, curve.highs, color=look["color"], linewidth=0.9, alpha=0.7, zorder=3)
    if not effective and curves:
        lrs = sorted({lr for curve in curves for lr in curve.lrs})
        ax.xaxis.set_major_locator(FixedLocator(lrs))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(lambda tick, _: f"{tick:.3g}")
    else:
        ax.xaxis.set_minor_formatter(NullFormatter())


class RanksInfo(NamedTuple):
    """Everything that a critical-difference diagram shows."""

    labels: tuple[str, ...]
    """Best first."""
    mean_ranks: tuple[float, ...]
    groups: tuple[tuple[int, int], ...]
    """Places of the first and the last method of each stretch that is not told apart; only the widest ones."""
    critical_difference: float
    blocks: int


def ranks_info(ranks: Ranks) -> RanksInfo:
    """Stretches of methods whose mean ranks lie nearer than the critical difference.

    >>> ranks_info(Ranks(("a", "b", "c", "d"), (1.0, 1.5, 2.4, 4.0), 10, 0.0, 1.0)).groups
    ((0, 1), (1, 2))
    """
    groups: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks.mean_ranks):
        last = max(
            place for place, other in enumerate(ranks.mean_ranks) if other - rank < ranks.critical_difference
        ) if not math.isnan(ranks.critical_difference) else first  # fmt: skip
        if last > first and not any(a <= first and last <= b for a, b in groups):
            groups.append((first, last))
    return RanksInfo(ranks.methods, ranks.mean_ranks, tuple(groups), ranks.critical_difference, ranks.blocks)


def ranks_figure(ranks: Ranks, *, width: float = WIDTH) -> Figure:
    """Mean ranks with the critical difference (Demšar, JMLR 7, 2006)."""
    info = ranks_info(ranks)
    figure = new_figure(1.3 + 0.23 * len(info.labels), width)
    draw_ranks(info, figure.subplots())
    return figure


def draw_ranks(info: RanksInfo, ax: Axes) -> None:
    """A line per method, best on top; a bar at the left joins methods that are not told apart."""
    count = len(info.labels)
    heights = [count - place for place in range(count)]
    dress(ax, "mean rank of the final loss; 1: the lowest")
    joined = "; grey bars: not told apart" if info.groups else ""
    footnote(ax, f"over {info.blocks} (workload, learning rate){joined}")
    ax.grid(False, axis="y")
    colours = [LINE_COLOURS[1] if label.startswith("guard") else BLACK if label == BASELINE else LINE_COLOURS[0]
               for label in info.labels]  # fmt: skip
    for rank, height, colour in zip(info.mean_ranks, heights, colours, strict=True):
        ax.plot([rank], [height], "o", color=colour, markersize=6, zorder=4)
    left = 0.6 - 0.13 * len(info.groups)
    right = max(info.mean_ranks, default=1.0) + 0.5
    for place, (first, last) in enumerate(info.groups):
        x = left + 0.13 * place
        ax.plot([x, x], [heights[first] + 0.25, heights[last] - 0.25], color=GREY, linewidth=3.0, zorder=3,
                solid_capstyle="butt")  # fmt: skip
    if not math.isnan(info.critical_difference):
        best, end = info.mean_ranks[0], info.mean_ranks[0] + info.critical_difference
        # of few methods it is longer than their ranks are apart
        right = max(right, end + 0.1)
        ax.plot([best, end], [count + 0.8] * 2, color=BLACK, linewidth=1.4, zorder=4)
        for tip in (best, end):
            ax.plot([tip, tip], [count + 0.65, count + 0.95], color=BLACK, linewidth=1.4, zorder=4)
        # above the bar, from whichever of its ends has more room
        late = best + end > left + right
        ax.annotate(
            f"critical difference {info.critical_difference:.2f}", (end if late else best, count + 0.95),
            xytext=(0, 2), textcoords="offset points", va="bottom", ha="right" if late else "left", fontsize=TEXT,
        )  # fmt: skip
    ax.set_yticks(heights, [plain(label) for label in info.labels], fontsize=TEXT)
    ax.set_ylim(0.4, count + 1.9)
    ax.set_xlim(left - 0.2, right)
    ax.xaxis.set_major_locator(FixedLocator(range(1, count + 1)))


def _coloured(judgement: Judgement, methods: Sequence[str]) -> list[str]:
    """AdamW, guards with controls, other guards, then the least sensitive, as far as colours go."""
    means = {label: [s.sensitivity.mean for s in judgement.standings if s.label == label] for label in methods}
    known = {label: math.fsum(found) / len(found) if found else nan for label, found in means.items()}

    def order(label: str) -> tuple[int, float]:
        kind = 0 if label == BASELINE else 1 if label in judgement.suite.facts.controlled else 3
        if kind == 3 and label.startswith("guard:"):
            kind = 2
        return kind, math.inf if math.isnan(known[label]) else known[label]

    return sorted(methods, key=order)[:MOST_COLOURED]


def _curve(label: str, runs: Sequence[SuiteRun], coloured: bool) -> Curve:
    by_lr = {lr: [run for run in runs if run.lr == lr] for lr in sorted({run.lr for run in runs})}
    losses = {lr: [run.counted_loss for run in mine] for lr, mine in by_lr.items()}
    return Curve(
        label,
        tuple(by_lr),
        tuple(_mean([run.mean_effective_lr for run in mine]) for mine in by_lr.values()),
        tuple(_mean(found) for found in losses.values()),
        tuple(min(found) for found in losses.values()),
        tuple(max(found) for found in losses.values()),
        coloured,
    )


def _look(info: SensitivityInfo, label: str) -> dict[str, Any]:
    place = info.coloured.index(label)
    # AdamW is what everything is held against: black
    colours = (BLACK, *(colour for colour in LINE_COLOURS if colour != BLACK))
    return {"color": colours[place], "marker": MARKERS[place % len(MARKERS)]}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
