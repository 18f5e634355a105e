"""Scores as tables for people and as plain values for JSON.

A table shows an undefined value as "–" and JSON as null: neither ever turns it into 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from lbw_sim.notebook import grid
from lbw_sim.score.control import ControlSummary
from lbw_sim.score.detection import (
    DetectionCounts,
    Interval,
    RunScore,
    bootstrap,
    by_family,
    family_mean,
    family_of,
    pooled,
)
from lbw_sim.score.range_measures import RangeMeasures
from lbw_sim.values import nan
from lbw_sim.wording import printable

UNDEFINED = "–"


class Column(NamedTuple):
    """How one key of a row is shown."""

    key: str
    title: str
    """May hold line breaks, for terminals."""
    format: str = ""
    """A format specification for numbers; text is shown as it is."""
    interval: bool = False
    """The row also holds the ends of an interval, `<key>_low` and `<key>_high`, shown behind the value."""

    def cell(self, row: Mapping[str, object]) -> str:
        """What stands in a row's cell."""
        text = shown(row[self.key], self.format)
        low, high = row.get(f"{self.key}_low"), row.get(f"{self.key}_high")
        if not self.interval or UNDEFINED in (text, shown(low), shown(high)):
            return text
        return f"{text} ({shown(low, self.format)}–{shown(high, self.format)})"


DETECTION_COLUMNS = (
    Column("guard", "guard"),
    Column("group", "runs of"),
    Column("runs", "runs", "d"),
    Column("events", "events", "d"),
    Column("recall", "recall\n(95 %)", ".2f", interval=True),
    Column("median_delay_steps", "delay,\nsteps", ".0f"),
    Column("false_alarms_per_10k", "false alarms\nper 10k (95 %)", ".1f", interval=True),
    Column("baited", "baited", "d"),
    Column("latched_share", "latched", ".1%"),
)
"""What a detection table shows; the rows hold more."""

CONTROL_COLUMNS = (
    Column("run", "run"),
    Column("steps", "steps", "d"),
    Column("control_energy", "energy", ".1f"),
    Column("control_active_steps", "active", "d"),
    Column("regime_switches", "switches", "d"),
    Column("stress_mode_steps", "stress", "d"),
    Column("mean_scale", "mean\nscale", ".3f"),
    Column("lr_mass_removed", "LR mass\nremoved", ".1%"),
    Column("skipped_steps", "skipped", "d"),
    Column("rollbacks", "rollbacks", "d"),
)


def detection_rows(
    scores: Mapping[str, Sequence[RunScore]], *, seed: int, families: bool = True
) -> list[dict[str, object]]:
    """One row per guard over all runs, one for the mean over families, and one per family, in that order.

    `scores`: guard name to its runs. Group `all` is pooled. In group `family mean` only the recalls are means (over the
    families that hold events); its counts and its false-alarm rate are nan, because that budget is pooled.
    The range measures are means over the runs in which they are defined; nan where `match` was not asked for them.
    """
    rows: list[dict[str, object]] = []
    for guard, runs in scores.items():
        intervals = bootstrap(runs, seed=seed)
        groups = by_family(runs)
        rows.append(
            {
                "guard": guard, "group": "all", **_measures(pooled(runs)),
                **_ends("recall", intervals.recall),
                **_ends("false_alarms_per_10k", intervals.false_alarms_per_10k),
                **_range_means(runs),
            }
        )  # fmt: skip
        mean: dict[str, object] = dict.fromkeys(rows[-1], nan)
        for recall in ("recall", "high_recall", "startup_recall", "later_recall"):
            mean[recall] = family_mean(groups, lambda counts, name=recall: getattr(counts, name))  # type: ignore[misc]
        rows.append({**mean, "guard": guard, "group": "family mean", **_ends("recall", intervals.family_recall)})
        if families:
            undefined = _ends("recall", Interval(nan, nan)) | _ends("false_alarms_per_10k", Interval(nan, nan))
            rows += [
                {"guard": guard, "group": family, **_measures(counts), **undefined,
                 **_range_means([run for run in runs if family_of(run.run_id) == family])}
                for family, counts in groups.items()
            ]  # fmt: skip
    return rows


