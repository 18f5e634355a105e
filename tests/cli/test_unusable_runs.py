"""A folder in which some whole runs are of no use: the others are used, and what was left out is said everywhere."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from commands import lbw

from lbw_sim.backtest import backtest
from lbw_sim.errors import ChannelError, LbwError, ScoreError, TuneError
from lbw_sim.guard import BacktestReport, GuardSpec
from lbw_sim.replay import replay_many, usable_runs
from lbw_sim.report import ReportOptions, build_report
from lbw_sim.simulate import PlantSpec
from lbw_sim.trace import Label, Recorder, read_traces, write_labels
from lbw_sim.tune import tune
from lbw_sim.values import Telemetry, nan

GUARD = GuardSpec.load("zscore")
GOOD = ("good-0", "good-1", "good-2")
BLIND = "holds no loss, which guard 'zscore' needs"
EMPTY = "holds no row"


def record(folder: Path, run_id: str, rows: int, *, first: int = 0, measured: bool = True) -> None:
    """A falling loss that stands high for eight rows; or the same run with nothing measured but its learning rate."""
    with Recorder.open(folder, run_id, spec=GuardSpec.load("never"), mode="shadow", provenance={}) as recorder:
        guard = GuardSpec.load("never").build()
        state = guard.init()
        for step in range(first, first + rows):
            loss = 2.0 + 3.0 * math.exp(-step / 50) + 0.02 * math.sin(step**2) + 3.0 * (60 <= step < 68)
            seen = Telemetry(step, loss if measured else nan, 1e-3, nonfinite=0.0 if measured else nan)
            state, decision = guard.step(state, seen)
            recorder.append(seen, decision, elapsed_s=0.1 * step, effective_lr=1e-3)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labelled runs, one in which no loss was measured, and one that was killed before its first step."""
    folder = tmp_path_factory.mktemp("mixed")
    for place, run_id in enumerate(GOOD):
        record(folder, run_id, 90 + place)
        write_labels(folder / f"run_id={run_id}", [Label(60, 67, "spike")])
    record(folder, "blind", 90, measured=False)
    record(folder, "empty", 0)
    return folder


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["replay", "{mixed}", "-g", "zscore"], {"blind", "empty"}),
        (["score", "{mixed}", "-g", "zscore"], {"blind", "empty"}),
        (["backtest", "zscore", "{mixed}", "-o", "{out}/zscore.backtest.json"], {"blind", "empty"}),
        (["tune", "{mixed}", "-o", "{out}/guard.toml", "-g", "zscore", "-n", "2", "--search", "random"],
         {"blind", "empty"}),
        (["calibrate", "{mixed}", "--plant", "tissue_law", "--draws", "0", "--out", "{out}/plant.toml"],
         {"blind", "empty"}),
        (["simulate", "--plant", "lasting_damage", "-g", "never", "--noise", "{mixed}", "--seeds", "1"],
         {"blind", "empty"}),
        (["report", "{mixed}", "-o", "{out}/page.html", "-g", "zscore", "--rule", "never"], {"blind", "empty"}),
        (["plot", "{mixed}", "--out", "{out}"], {"empty"}),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)  # fmt: skip
def test_runs_of_no_use_are_left_out_and_named_with_the_reason(
    command: list[str], names: set[str], mixed: Path, tmp_path: Path
) -> None:
    done = lbw(*(word.format(mixed=mixed, out=tmp_path) for word in command), code=0)
    told = [line for line in done.stderr.splitlines() if "eft out" in line and "1 run (" in line]
    assert {name for name in ("blind", "empty", *GOOD) if any(f"1 run ({name})" in line for line in told)} == names
    assert any("1 run (empty): it holds no row" in line for line in told)


def test_what_a_command_prints_says_what_is_not_in_it(mixed: Path) -> None:
    table = lbw("replay", mixed, "-g", "zscore").stdout
    assert f"Left out, 1 run (blind): it {BLIND}." in table
    assert f"Left out, 1 run (empty): it {EMPTY}." in table
    assert "Left out, 1 run (blind)" in lbw("score", mixed, "-g", "zscore").stdout
    rows = {row["run"]: row for row in json.loads(lbw("replay", mixed, "-g", "zscore", "--json").stdout)}
    assert {run: row["left_out"] for run, row in rows.items()} == dict.fromkeys(GOOD) | {"blind": BLIND, "empty": EMPTY}
    assert rows["blind"]["alarms"] is None
    (row, *_) = json.loads(lbw("score", mixed, "-g", "zscore", "--json").stdout)
    assert row["left_out"] == [{"run_id": "blind", "why": BLIND}, {"run_id": "empty", "why": EMPTY}]
    assert row["runs"] == 3


