import json
import math
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from lbw_sim.score.control import control_summary
from lbw_sim.score.detection import DetectionCounts, RunScore
from lbw_sim.score.table import (
    CONTROL_COLUMNS,
    DETECTION_COLUMNS,
    control_rows,
    detection_rows,
    jsonable,
    markdown,
    rich_table,
)

SCORES = [
    RunScore("a_1", (), (), DetectionCounts(runs=1, events=4, detected=1, clean_rows=5000, delays_rows=(3.0,))),
    RunScore("a_2", (), (), DetectionCounts(runs=1, clean_rows=5000, false_alarms=2, latched_rows=50)),
    RunScore("b_1", (), (), DetectionCounts(runs=1, events=1, detected=1, delays_rows=(5.0,))),
    RunScore("c_1", (), (), DetectionCounts(runs=1, clean_rows=10_000)),
]


def test_a_guard_gets_a_pooled_row_a_mean_over_families_and_one_row_per_family():
    rows = detection_rows({"mine": SCORES}, seed=0)
    assert [row["group"] for row in rows] == ["all", "family mean", "a", "b", "c"]
    assert [row["recall"] for row in rows[:4]] == [0.4, 0.625, 0.25, 1.0]
    assert math.isnan(rows[4]["recall"])
    assert rows[0]["false_alarms_per_10k"] == 1.0
    assert math.isnan(rows[1]["false_alarms_per_10k"]), "the budget is pooled, never a mean over families"
    assert rows[0]["median_delay_rows"] == 4.0
    assert rows[0]["recall_low"] <= 0.4 <= rows[0]["recall_high"]
    assert {frozenset(row) for row in rows} == {frozenset(rows[0])}
    assert len(detection_rows({"mine": SCORES, "other": SCORES}, seed=0, families=False)) == 4


def test_undefined_is_a_dash_in_tables_and_null_in_json():
    rows = detection_rows({"mine": SCORES}, seed=0)
    lines = markdown(rows, DETECTION_COLUMNS).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    last = [cell.strip() for cell in lines[-1].split("|")[1:-1]]
    assert last[:5] == ["mine", "c", "1", "0", "–"]
    parsed = json.loads(json.dumps(jsonable(rows), allow_nan=False))
    assert parsed[4]["recall"] is None
    assert parsed[0]["recall"] == 0.4


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="ndarray"):
        jsonable({"x": np.zeros(2)})


def test_control_rows_read_like_the_summaries():
    columns = {
        "scale": np.array([1.0, 0.5]), "lr": np.array([1.0, 1.0]), "regime": np.array([1, 3]),
        "skipped": np.array([False, True]), "rolled_back_to": np.array([-1, -1]),
    }  # fmt: skip
    text = markdown(control_rows([("run|7", control_summary(columns))]), CONTROL_COLUMNS)
    assert text.splitlines()[-1] == "| run\\|7 | 2 | 0.2 | 1 | 1 | 1 | 0.750 | 25.0% | 1 | 0 |"


def test_a_terminal_shows_the_same_cells():
    out = StringIO()
    rows = detection_rows({"mine": SCORES}, seed=0)
    Console(file=out, width=250).print(rich_table(rows, DETECTION_COLUMNS, "Detection"))
    text = out.getvalue()
    assert "Detection" in text
    assert "family mean" in text
    assert "–" in text
    assert "nan" not in text