def control_rows(summaries: Iterable[tuple[str, ControlSummary]]) -> list[dict[str, object]]:
    """One row per run, by name; two runs in two folders may have one."""
    return [{"run": name, **summary._asdict()} for name, summary in summaries]


def markdown(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> str:
    """A Markdown table; numbers to the right.

    >>> print(markdown([{"guard": "never", "recall": 0.0}, {"guard": "odd", "recall": nan}],
    ...                [Column("guard", "guard"), Column("recall", "recall", ".2f")]))
    | guard | recall |
    |---|---:|
    | never | 0.00 |
    | odd | – |
    """
    lines = [
        "| " + " | ".join(column.title.replace("\n", " ") for column in columns) + " |",
        "|" + "|".join("---:" if column.format else "---" for column in columns) + "|",
    ]
    for row in rows:
        cells = (column.cell(row).replace("|", "\\|") for column in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rich_table(rows: Sequence[Mapping[str, object]], columns: Sequence[Column], title: str = "") -> RichTable:
    """The same for a terminal."""
    table = RichTable(title=title or None, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column.title, justify="right" if column.format else "left", no_wrap=True)
    for row in rows:
        # as Text: a note or a guard's name may hold brackets, which are no markup
        table.add_row(*(Text(printable(column.cell(row))) for column in columns))
    return table


class Table(NamedTuple):
    """Rows and how they are shown: prints with rich, and shows itself in a notebook.

    >>> columns = [Column("guard", "guard"), Column("recall", "recall", ".2f")]
    >>> table = Table([{"guard": "never", "recall": 0.0}], columns)
    >>> table._repr_html_()
    '<table><tr><th>guard</th><th>recall</th></tr><tr><td>never</td><td>0.00</td></tr></table>'
    """

    rows: Sequence[Mapping[str, object]]
    columns: Sequence[Column] = DETECTION_COLUMNS

    def _repr_html_(self) -> str:
        """For notebooks."""
        head = [column.title.replace("\n", " ") for column in self.columns]
        return grid("", head, [[column.cell(row) for column in self.columns] for row in self.rows])

    def __rich__(self) -> RichTable:
        return rich_table(self.rows, self.columns)


def shown(value: object, spec: str = "") -> str:
    """One cell. nan and None become "–".

    >>> shown(0.314, ".1f"), shown(nan, "d"), shown(12, "d")
    ('0.3', '–', '12')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNDEFINED
    return format(value, spec)


def jsonable(value: Any) -> Any:
    """The same value as JSON can hold it: mappings and sequences by content, nan and infinite numbers as null.

    >>> jsonable({"recall": nan, "interval": Interval(0.25, float("inf"))})
    {'recall': None, 'interval': {'low': 0.25, 'high': None}}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return jsonable(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a score's JSON")


def _measures(counts: DetectionCounts) -> dict[str, object]:
    names = (
        "runs", "rows", "events", "detected", "recall", "high_recall", "startup_events", "startup_recall",
        "later_recall", "median_delay_rows", "median_delay_steps", "alarms", "false_alarms", "clean_rows",
        "false_alarms_per_10k", "baited", "latched_share", "unplaced_labels",
    )  # fmt: skip
    return {name: getattr(counts, name) for name in names}


def _range_means(runs: Sequence[RunScore]) -> dict[str, object]:
    """Mean of each range measure over the runs in which it is defined."""
    table = {name: [getattr(run.ranges, name) for run in runs] for name in RangeMeasures._fields}
    defined = {name: [value for value in values if not math.isnan(value)] for name, values in table.items()}
    return {name: math.fsum(values) / len(values) if values else nan for name, values in defined.items()}


def _ends(name: str, interval: Interval) -> dict[str, object]:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}