def test_a_report_for_promotion_states_what_it_did_not_see_and_its_fingerprint_covers_that(
    mixed: Path, tmp_path: Path
) -> None:
    file = tmp_path / "zscore.backtest.json"
    lbw("backtest", "zscore", mixed, "-o", file)
    report = BacktestReport.load(file)
    assert [run.run_id for run in report.runs] == list(GOOD)
    sentence = f"Left out, 1 run (blind): it {BLIND}."
    assert {sentence, f"Left out, 1 run (empty): it {EMPTY}."} <= set(report.not_tested_on)
    hushed = report._replace(not_tested_on=tuple(text for text in report.not_tested_on if text != sentence))
    assert hushed.fingerprint != report.fingerprint


def test_files_that_are_handed_on_name_the_runs(mixed: Path, tmp_path: Path) -> None:
    lbw("tune", mixed, "-o", tmp_path / "guard.toml", "-g", "zscore", "-n", "2", "--search", "random")
    assert f"Left out, neither chose nor judged: 1 run (blind): it {BLIND}" in (tmp_path / "guard.toml").read_text()
    assert any("1 run (empty)" in text for text in json.loads((tmp_path / "guard.tune.json").read_text())["warnings"])
    lbw("report", mixed, "-o", tmp_path / "page.html", "--rule", "never")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "1 run (empty): it holds no row: nothing of that stands here." in page
    assert "1 run (blind): it holds no loss" in page  # nobody watched it, and the default guard sees nothing there


def test_only_when_nothing_is_left_is_it_an_error(mixed: Path, tmp_path: Path) -> None:
    for run, why in (("blind", BLIND), ("empty", EMPTY)):
        refused = lbw("replay", mixed / f"run_id={run}", "-g", "zscore", code=2)
        assert refused.stderr == f"lbw: no run can be used: 1 run ({run}): it {why}\n"
    both = tmp_path / "both"
    for run in ("blind", "empty"):
        (both / f"run_id={run}").mkdir(parents=True)
        file = mixed / f"run_id={run}" / "segment-000.parquet"
        (both / f"run_id={run}" / file.name).write_bytes(file.read_bytes())
    for command in (["score", both], ["calibrate", both, "--plant", "tissue_law", "--out", tmp_path / "plant.toml"]):
        assert "no run can be used: 1 run (blind)" in lbw(*command, code=2).stderr
    assert (
        "cannot be tuned on 2 of 2 runs: 1 run (blind)" in lbw("tune", both, "-o", tmp_path / "g.toml", code=2).stderr
    )


def test_from_python_nothing_is_dropped_unless_somebody_says_so(mixed: Path, tmp_path: Path) -> None:
    runs = read_traces(mixed)
    with pytest.raises(ChannelError, match="trace 'blind' does not hold"):
        list(replay_many(runs, [GUARD]))
    with pytest.raises(ScoreError, match="'empty' holds no row"):
        backtest(GuardSpec.load("never"), runs)
    with pytest.raises(TuneError, match=r"2 of 5 runs: 1 run \(blind\)"):
        tune([mixed], GUARD, candidates=2, search="random")
    with pytest.raises(LbwError, match="'empty' holds no row"):
        build_report([run for run in runs if run.run_id != "blind"], ReportOptions())
    used, left_out = usable_runs(runs, [GUARD])
    assert [trace.run_id for trace in used] == list(GOOD)
    assert left_out == [("blind", BLIND), ("empty", EMPTY)]


def test_a_plant_is_fitted_without_runs_that_begin_in_the_middle(tmp_path: Path) -> None:
    record(tmp_path, "whole", 90)
    record(tmp_path, "resumed", 90, first=500)
    file = tmp_path / "plant.toml"
    done = lbw("calibrate", tmp_path, "--plant", "tissue_law", "--draws", "0", "--out", file)
    assert "1 run (resumed): it starts at step 500" in done.stderr
    assert [one.run_id for one in PlantSpec.load(file).training] == ["whole"]
    refused = lbw("calibrate", tmp_path, "--plant", "tissue_law", "--held-out", "resumed", "--out", file, code=2)
    assert "no run that can be used has that in its id" in refused.stderr


def test_what_was_not_measured_is_proposed_as_no_event_and_a_run_without_a_row_takes_no_label(mixed: Path) -> None:
    found = json.loads(lbw("label", mixed, "--run", "blind", "--propose", "--json").stdout)
    assert found["labels"] == []
    refused = lbw("label", mixed, "--run", "empty", "--add", "spike", "3", "4", code=2)
    assert "empty holds no row: there is no step to label" in refused.stderr
