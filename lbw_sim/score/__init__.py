"""Judgement of recorded and replayed runs: what a guard saw in time and what it did, never what it saved."""

from lbw_sim.score.control import ControlSummary, control_summary
from lbw_sim.score.detection import (
    FALSE_ALARM_BUDGET_PER_10K,
    Alarm,
    DetectionCounts,
    RunScore,
    by_family,
    find_alarms,
    match,
    oracle_alarms,
    pooled,
    random_alarms,
    score_regimes,
)
from lbw_sim.score.table import (
    CONTROL_COLUMNS,
    DETECTION_COLUMNS,
    Column,
    Table,
    control_rows,
    detection_rows,
    jsonable,
    markdown,
    rich_table,
)
from lbw_sim.trace.alarms import unsafe_rows

__all__ = [
    "CONTROL_COLUMNS",
    "DETECTION_COLUMNS",
    "FALSE_ALARM_BUDGET_PER_10K",
    "Alarm",
    "Column",
    "ControlSummary",
    "DetectionCounts",
    "RunScore",
    "Table",
    "by_family",
    "control_rows",
    "control_summary",
    "detection_rows",
    "find_alarms",
    "jsonable",
    "markdown",
    "match",
    "oracle_alarms",
    "pooled",
    "random_alarms",
    "rich_table",
    "score_regimes",
    "unsafe_rows",
]
