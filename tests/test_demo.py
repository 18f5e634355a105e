"""The main job, as `make demo` runs it; and its sentences, on cases where the answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from commands import lbw

from lbw_sim import demo
from lbw_sim.guard import GuardSpec
from lbw_sim.replay import verify
from lbw_sim.score import DetectionCounts, RunScore
from lbw_sim.trace import read_traces


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "out"
    # all that `make demo` does, with one seed to choose and one to fly, fewer learning rates and shorter runs
    smaller = {
        "FLIGHT_SEEDS": (100,), "RECORD_SEEDS": (0,), "RECORDED_LRS": (1e-2, 1e-1), "FLOWN_LRS": (3e-3, 1e-1),
        "STEPS": 32, "FAULT_STEPS": 56, "ONSET": 32,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in smaller.items():
            patch.setattr(demo, name, value)
        return out, lbw("demo", "--out", out).stdout


def test_demo_leaves_traces_guard_figures_and_a_summary(finished: tuple[Path, str]) -> None:
    out, printed = finished
    names = {path.name for path in out.iterdir()}
    assert names == {"traces", "guard.toml", "figures", "summary.md"}
    assert {path.name for path in (out / "figures").glob("*.svg")} == {"detection.svg", "outcome.svg", "comparison.svg"}
    assert len(list((out / "figures" / "runs").glob("*.svg"))) >= 10
    assert "Chosen" in printed
    spec = GuardSpec.load(out / "guard.toml")
    assert spec.fingerprint in (out / "summary.md").read_text()


def test_every_run_of_the_demo_verifies_and_the_summary_counts_its_rows(finished: tuple[Path, str]) -> None:
    out, _ = finished
    rows = sum(verify(trace).rows for trace in read_traces(out / "traces"))
    assert f"{rows:,} rows" in (out / "summary.md").read_text()


def test_no_seed_that_chooses_is_a_seed_that_judges() -> None:
    assert not set(demo.RECORD_SEEDS) & set(demo.FLIGHT_SEEDS)
    assert {plan.seed for plan in demo.recording_plans()} == set(demo.RECORD_SEEDS)
    assert {plan.seed for plan in demo.flight_plans(GuardSpec.load("never"))} == set(demo.FLIGHT_SEEDS)


def counted(detected: int, false_alarms: int, delay: float = 1.0) -> list[RunScore]:
    counts = DetectionCounts(
        runs=1, events=10, detected=detected, clean_rows=10_000, false_alarms=false_alarms,
        delays_rows=(delay,) * detected, delays_steps=(delay,) * detected,
    )  # fmt: skip
    return [RunScore("run", (), (), counts)]


def test_the_choice_is_most_events_within_the_budget_then_fewest_false_alarms_then_least_delay() -> None:
    assert demo.choose({"noisy": counted(10, 2), "good": counted(8, 1), "deaf": counted(0, 0)}) == "good"
    assert demo.choose({"a": counted(8, 1), "b": counted(8, 0)}) == "b"
    assert demo.choose({"slow": counted(8, 0, delay=9.0), "quick": counted(8, 0)}) == "quick"
    assert demo.choose({"worse": counted(9, 9), "bad": counted(2, 5), "deaf": counted(0, 0)}) == "bad"


def flights(method: str, losses: list[float], *, acted: bool = False) -> list[demo.Flight]:
    return [
        demo.Flight(method, "0.1", 0.1, seed, loss, acted) for seed, loss in zip(demo.FLIGHT_SEEDS, losses, strict=True)
    ]


def test_the_summary_says_where_the_guard_loses() -> None:
    text = demo.verdicts(
        [*flights("adamw", [2.0, 2.0, 2.0]), *flights("guard", [2.2, 2.2, 1.9], acted=True)], "Learning rate"
    )
    assert text == "- Learning rate 0.1, the guard against `adamw`: 5.0 % worse (on 2 of 3 seeds)."


def test_the_summary_says_when_the_guard_never_acted() -> None:
    same = [2.0, 2.1, 2.2]
    text = demo.verdicts([*flights("adamw", same), *flights("guard", same)], "Learning rate")
    assert "equal to the last bit. It never acted here" in text


def test_a_dead_run_is_never_averaged_away() -> None:
    dead = [*flights("adamw", [2.0, math.nan, 2.0]), *flights("guard", [2.0, 2.1, 2.2], acted=True)]
    assert "| adamw | nan |" in demo.outcome_table(dead)
    assert "alive, 1 of 3 seeds, and so better" in demo.verdicts(dead, "Fault")
    assert demo.comparison([(math.nan, 2.0), (2.0, 2.0)]) == "dead on 1 of 2 seeds, and so worse"
