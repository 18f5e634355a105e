"""The timeline of a run: named lines of spans, one for each kind of label, mark, alarm, regime and act.

Only what is there has a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from numpy.typing import NDArray

from lbw_sim.plots.canvas import (
    BLACK,
    BLUE,
    CALM,
    GREEN,
    GREY,
    LANE,
    LONGEST_NARROW_NAME,
    ORANGE,
    PALE,
    PURPLE,
    SKY,
    TEXT,
    VERMILLION,
    YELLOW,
    dress,
    narrow,
    plain,
    short,
)  # fmt: skip
from lbw_sim.plots.thinning import merge_spans
from lbw_sim.score.detection import JudgedAlarm
from lbw_sim.trace.alarms import stretches, unsafe_rows
from lbw_sim.trace.labels import EVENT_KINDS, Label
from lbw_sim.values import Posture, Regime

REGIME_COLOURS = {
    Regime.WARMUP: PALE,
    Regime.STABLE: CALM,
    Regime.STRESSED: YELLOW,
    Regime.SPIKE: VERMILLION,
    Regime.OSCILLATION: PURPLE,
    Regime.DIVERGING: BLUE,
    Regime.PLATEAU: ORANGE,
    Regime.RECOVERY: SKY,
    Regime.NONFINITE: BLACK,
}
"""Second to position: every regime has its own named lane."""

LONGEST_NAME = 32


class Lane(NamedTuple):
    """One line of the timeline."""

    name: str
    note: str
    """Shown at the right: how many, or the share of rows."""
    spans: tuple[tuple[float, float], ...]
    """(from, to) in steps; a span of one row reaches to the next row."""
    colour: str
    hollow: bool = False


def label_lanes(labels: tuple[Label, ...]) -> list[Lane]:
    """What the labels say, events first; those of low confidence hollow, in a line of their own."""
    lanes: list[Lane] = []
    kinds = sorted({label.kind for label in labels}, key=lambda kind: (kind not in EVENT_KINDS, kind))
    for kind in kinds:
        for low in (False, True):
            mine = [label for label in labels if label.kind == kind and (label.confidence == "low") == low]
            if mine:
                event = kind in EVENT_KINDS
                spans = tuple((float(label.start_step), float(label.end_step)) for label in mine)
                name = f"label: {words(kind)}" + (", unsure" if low else "")
                lanes.append(Lane(name, f"{len(mine)}", spans, BLACK if event else GREY, hollow=low))
    return lanes


def mark_lanes(steps: NDArray[Any], after: NDArray[Any], events: NDArray[Any]) -> list[Lane]:
    """Injected faults and marks that the run itself recorded."""
    texts = np.asarray(events).astype(str)
    return [
        Lane(f"marked: {name}", f"{len(rows)}", _spans_of(texts == name, steps, after), PURPLE)
        for name in sorted(set(texts.tolist()) - {""})
        if len(rows := np.flatnonzero(texts == name))
    ]


def alarm_lanes(
    steps: NDArray[Any], after: NDArray[Any], alarms: Iterable[JudgedAlarm], *, judged: bool, regimes: NDArray[Any]
) -> list[Lane]:  # fmt: skip
    """Alarms from start to end, by verdict."""
    if not judged:
        spans = _spans_of(unsafe_rows(regimes), steps, after)
        return [Lane("alarm", f"{len(spans)}", spans, VERMILLION)] if spans else []
    lanes: list[Lane] = []
    looks = {"event": ("alarm: on event", GREEN), "ignored": ("alarm: on unsure event", GREY)}
    looks |= {"baited": ("alarm: baited", ORANGE), "false": ("alarm: false", VERMILLION)}
    alarms = tuple(alarms)
    for verdict, (name, colour) in looks.items():
        spans = tuple((float(steps[a.start_row]), float(after[a.end_row])) for a in alarms if a.verdict == verdict)
        if spans:
            lanes.append(Lane(name, f"{len(spans)}", spans, colour))
    return lanes


def regime_lanes(bands: tuple[tuple[int, float, float], ...], regimes: NDArray[Any]) -> list[Lane]:
    """Each regime that occurs, with its share of the rows. `bands`: (regime, from step, to step)."""
    lanes: list[Lane] = []
    for regime, colour in REGIME_COLOURS.items():
        spans = tuple((start, end) for code, start, end in bands if code == regime)
        if spans:
            share = float(np.mean(regimes == regime))
            lanes.append(Lane(f"regime: {words(regime.name)}", f"{share:.1%}", spans, colour))
    return lanes


def act_lanes(
    columns: Mapping[str, NDArray[Any]], steps: NDArray[Any], after: NDArray[Any], mode: str
) -> list[Lane]:  # fmt: skip
    """Skips that the guard granted; in shadow mode rollbacks, too, of which none was done."""
    asked, shadow = np.asarray(columns["posture"]), mode == "shadow"
    lanes = [("skip, not applied" if shadow else "skip", asked == Posture.SKIP)]
    lanes += [("rollback, not applied", asked == Posture.ROLLBACK)] * shadow
    return [
        Lane(name, f"{int(mask.sum())}", _spans_of(mask, steps, after), VERMILLION, hollow=shadow)
        for name, mask in lanes
        if mask.any()
    ]


def _spans_of(mask: NDArray[np.bool_], steps: NDArray[Any], after: NDArray[Any]) -> tuple[tuple[float, float], ...]:
    return tuple((float(steps[first]), float(after[last])) for first, last in stretches(mask).tolist())


def row_ends(steps: NDArray[Any]) -> NDArray[Any]:
    """The step to which each row reaches: the next row's; the last row is as long as the median one."""
    usual = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    return np.append(steps[1:], steps[-1] + usual)


def words(name: str) -> str:
    """The name of a kind or regime, for reading."""
    return name.lower().replace("_", " ")


def draw_lanes(lanes: Sequence[Lane], ax: Axes, hair: float) -> None:
    """One named line each. `hair`: steps too few to be seen apart."""
    dress(ax)
    ax.grid(False, axis="y")
    ax.set_ylim(len(lanes) - 0.4, -0.6)
    longest = LONGEST_NARROW_NAME if narrow(ax) else LONGEST_NAME
    ax.set_yticks(range(len(lanes)), [plain(short(lane.name, longest)) for lane in lanes], fontsize=TEXT - 1)
    ax.tick_params(axis="y", length=0)
    for place, lane in enumerate(lanes):
        ax.axhline(place, color=LANE, linewidth=0.6, zorder=0)
        fill(ax, lane.spans, place - 0.34, place + 0.34, lane.colour, hair, hollow=lane.hollow)
        ax.annotate(
            lane.note, (1.0, place), xycoords=ax.get_yaxis_transform(), xytext=(4, 0), textcoords="offset points",
            fontsize=TEXT - 1, va="center", color=GREY, annotation_clip=False,
        )  # fmt: skip


def fill(
    ax: Axes, spans: Iterable[tuple[float, float]], low: float, high: float, colour: str, hair: float, *,
    hollow: bool = False, alpha: float = 1.0, whole_height: bool = False,
) -> None:  # fmt: skip
    """Boxes over spans of steps, never thinner than a hair: one row in 20,000 must still be seen."""
    boxes = PolyCollection(
        [[(start, low), (end, low), (end, high), (start, high)] for start, end in merge_spans(spans, hair)],
        facecolors="none" if hollow else colour,
        edgecolors=colour,
        linewidths=0.8,
        alpha=alpha,
        zorder=0.5 if whole_height else 2.0,
    )
    if whole_height:
        boxes.set_transform(ax.get_xaxis_transform())
    ax.add_collection(boxes, autolim=False)
