"""One run: loss, what the labels say, what the guard thought, what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lbw_sim.errors import ScoreError, unknown_name
from lbw_sim.plots.canvas import (
    BLACK,
    BLUE,
    GREY,
    LONGEST_NARROW_NAME,
    PHONE_WIDTH,
    TEXT,
    VERMILLION,
    WIDTH,
    Picture,
    dress,
    narrow,
    plain,
)  # fmt: skip
from lbw_sim.plots.loss_axis import LossAxis, loss_axis, median_rows, running_median, set_loss_axis
from lbw_sim.plots.thinning import BUCKETS, NARROW_BUCKETS, apart, changes, thin_rows
from lbw_sim.plots.timeline import (
    LONGEST_NAME,
    REGIME_COLOURS,
    Lane,
    act_lanes,
    alarm_lanes,
    draw_lanes,
    fill,
    label_lanes,
    mark_lanes,
    regime_lanes,
    row_ends,
    words,
)  # fmt: skip
from lbw_sim.score.detection import score_regimes
from lbw_sim.trace import Trace
from lbw_sim.trace.labels import EVENT_KINDS, Label
from lbw_sim.trace.parquet import final_rows
from lbw_sim.values import Regime
from lbw_sim.wording import counted

Values = NDArray[np.float64]

COLUMNS = (
    "step", "loss", "lr", "effective_lr", "nonfinite", "regime", "posture", "scale", "energy", "skipped", "event",
)  # fmt: skip
MODES = ("active", "shadow")


class EventMark(NamedTuple):
    """A labelled event, named above the loss."""

    name: str
    start_step: float
    end_step: float
    hollow: bool
    """Of low confidence."""


class GivenUp(NamedTuple):
    """Rows that a rollback took back; the last of them is the one that went back."""

    steps: NDArray[Any]
    loss: Values
    """As recorded; nan where it is not finite."""


class RunInfo(NamedTuple):
    """Everything that the figure of one run shows."""

    title: str
    mode: str
    steps: NDArray[Any]
    loss: Values
    """As recorded; nan where it is not finite."""
    loss_median: Values
    median_rows: int
    axis: LossAxis
    steps_above: NDArray[Any]
    steps_below: NDArray[Any]
    """Steps whose loss lies above, below the frame."""
    steps_nonfinite: NDArray[Any]
    """Steps whose loss or gradient was measured and is not finite."""
    given_up: tuple[GivenUp, ...]
    """Drawn beside the loss; they are part of no other panel."""
    bands: tuple[tuple[int, float, float], ...]
    """(regime, from step, to step), in order, without gaps."""
    events: tuple[EventMark, ...]
    lanes: tuple[Lane, ...]
    """Labels, marks in the trace, alarms by verdict, regimes, skips, rollbacks; only what is there."""
    scale: Values
    lr: Values
    applied_lr: Values
    """The recorded effective lr; in shadow mode scale × lr, which was not applied."""
    energy: Values
    rules: tuple[Lane, ...] = ()
    """Alarms of other guards along the same record."""


def stretches_given_up(everything: Mapping[str, NDArray[Any]]) -> tuple[GivenUp, ...]:
    """What each rollback of a run took back, in order. `everything`: the columns of lineage `all`.

    >>> columns = {"step": np.array([0, 1, 2, 3, 2, 3]), "loss": np.ones(6)}
    >>> columns |= {"rolled_back_to": np.array([-1, -1, -1, 2, -1, -1])}
    >>> [g.steps.tolist() for g in stretches_given_up(columns)]
    [[2, 3]]
    """
    steps, loss = np.asarray(everything["step"]), _finite(everything["loss"])
    back_to = np.asarray(everything["rolled_back_to"])
    overtaken = ~final_rows(steps)
    falls = np.flatnonzero(np.diff(steps) <= 0)
    found = []
    for last in np.flatnonzero(back_to >= 0):
        place = int(np.searchsorted(falls, last))
        rows = np.arange(falls[place - 1] + 1 if place else 0, last + 1)
        # a run that ended right there has no rows that overtook them
        rows = rows[overtaken[rows] | (steps[rows] >= min(back_to[last], steps[last]))]
        found.append(GivenUp(steps[rows], loss[rows]))
    return tuple(found)


def run_info(
    columns: Mapping[str, NDArray[Any]],
    labels: Iterable[Label] = (),
    title: str = "",
    *,
    mode: str = "active",
    rules: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    judge: bool = True,
    given_up: Sequence[GivenUp] = (),
) -> RunInfo:
    """Prepare the figure of one lineage of a trace. Raises ScoreError.

    `columns`: as `Trace.to_numpy()` gives; `labels`: of the run, any order. Alarms are judged by the labels as
    `lbw_sim.score.detection` does, and left unjudged without any. `mode`: that of the trace; in shadow mode the figure
    says that the scale was not applied. `rules`: name -> (first row, last row) of each alarm of another guard.
    `judge`: False leaves alarms unjudged all the same. `given_up`: as `stretches_given_up` gives it.
    """
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ScoreError(f"run figure needs column {', '.join(missing)}; there is {', '.join(sorted(columns))}")
    if mode not in MODES:
        raise ScoreError("run figure: " + unknown_name("mode", mode, MODES))
    labels = tuple(labels)
    steps = np.asarray(columns["step"])
    regimes = np.asarray(columns["regime"])
    if not len(steps):
        raise ScoreError(f"run figure {title!r}: the trace holds no rows")
    # score_regimes also refuses steps that fall
    alarms = score_regimes(regimes, labels, steps, title).alarms
    loss = _finite(columns["loss"])
    infinite = np.isinf(np.asarray(columns["loss"], dtype=float))
    every_step = np.concatenate([steps, *(stretch.steps for stretch in given_up)])
    every_loss = np.concatenate([loss, *(stretch.loss for stretch in given_up)])
    axis = loss_axis([every_loss])
    scale, lr = np.asarray(columns["scale"], dtype=float), np.asarray(columns["lr"], dtype=float)
    starts = np.flatnonzero(np.diff(regimes, prepend=-1))
    after = row_ends(steps)
    bands = tuple(
        (int(regimes[first]), float(steps[first]), float(after[last]))
        for first, last in zip(starts, [*(starts[1:] - 1), len(steps) - 1], strict=True)
    )
    window = median_rows(len(steps))
    return RunInfo(
        title=title,
        mode=mode,
        steps=steps,
        loss=loss,
        loss_median=running_median(loss, window),
        median_rows=window,
        axis=axis,
        steps_above=np.unique(every_step[every_loss > axis.high]),
        steps_below=np.unique(every_step[every_loss < axis.low]),
        steps_nonfinite=steps[(np.asarray(columns["nonfinite"]) == 1.0) | infinite],
        given_up=tuple(given_up),
        bands=bands,
        events=tuple(
            EventMark(words(label.kind), float(label.start_step), float(label.end_step), label.confidence == "low")
            for label in sorted(labels, key=lambda label: (label.start_step, label.end_step))
            if label.kind in EVENT_KINDS
        ),
        lanes=(
            *label_lanes(labels),
            *mark_lanes(steps, after, columns["event"]),
            *alarm_lanes(steps, after, alarms, judged=judge and bool(labels), regimes=regimes),
            *regime_lanes(bands, regimes),
            *act_lanes(columns, steps, after, mode),
            *_rollback_lanes(given_up),
        ),
        scale=scale,
        lr=lr,
        applied_lr=scale * lr if mode == "shadow" else np.asarray(columns["effective_lr"], dtype=float),
        energy=np.asarray(columns["energy"], dtype=float),
        rules=tuple(
            Lane(name, f"{len(found)}", tuple((float(steps[a]), float(after[b])) for a, b in found), GREY)
            for name, found in (rules or {}).items()
        ),
    )


def run_figure(
    columns: Mapping[str, NDArray[Any]],
    labels: Iterable[Label] = (),
    title: str = "",
    *,
    mode: str = "active",
    rules: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    judge: bool = True,
    given_up: Sequence[GivenUp] = (),
    width: float = WIDTH,
) -> Figure:
    """Loss, timeline, scale, learning rate and control energy of one run over its steps. Raises ScoreError.

    `width`: in inches. The others are as in `run_info`. Long runs are thinned out, extremes kept.
    """
    info = run_info(columns, labels, title, mode=mode, rules=rules, judge=judge, given_up=given_up)
    panels: list[tuple[float, Callable[[RunInfo, Axes], None]]] = [
        (3.4 if width >= WIDTH else 2.6, draw_loss),
        (0.2 * len(info.lanes) + 0.1, draw_timeline),
    ]
    if info.rules:
        panels.append((0.2 * len(info.rules) + 0.1, draw_rules))
    # of a guard that asked for nothing all along, a straight line is enough
    asked = bool(info.scale.min() < 1.0)
    panels.append((0.9 if asked else 0.5, draw_scale))
    if np.isfinite(info.lr).any():
        panels.append((0.9, draw_lr))
    if asked:
        panels.append((0.9, draw_energy))
    heights = [height for height, _ in panels]
    # places by hand: to find them out, everything would have to be drawn twice
    names = [len(lane.name) for lane in (*info.lanes, *info.rules)]
    left = max(0.75, 0.15 + 0.067 * min(LONGEST_NAME if width > PHONE_WIDTH else LONGEST_NARROW_NAME, max(names)))
    more_lines_of_legend = 0 if width >= WIDTH else (1 if width > PHONE_WIDTH else 3) + bool(info.given_up)
    top = (0.35 if info.title else 0.0) + (0.45 if info.events else 0.28) + 0.17 * more_lines_of_legend
    gap, bottom = 0.13, 0.45
    height = sum(heights) + gap * (len(heights) - 1) + top + bottom
    figure = Figure(figsize=(width, height), dpi=100)
    margins = {
        "left": left / width, "right": 1.0 - 0.55 / width, "top": 1.0 - top / height, "bottom": bottom / height,
        "hspace": gap * len(heights) / sum(heights),
    }  # fmt: skip
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, gridspec_kw=margins)
    for (_, draw), ax in zip(panels, axes, strict=True):
        draw(info, ax)
    axes[-1].set_xlabel("step", fontsize=TEXT)
    ends = [row_ends(steps)[-1] for steps in (info.steps, *(stretch.steps for stretch in info.given_up))]
    axes[-1].set_xlim(float(info.steps[0]), float(max(ends)))
    return figure


def plot_trace(trace: Trace) -> Picture:
    """The figure of a recorded run, as it was recorded; `Trace.plot` is the same. Raises TraceError, ScoreError."""
    given_up = stretches_given_up(trace.to_numpy("all"))
    return Picture(run_figure(trace.to_numpy(), trace.labels, trace.run_id, mode=trace.meta.mode, given_up=given_up))


def draw_loss(info: RunInfo, ax: Axes) -> None:
    """Loss with its running median over the regimes; labelled events above."""
    dress(ax, y_label="loss [nats]")
    set_loss_axis(ax, info.axis)
    for regime, colour in REGIME_COLOURS.items():
        spans = [(start, end) for code, start, end in info.bands if code == regime]
        if spans and regime != Regime.STABLE:
            fill(ax, spans, 0.0, 1.0, colour, _hair(info, ax), alpha=0.22, whole_height=True)
    buckets = NARROW_BUCKETS if narrow(ax) else BUCKETS
    rows = thin_rows(info.loss, buckets)
    ax.plot(info.steps[rows], info.loss[rows], color=GREY, linewidth=0.6, alpha=0.6, label="loss")
    rows = thin_rows(info.loss_median, buckets)
    name = f"running median, {counted(info.median_rows, 'row')}"
    ax.plot(info.steps[rows], info.loss_median[rows], color=BLACK, linewidth=1.3, label=name)
    name_once: str | None = "rolled back"
    for stretch in info.given_up:
        rows = thin_rows(stretch.loss, max(20, buckets // len(info.given_up)))
        ax.plot(stretch.steps[rows], stretch.loss[rows], color=VERMILLION, linewidth=0.8, alpha=0.8, label=name_once)
        name_once = None
    edge = ax.get_xaxis_transform()
    cut = info.axis.cut or None
    for outside, height, marker in ((info.steps_above, 0.985, "^"), (info.steps_below, 0.015, "v")):
        outside = apart(outside, 2.0 * _hair(info, ax))
        if len(outside):
            ax.plot(
                outside, np.full(len(outside), height), marker, transform=edge, color=VERMILLION, markersize=4,
                label=cut, clip_on=False,
            )  # fmt: skip
            cut = None
    if len(info.steps_nonfinite):
        crosses = apart(info.steps_nonfinite, 2.0 * _hair(info, ax))
        ax.plot(
            crosses, np.full(len(crosses), 0.03), "x", transform=edge, color=BLACK,
            markersize=5, label=f"not finite ({counted(len(info.steps_nonfinite), 'step')})", clip_on=False,
        )  # fmt: skip
    if not np.isfinite(info.loss).any():
        ax.text(0.5, 0.5, "no finite loss", transform=ax.transAxes, ha="center", va="center", fontsize=TEXT + 2)
        ax.set_yticks([])
    _name_events(info, ax)
    # above the frame and the event names, where it covers no line
    ax.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.075 if info.events else 1.0), fontsize=TEXT - 1, frameon=False,
        ncols=5 if _wide(ax) else 1 if narrow(ax) else 2, borderpad=0.1, borderaxespad=0.1, columnspacing=1.5,
    )  # fmt: skip
    title = info.title + (" · shadow: scale not applied" if info.mode == "shadow" and info.title else "")
    ax.set_title(plain(title), loc="left", fontsize=TEXT + 2, pad=38 if info.events else 20)


def draw_timeline(info: RunInfo, ax: Axes) -> None:
    """One named line per kind of label, verdict and regime."""
    draw_lanes(info.lanes, ax, _hair(info, ax))


def draw_rules(info: RunInfo, ax: Axes) -> None:
    """One line per other guard: when it would have been in alarm."""
    draw_lanes(info.rules, ax, _hair(info, ax))


def draw_scale(info: RunInfo, ax: Axes) -> None:
    """Factor on the learning rate, in [0, 1]."""
    shadow = info.mode == "shadow"
    dress(ax, y_label="scale,\nnot applied" if shadow and info.scale.min() < 1.0 else "scale")
    ax.set_ylim(0.0, 1.08)
    ax.set_yticks([0.0, 0.5, 1.0])
    rows = changes(info.scale)
    ax.plot(
        info.steps[rows], info.scale[rows], color=BLUE, linewidth=1.2, linestyle="--" if shadow else "-",
        drawstyle="steps-post",
    )  # fmt: skip


def draw_lr(info: RunInfo, ax: Axes) -> None:
    """Learning rate before and after scaling."""
    dress(ax, y_label="lr")
    shadow = info.mode == "shadow"
    rows = changes(info.lr)
    name = "lr, as applied" if shadow else "lr"
    ax.plot(info.steps[rows], info.lr[rows], color=GREY, linewidth=2.4, alpha=0.5, label=name)
    rows = changes(info.applied_lr)
    ax.plot(
        info.steps[rows], info.applied_lr[rows], color=BLUE, linewidth=1.1, drawstyle="steps-post",
        linestyle="--" if shadow else "-", label="scale × lr, not applied" if shadow else "effective lr",
    )  # fmt: skip
    ax.set_ylim(0.0, 1.35 * float(np.nanmax(info.lr)) or 1.0)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_formatter(lambda tick, _: f"{tick:.3g}")
    ax.legend(loc="upper right", fontsize=TEXT - 1, framealpha=0.9, edgecolor="none", ncols=2, borderpad=0.2)


def draw_energy(info: RunInfo, ax: Axes) -> None:
    """Control energy so far."""
    shadow = info.mode == "shadow"
    dress(ax, y_label="energy, not\napplied" if shadow else "control energy\nΣ (1 − scale)²")
    rows = changes(info.energy)
    ax.plot(
        info.steps[rows], info.energy[rows], color=BLACK, linewidth=1.2, linestyle="--" if shadow else "-",
        drawstyle="steps-post",
    )  # fmt: skip
    ax.set_ylim(0.0, 1.08 * float(np.max(info.energy)) or 1.0)
    ax.yaxis.set_major_locator(MaxNLocator(3))


def _hair(info: RunInfo, ax: Axes) -> float:
    """Steps that are less than a dot wide."""
    return (float(info.steps[-1]) - float(info.steps[0])) / (400.0 if narrow(ax) else 1500.0)


def _wide(ax: Axes) -> bool:
    return bool(ax.figure.get_size_inches()[0] >= WIDTH)  # type: ignore[union-attr]


def _rollback_lanes(given_up: Sequence[GivenUp]) -> list[Lane]:
    """From the step that each rollback went back to, to the one that it came from."""
    spans = tuple((float(stretch.steps[0]), float(row_ends(stretch.steps)[-1])) for stretch in given_up)
    return [Lane("rollback", f"{len(spans)}", spans, VERMILLION)] if spans else []


def _finite(loss: NDArray[Any]) -> Values:
    """With nan in the place of infinity."""
    values = np.asarray(loss, dtype=float)
    return np.where(np.isinf(values), np.nan, values)


def _name_events(info: RunInfo, ax: Axes) -> None:
    """Brackets above the frame, nested ones raised; names only where all of them fit, the timeline has them anyway."""
    edge = ax.get_xaxis_transform()
    first = float(info.steps[0])
    width = max(1.0, float(info.steps[-1]) - first)
    starts = [max(0.0, (event.start_step - first) / width) for event in info.events]
    # share of the frame's width per letter
    letter = 0.009 if _wide(ax) else 0.028 if narrow(ax) else 0.014
    ends = [start + letter * len(event.name) for start, event in zip(starts, info.events, strict=True)]
    fit = all(end <= start for end, start in zip(ends, [*starts[1:], 1.02], strict=False))
    covered = -np.inf
    for event in info.events:
        height = 1.03 if event.start_step <= covered else 1.012
        covered = max(covered, event.end_step)
        colour = GREY if event.hollow else BLACK
        ax.plot(
            [event.start_step, max(event.end_step, event.start_step + 0.002 * width)], [height, height],
            transform=edge, clip_on=False, color=colour, linewidth=3.0, solid_capstyle="butt", scalex=False,
        )  # fmt: skip
        if fit:
            ax.annotate(
                event.name, (event.start_step, height), xycoords=edge, xytext=(0, 3), textcoords="offset points",
                fontsize=TEXT - 1, color=colour, annotation_clip=False,
            )  # fmt: skip
