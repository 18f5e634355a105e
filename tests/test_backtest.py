"""The back-test of a guard says what was seen, what was asked for, and what was not tested."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
from pathlib import Path

import pytest
from commands import lbw

from lbw_sim.backtest import backtest, digest_telemetry
from lbw_sim.errors import ScoreError
from lbw_sim.guard import BacktestReport, GuardSpec, require_backtest
from lbw_sim.replay import replay
from lbw_sim.score import find_alarms, match, pooled, unsafe_rows
from lbw_sim.simulate import FittedRange, PlantSpec, RunError
from lbw_sim.trace import Label, Recorder, Trace, read_trace, read_traces, write_labels
from lbw_sim.values import Telemetry

SPEC = GuardSpec.load("default")
SHIPPED = Path(__file__).parent.parent / "traces"


def record(
    folder: Path, run_id: str, *, rows: int = 400, spike_at: int | None = 300, by: str = "never", lift: float = 3.0
) -> Trace:
    """A run whose loss falls with a little noise and stands higher for eight rows."""
    spec = GuardSpec.load(by)
    guard = spec.build()
    chance = random.Random(rows)
    state = guard.init()
    with Recorder.open(folder, run_id, spec=spec, mode="shadow", provenance={}) as recorder:
        for step in range(rows):
            loss = 2.0 + 3.0 * math.exp(-step / 50) + chance.gauss(0.0, 0.02)
            if spike_at is not None and spike_at <= step < spike_at + 8:
                loss += lift
            seen = Telemetry(step, loss, 1e-3, nonfinite=0.0)
            state, decision = guard.step(state, seen)
            recorder.append(seen, decision, elapsed_s=float(step), effective_lr=1e-3)
    if spike_at is not None:
        write_labels(folder / f"run_id={run_id}", [Label(spike_at, spike_at + 7, "spike")])
    return read_trace(folder / f"run_id={run_id}")


@pytest.fixture(scope="module")
def report() -> BacktestReport:
    return backtest(SPEC, read_traces(SHIPPED))


def test_the_figures_are_those_of_score_and_replay_on_the_shipped_runs(report: BacktestReport) -> None:
    traces = read_traces(SHIPPED)
    assert [run.run_id for run in report.runs] == [trace.run_id for trace in traces]
    scores = []
    for trace, run in zip(traces, report.runs, strict=True):
        found = replay(trace, SPEC).columns
        scale = found["scale"]
        assert (run.rows, run.damped_steps, run.lowest_scale) == (len(scale), int((scale < 1).sum()), scale.min())
        assert run.energy == found["energy"][-1]
        assert run.skips == int((found["posture"] == 3).sum())
        scores.append(match(find_alarms(unsafe_rows(found["regime"])), trace.labels, found["step"], trace.run_id))
    whole = pooled(scores)
    line = report.detection[0]
    assert (line.guard, line.group, line.events, line.detected) == ("default", "all", whole.events, whole.detected)
    assert (line.recall, line.high_recall) == (whole.recall, whole.high_recall)
    assert (line.false_alarms, line.false_alarms_per_10k) == (whole.false_alarms, whole.false_alarms_per_10k)
    never = report.detection[-1]
    assert (never.guard, never.group, never.events, never.detected, never.recall) == (
        "never",
        "all",
        whole.events,
        0,
        0.0,
    )


def test_it_is_the_evidence_for_this_guard(report: BacktestReport, tmp_path: Path) -> None:
    report.save(tmp_path / "default.backtest.json")
    assert require_backtest(SPEC, tmp_path / "default.backtest.json") == report


def test_what_was_not_tested_follows_from_the_runs(tmp_path: Path) -> None:
    record(tmp_path, "quiet_1", spike_at=None)
    found = " ".join(backtest(SPEC, read_traces(tmp_path)).not_tested_on)
    for sentence in (
        "No labelled event at all",
        "1 run of 1 without any label",
        "No run longer than 400 steps.",
        "No family of runs but quiet:",
        "No peak learning rate below 0.001 or above 0.001.",
        "1 run of 1 without grad_norm",
        "It never damped or skipped a step",
        "No simulated effect",
    ):
        assert sentence in found, sentence
    record(tmp_path, "noisy-2")
    found = " ".join(backtest(SPEC, read_traces(tmp_path)).not_tested_on)
    assert "Only 1 labelled event:" in found
    assert "No labelled event of kind divergence, oscillation or nonfinite." in found
    assert "1 run of 2 without any label" in found
    assert "never damped" not in found


def test_one_record_under_two_guards_has_one_digest_and_one_changed_loss_another(tmp_path: Path) -> None:
    one = record(tmp_path / "a", "run", by="never")
    other = record(tmp_path / "b", "run", by="zscore")
    assert digest_telemetry(one) == digest_telemetry(other)
    assert digest_telemetry(record(tmp_path / "c", "run", lift=3.0000000000000004)) != digest_telemetry(one)


def test_a_record_that_comes_twice_is_refused(tmp_path: Path) -> None:
    record(tmp_path, "first")
    record(tmp_path, "second")
    with pytest.raises(ScoreError, match="'first' and 'second' hold the same record"):
        backtest(SPEC, read_traces(tmp_path))


def test_nothing_to_test_on_is_refused() -> None:
    with pytest.raises(ScoreError, match="on no run"):
        backtest(SPEC, [])


def test_with_a_plant_it_says_what_acting_does_there_and_how_far_to_believe_it(tmp_path: Path) -> None:
    record(tmp_path, "run", spike_at=None)
    plant = dataclasses.replace(
        PlantSpec.load("noisy_quadratic").with_parameters({"curvature": 500.0, "start": 0.01}),
        name="mine",
        fitted=FittedRange(1e-4, 2e-2, 60, 1e6, 1e6, 0.0),
        held_out=(RunError("a", 60, 0.3, 0.1), RunError("b", 60, 0.4, 0.1)),
    )
    found = backtest(SPEC, read_traces(tmp_path), plants=[plant], plant_seeds=2)
    assert [(effect.plant, effect.kind, effect.rollouts) for effect in found.simulated] == [
        ("mine", kind, 2) for kind in ("healthy", "healthy", "too high", "too high")
    ]
    assert found.simulated[0].held_out_rmse == pytest.approx(math.sqrt((0.3**2 + 0.4**2) / 2))
    said = " ".join(found.not_tested_on)
    for sentence in (
        "No real run on which it acted: its effect was simulated, on plants only.",
        "Plant 'mine' is off by 0.35 nats (rmse) on 2 runs that it had not seen",
        "Rollouts on plant 'mine' left what it was calibrated on: 100% at 0.0",
    ):
        assert sentence in said, sentence
    assert "No simulated effect" not in said
    assert "statements about plants" in found.caveat
    assert BacktestReport.from_json(found.to_json()) == found
    plant.save(tmp_path / "mine.toml")
    command = f"backtest default {tmp_path} --plant {tmp_path}/mine.toml --plant-seeds 2 -o {tmp_path}/report.json"
    assert ", too high" in lbw(*command.split()).stdout
    assert BacktestReport.load(tmp_path / "report.json").simulated == found.simulated


def test_the_command_writes_the_report_prints_the_table_and_says_what_it_is_worth(tmp_path: Path) -> None:
    guard = tmp_path / "mine.toml"
    GuardSpec.load("zscore").with_changes({}, name="mine").save(guard)
    shutil.copytree(SHIPPED / "tiny" / "run_id=postln_lr_bump_shadow_s7", tmp_path / "traces" / "run_id=a_1")
    shutil.copytree(SHIPPED / "tiny" / "run_id=preln_none_shadow_s7", tmp_path / "traces" / "run_id=b_1")

    text = lbw("backtest", guard, tmp_path / "traces").stdout
    path = tmp_path / "mine.backtest.json"
    report = require_backtest(GuardSpec.load(guard), path)
    assert [run.run_id for run in report.runs] == ["a_1", "b_1"]
    for part in (
        "mine",
        "never",
        "No effect was simulated",
        "Not tested on:",
        "Open loop:",
        f'backtest="{path}"',
        report.guard_fingerprint,
    ):
        assert part in text, part
    found = json.loads(lbw("backtest", guard, tmp_path / "traces", "--json", "-o", tmp_path / "other.json").stdout)
    assert found["fingerprint"] == BacktestReport.load(tmp_path / "other.json").fingerprint
    assert "Leave one of them out" in lbw("backtest", guard, tmp_path / "traces", tmp_path / "traces", code=2).stderr
