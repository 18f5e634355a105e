"""What a search leaves behind: the guard, and beside it what it was tuned on, how it did, and the Pareto set.

The guard's file opens with comments that say so; they are for people, and its fingerprint does not see them. No file
holds a clock time: the same search writes the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lbw_sim
from lbw_sim.errors import TuneError
from lbw_sim.score import Column, jsonable
from lbw_sim.tune.tuning import Tuned
from lbw_sim.whole_file import write_whole
from lbw_sim.wording import counted, some


class Written(NamedTuple):
    """Where it lies."""

    guard: Path
    facts: Path
    """JSON."""
    front: Path
    """CSV: the recommended guard first, then the Pareto set on the tuning runs."""


def places(out: Path) -> Written:
    """The files of a search that writes its guard to `out`.

    >>> [path.name for path in places(Path("guard.toml"))]
    ['guard.toml', 'guard.tune.json', 'guard.pareto.csv']
    """
    return Written(out, out.with_suffix(".tune.json"), out.with_suffix(".pareto.csv"))


def write(tuned: Tuned, out: Path, *, command: str, about: Mapping[str, Any]) -> Written:
    """Write all three. `command`: as a user would type it; `about`: whatever else the facts should hold.

    Raises TuneError.
    """
    made = places(out)
    lines = [part for line in header(tuned, command, made) for part in textwrap.wrap(line, 116, subsequent_indent="  ")]
    text = "".join(f"# {line}\n" for line in lines)
    try:
        write_whole(made.facts, json.dumps(jsonable(facts(tuned, command, about)), indent=1) + "\n")
        write_whole(made.front, front_csv(tuned.front))
        write_whole(made.guard, text + tuned.spec.to_toml())
    except OSError as error:
        raise TuneError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return made


def header(tuned: Tuned, command: str, made: Written) -> list[str]:
    """The comments above the guard, without their mark."""
    rows = {str(row["guard"]): row for row in tuned.held_out if row["group"] == "all"}
    recall, delay, rate = (
        Column("recall", "", ".2f", interval=True),
        Column("median_delay_steps", "", ".0f"),
        Column("false_alarms_per_10k", "", ".2f", interval=True),
    )
    split = tuned.split
    lines = [
        f"Tuned from guard {tuned.start.name} ({tuned.start.fingerprint}) with lbw-sim {lbw_sim.__version__}:",
        command,
        f"Chosen on {counted(len(split.tuning), 'run')} out of {tuned.tried} candidates by this rule: {tuned.rule}.",
        f"Judged on {counted(len(split.held_out), 'other run')}, split by {split.by}, held out: "
        f"{some(split.held_out_groups, 6)}.",
    ]
    lines += [
        f"Held out, {name}: recall {recall.cell(rows[name])} of {rows[name]['events']} events, delay "
        f"{delay.cell(rows[name])} steps, {rate.cell(rows[name])} false alarms per 10,000."
        for name in ("tuned", "start")
    ]
    lines += [f"WARNING: {warning}" for warning in tuned.warnings]
    return [
        *lines,
        f"Intervals: 95 %, bootstrap over runs. The score on the runs that chose, which flatters: {made.facts.name}.",
    ]


def facts(tuned: Tuned, command: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, as JSON may hold it."""
    split = tuned.split
    return {
        "lbw_tune": 1,
        "lbw_sim": lbw_sim.__version__,
        "command": command,
        **about,
        "guard": {"name": tuned.spec.name, "fingerprint": tuned.spec.fingerprint},
        "start": {"name": tuned.start.name, "fingerprint": tuned.start.fingerprint},
        "changed": [
            {"parameter": path, "start": before, "tuned": now}
            for path, before, now in tuned.start.differences(tuned.spec)
        ],
        "searched": [
            {"parameter": d.path, "low": d.info.low, "high": d.info.high, "log": d.info.log}
            for d in tuned.space.dimensions
        ],
        "rule": tuned.rule,
        "candidates_tried": tuned.tried,
        "candidates_on_every_run": tuned.candidates,
        "split": {
            "by": split.by,
            "held_out_groups": split.held_out_groups,
            "tuning": [{"run": run.run_id, "digest": run.digest} for run in split.tuning],
            "held_out": [{"run": run.run_id, "digest": run.digest} for run in split.held_out],
        },
        "held_out": tuned.held_out,
        "tuning": tuned.tuning,
        "energy_per_1000_rows": {guard: {"held_out": out, "tuning": own} for guard, (out, own) in tuned.energy.items()},
        "simulated": None if tuned.simulated is None else tuned.simulated,
        "warnings": tuned.warnings,
    }


def front_csv(front: Sequence[Mapping[str, Any]]) -> str:
    """The Pareto set as a table, one guard per line."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(front[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({key: "yes" if value is True else "" if value is False else value for key, value in row.items()}
                    for row in front)  # fmt: skip
    return text.getvalue()
