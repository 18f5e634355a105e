"""`lbw record --excite`, `lbw calibrate` and `lbw simulate`, one after the other, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import lbw

from lbw_sim.simulate import PlantSpec
from lbw_sim.trace import read_traces

SHIPPED = Path(__file__).parent.parent.parent / "traces" / "excitation"


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plant fitted by the command to shipped runs, one of them held out."""
    file = tmp_path_factory.mktemp("plant") / "tiny.toml"
    text = lbw(
        "calibrate", SHIPPED, "--run", "dither", "--run", "drop", "--held-out", "lr0.01_dither",
        "--plant", "tissue_law", "--fix", "start_lr_sum=0.05", "--draws", 2, "-o", file,
    ).stdout  # fmt: skip
    assert "postln_lr0.01_dither4_s7" in text
    assert "2 runs fitted" in text
    return file


def test_a_calibrated_plant_is_a_file_that_says_what_it_was_fitted_on(plant: Path) -> None:
    spec = PlantSpec.load(plant)
    assert [error.run_id for error in spec.held_out] == ["postln_lr0.01_dither4_s7"]
    assert sorted(error.run_id for error in spec.training) == ["postln_lr0.005_dither9_s7", "postln_lr0.01_drop4_s7"]
    assert 0.0 < spec.held_out[0].rmse < 0.5
    assert spec.plant["start_lr_sum"] == 0.05
    assert spec.fitted is not None
    fitted = [trace for trace in read_traces(SHIPPED) if trace.run_id in {error.run_id for error in spec.training}]
    highest = max(float(trace.to_numpy()["effective_lr"].max()) for trace in fitted)
    assert (spec.fitted.longest_steps, spec.fitted.highest_lr) == (400, highest)


def test_simulate_flies_guards_and_says_when_the_range_is_left(plant: Path) -> None:
    about = ("simulate", "--plant", plant, "-g", "never", "--seeds", 2, "--steps", 50)
    rows = json.loads(lbw(*about, "--schedule", "cosine:0.005", "--schedule", "constant:0.5", "--json").stdout)
    assert [(row["schedule"], row["completed"], row["left_range"], row["why"]) for row in rows] == [
        ("cosine:0.005", 2, 0, ""),
        ("constant:0.5", 2, 2, "above"),
    ]
    text = lbw(*about, "--schedule", "constant:0.5", "--noise", SHIPPED, "--stop-outside").stdout
    assert "no measurement stands behind them" in text
    assert "recorded batch noise" in text
    assert "never calibrated" in lbw("simulate", "--plant", "stability_edge", "--seeds", 1, "--steps", 20).stdout


def test_what_simulate_cannot_read_is_one_line_with_the_way_out(plant: Path) -> None:
    assert "constant:0.01" in lbw("simulate", "--plant", plant, "--schedule", "constant:x", code=2).stderr
    assert "Did you mean 'tissue_law'" in lbw("simulate", "--plant", "tissue", code=2).stderr


def test_record_flies_programs_and_marks_them(tmp_path: Path) -> None:
    lbw("record", "-o", tmp_path, "--steps", 30, "--onset", 10, "--excite", "bump", "--excite-steps", 5)
    (trace,) = read_traces(tmp_path)
    columns = trace.to_numpy()
    assert trace.run_id == "postln_lr0.005_none_bump_adamw_s0"
    assert (columns["excitation_factor"] == [4.0 if 10 <= step < 15 else 1.0 for step in range(30)]).all()
    assert [step for step in range(30) if columns["event"][step] == "excite_bump"] == [10, 11, 12, 13, 14]
