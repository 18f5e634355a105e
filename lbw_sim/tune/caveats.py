"""What a reader of a tuned guard must not miss, in sentences.

Each follows from numbers that stand in the tables; none changes a number or the choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lbw_sim.backtest import FEW_EVENTS
from lbw_sim.simulate import PlantSpec
from lbw_sim.tune.choose import Rule
from lbw_sim.wording import counted

if TYPE_CHECKING:
    from lbw_sim.tune.tuning import Simulated


def warnings_of(
    held_out: Sequence[Mapping[str, Any]],
    tuning: Sequence[Mapping[str, Any]],
    rule: Rule,
    *,
    kept: bool,
    unchanged: bool,
) -> Iterator[str]:
    """Where recommendation and evidence part.

    `held_out`, `tuning`: detection rows of `tuned` and `start`; `kept`: the budget is kept on the tuning side;
    `unchanged`: what is recommended is the start.
    """
    out = {str(row["guard"]): row for row in held_out if row["group"] == "all"}
    own = next(row for row in tuning if row["group"] == "all" and row["guard"] == "tuned")
    tuned, start = out["tuned"], out["start"]
    budget = rule.false_alarms_per_10k
    if not kept:
        yield "No candidate keeps the budget on the tuning runs: this is the one that exceeds it least."
    if unchanged:
        yield "Nothing that was tried beats the guard that the search started from; the file holds that guard."
    if not tuned["events"]:
        yield "No labelled event was held out: recall and delay are judged by nothing."
    elif tuned["events"] < FEW_EVENTS:
        few = counted(tuned["events"], "labelled event was", "labelled events were")
        yield f"Only {few} held out: the recall there is a guess."
    if own["recall"] > tuned["recall_high"]:
        yield (
            f"Recall parts: {own['recall']:.2f} on the runs that chose, {tuned['recall']:.2f} "
            f"({tuned['recall_low']:.2f}–{tuned['recall_high']:.2f}) held out."
        )
    if own["false_alarms_per_10k"] < tuned["false_alarms_per_10k_low"]:
        yield (
            f"False alarms part: {own['false_alarms_per_10k']:.1f} per 10,000 on the runs that chose, "
            f"{tuned['false_alarms_per_10k']:.1f} ({tuned['false_alarms_per_10k_low']:.1f}–"
            f"{tuned['false_alarms_per_10k_high']:.1f}) held out."
        )
    if kept and tuned["false_alarms_per_10k"] > budget:
        yield (
            f"The budget of {budget:g} false alarms per 10,000 is kept on the runs that chose and not on those held "
            f"out: {tuned['false_alarms_per_10k']:.1f}."
        )
    if not unchanged and not _better(tuned, start, budget):
        yield "Held out, it is no better than the guard that the search started from: fly that one."


def simulated_warnings(plants: Sequence[PlantSpec], flown: Simulated) -> Iterator[str]:
    """What the simulated runs do not say; `flown`: the guards on these plants."""
    if never := [plant.name for plant in plants if plant.fitted is None]:
        yield f"Never calibrated: {', '.join(never)}. Simulation shows how it behaves, and nothing about a real run."
    elif flown.left_range[0]:
        yield (
            f"{flown.left_range[0]} of {flown.runs} simulated runs left the range of the calibration: no measurement "
            f"stands behind them."
        )
    if flown.against_never[1] > 0.0:
        yield f"Simulated, it ends higher than no guard at all, by {flown.against_never[0]:.4f} nats."


def _better(one: Mapping[str, Any], other: Mapping[str, Any], budget: float) -> bool:
    """By the rule, up to the delay."""

    def key(row: Mapping[str, Any]) -> tuple[float, float, float]:
        values = [row[name] for name in ("false_alarms_per_10k", "recall", "median_delay_steps")]
        rate, recall, delay = (math.nan if value is None else float(value) for value in values)
        return (
            0.0 if math.isnan(rate) else max(0.0, rate - budget),
            0.0 if math.isnan(recall) else -recall,
            math.inf if math.isnan(delay) else delay,
        )

    return key(one) < key(other)
