"""Two guards on the same record: which rows differ, how they are grouped, and what is not compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lbw_sim import GuardSpec, Telemetry
from lbw_sim.errors import ChannelError, ScoreError
from lbw_sim.plots.difference import RunRows, difference_info
from lbw_sim.replay import NotCompared, RunDifference, compare_guards, replay
from lbw_sim.replay.difference import _episodes
from lbw_sim.trace import Recorder, Trace, read_trace

LOW, HIGH = (GuardSpec.load("zscore").with_changes({"analyzer.limit_sd": limit}) for limit in (3.0, 20.0))
NEVER = GuardSpec.load("never")


def run(folder: Path, run_id: str, loss: list[float]) -> Trace:
    guard = NEVER.build()
    state = guard.init()
    with Recorder.open(folder, run_id, spec=NEVER, mode="shadow", provenance={}) as recorder:
        for step, value in enumerate(loss):
            now = Telemetry(step, value, 1e-3, nonfinite=0.0)
            state, decision = guard.step(state, now)
            recorder.append(now, decision, elapsed_s=0.0, effective_lr=1e-3)
    return read_trace(folder / f"run_id={run_id}")


def bumped(*starts: int, rise: float, rows: int = 600) -> list[float]:
    noise = 0.1 * np.random.default_rng(0).standard_normal(rows)
    for start in starts:
        noise[start : start + 3] += rise
    return list(3.0 + noise)


def test_every_differing_row_is_in_an_episode_and_equal_guards_differ_nowhere(tmp_path: Path) -> None:
    trace = run(tmp_path, "bumped", bumped(200, 400, rise=1.0))
    (found,) = compare_guards([trace], LOW, HIGH, gap_rows=10)
    assert isinstance(found, RunDifference)
    one, other = (replay(trace, spec).columns for spec in (LOW, HIGH))
    differs = np.zeros(600, dtype=bool)
    for name in ("regime", "posture", "scale", "reason"):
        differs |= one[name] != other[name]
    assert found.rows_differing == differs.sum() > 0
    assert sum(episode.rows for episode in found.episodes) == found.rows_differing
    covered = np.zeros(600, dtype=bool)
    for episode in found.episodes:
        assert differs[episode.first_row]
        assert differs[episode.last_row]
        covered[episode.first_row : episode.last_row + 1] = True
    assert covered[differs].all()
    # no run of equal rows longer than the gap lies inside an episode
    for before, after in zip(found.episodes, found.episodes[1:], strict=False):
        assert after.first_row - before.last_row - 1 > 10
    at = next(episode for episode in found.episodes if episode.first_row == 200)
    assert at.kind == "acts"
    assert (at.regimes[0][0], at.lowest_scale[1]) == ("SPIKE", 1.0)
    assert at.lowest_scale[0] < 1.0
    assert at.alarm_rows[0] > at.alarm_rows[1] == 0
    (same,) = compare_guards([trace], LOW, LOW)
    assert (same.episodes, same.rows_differing) == ((), 0)


def test_a_larger_gap_makes_fewer_places_of_the_same_rows(tmp_path: Path) -> None:
    trace = run(tmp_path, "bumped", bumped(200, 260, 400, rise=1.0))
    (narrow,) = compare_guards([trace], LOW, HIGH, gap_rows=0)
    (wide,) = compare_guards([trace], LOW, HIGH, gap_rows=600)
    assert len(wide.episodes) == 1 < len(narrow.episodes)
    assert wide.rows_differing == narrow.rows_differing


@pytest.mark.parametrize(("equal_rows", "places"), [(10, 1), (11, 2)])
def test_differences_with_up_to_so_many_equal_rows_between_them_are_one_place(equal_rows: int, places: int) -> None:
    rows = equal_rows + 6
    a = {name: np.ones(rows) for name in ("regime", "posture", "scale", "reason")}
    b = {name: values.copy() for name, values in a.items()}
    b["scale"][[2, 3 + equal_rows]] = 0.5
    episodes, differing = _episodes(np.arange(rows) * 5, a, b, gap_rows=10)
    assert (len(episodes), differing) == (places, 2)
    assert (episodes[0].first_step, episodes[-1].last_step) == (10, 5 * (3 + equal_rows))


def test_another_name_for_the_same_act_is_said_to_be_that(tmp_path: Path) -> None:
    trace = run(tmp_path, "calm", bumped(rise=0.0, rows=120))
    longer = HIGH.with_changes({"analyzer.warmup_steps": 60})
    shorter = HIGH.with_changes({"analyzer.warmup_steps": 20})
    (found,) = compare_guards([trace], longer, shorter)
    assert [(e.kind, e.regimes) for e in found.episodes] == [("names", (("WARMUP",), ("STABLE",)))]


def test_a_run_without_a_needed_channel_is_told_and_none_at_all_is_refused(tmp_path: Path) -> None:
    trace = run(tmp_path, "losses", bumped(rise=0.0))
    zclip = GuardSpec.load("zclip")
    with pytest.raises(ChannelError, match="need grad_norm, loss; none of 1 run holds them"):
        list(compare_guards([trace], LOW, zclip))
    shipped = Path(__file__).parent.parent.parent / "traces" / "tiny"
    full = read_trace(shipped, run_id="postln_none_shadow_s7")
    first, second = compare_guards([trace, full], LOW, zclip)
    assert first == NotCompared("losses", ("grad_norm",))
    assert second.run_id == "postln_none_shadow_s7"


def test_the_figure_keeps_the_runs_that_differ_most(tmp_path: Path) -> None:
    columns = {"step": np.arange(100), "loss": np.linspace(3.0, 2.0, 100)}
    rows = [RunRows(f"run{k}", columns, ([(10, 10 + k)], []), [(10, 10 + k)]) for k in range(15)]
    info = difference_info(("a", "b"), rows)
    assert [line.name for line in info.lines] == [f"run{k}" for k in range(3, 15)]
    assert info.note == "the 12 of 15 runs that differ most"
    assert info.lines[0].alarms == (((10.0, 13.0),), ())
    with pytest.raises(ScoreError, match="no run in which the guards differ"):
        difference_info(("a", "b"), [])
