"""A whole search on runs that ship: killed, gone on with, cheated, and done by others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lbw_sim.errors import TuneError
from lbw_sim.guard import GuardSpec
from lbw_sim.replay import replay_many
from lbw_sim.score import match, pooled
from lbw_sim.simulate import PlantSpec
from lbw_sim.trace import read_traces
from lbw_sim.tune import Tuned, executor, pareto, tune, write
from lbw_sim.tune.executors import Local
from lbw_sim.tune.ledger import Ledger
from lbw_sim.tune.search import search
from lbw_sim.tune.study import keep_study, require_optuna

TRACES = Path(__file__).parents[2] / "traces" / "tiny"
START = GuardSpec.load("zscore")


@pytest.fixture(scope="module")
def sobol() -> Tuned:
    pytest.importorskip("scipy")
    return tune([TRACES], START, candidates=96, seed=1)


def test_what_is_recommended_is_measured_as_the_score_measures_it_and_judged_on_other_runs(sobol: Tuned) -> None:
    tuning = {run.run_id for run in sobol.split.tuning}
    assert not tuning & {run.run_id for run in sobol.split.held_out}
    runs = read_traces(TRACES)
    for rows, inside in ((sobol.tuning, True), (sobol.held_out, False)):
        side = [trace for trace in runs if (trace.run_id in tuning) == inside]
        for name, spec in (("tuned", sobol.spec), ("start", START), ("never", GuardSpec.load("never"))):
            found = replay_many(side, [spec], engine="python")
            scores = [match(one.alarms(0), t.labels, one.steps, t.run_id) for one, t in zip(found, side, strict=True)]
            row = next(row for row in rows if row["guard"] == name and row["group"] == "all")
            counts = pooled(scores)
            assert (row["detected"], row["events"]) == (counts.detected, counts.events)
            assert (row["false_alarms"], row["clean_rows"]) == (counts.false_alarms, counts.clean_rows)
            if (name, inside) == ("tuned", True):
                assert sobol.front[0]["missed"] == pytest.approx(1.0 - counts.recall)
                assert sobol.front[0]["false_alarms_per_10k"] == pytest.approx(counts.false_alarms_per_10k)
                assert sobol.front[0]["delay_steps"] == counts.median_delay_steps
    best = min(o for o, over in zip(sobol.objectives.missed, sobol.objectives.false_alarms_per_10k, strict=True)
               if over <= 1.0)  # fmt: skip
    assert sobol.front[0]["missed"] <= best, "of those within the budget none misses less"
    assert sobol.objectives.false_alarms_per_10k[0] > 1.0, "the start exceeds it, so this search found something"


def test_the_file_says_what_it_was_tuned_on_and_its_fingerprint_does_not_see_that(sobol: Tuned, tmp_path: Path) -> None:
    made = write(sobol, tmp_path / "guard.toml", command="lbw tune somewhere", about={"seed": 1})
    text = made.guard.read_text()
    assert text.startswith("# Tuned from guard zscore")
    assert "lbw tune somewhere" in text
    assert "Held out, tuned: recall" in text
    assert GuardSpec.load(made.guard).fingerprint == sobol.spec.fingerprint
    assert tomllib.loads(text)["name"] == "tuned"
    facts = json.loads(made.facts.read_text())
    assert facts["guard"]["fingerprint"] == sobol.spec.fingerprint
    assert {run["run"] for run in facts["split"]["held_out"]} == {run.run_id for run in sobol.split.held_out}
    assert {row["parameter"] for row in facts["changed"]} == {path for path, _, _ in START.differences(sobol.spec)}
    lines = made.front.read_text().splitlines()
    assert lines[0].startswith("recommended,missed,false_alarms_per_10k,delay_steps,energy,sensor.")
    assert lines[1].startswith("yes,")
    assert len(lines) == 1 + len(sobol.front)


def test_a_killed_search_goes_on_and_ends_as_if_nobody_had_killed_it(tmp_path: Path) -> None:
    pytest.importorskip("cmaes")
    arguments = ["--guard", "zscore", "--search", "cmaes", "-n", "769", "--seed", "3", "--workers", "1"]
    command = [sys.executable, "-m", "lbw_sim", "tune", str(TRACES), "-o", "guard.toml", *arguments]
    (tmp_path / "killed").mkdir()
    ledger = tmp_path / "killed" / "guard.ledger"
    process = subprocess.Popen(command, cwd=tmp_path / "killed", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (ledger.exists() and ledger.read_bytes().count(b"\n") >= 4):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = ledger.read_bytes().count(b"\n")

    def whole(where: Path, count: list[int]) -> Tuned:
        class Counted(Local):
            def map(self, tasks: Any) -> Any:
                for found in super().map(tasks):
                    count.append(1)
                    yield found

        return tune([TRACES], START, candidates=769, search="cmaes", seed=3, ledger=where, workers=Counted(1))

    resumed, uninterrupted = [], []
    after = write(whole(ledger, resumed), tmp_path / "killed" / "guard.toml", command="", about={})
    alone = write(whole(tmp_path / "other.ledger", uninterrupted), tmp_path / "guard.toml", command="", about={})
    assert [path.read_bytes() for path in after] == [path.read_bytes() for path in alone]
    assert len(uninterrupted) - len(resumed) == kept, "what the ledger held was not measured again"
    assert kept >= 4


def test_a_line_of_the_ledger_that_was_torn_or_altered_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        for key in ("a", "b", "c"):
            ledger.add(key, {"x": np.array([ord(key), 0.1])})
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(second[30:34], b"AAAA", 1) + third[:-9])
    with Ledger(path) as ledger:
        assert ("a" in ledger, "b" in ledger, "c" in ledger) == (True, False, False)
        assert ledger.dropped == 2
        ledger.add("c", {"x": np.array([1.0])})
    with Ledger(path) as ledger:
        found = ledger.get("a"), ledger.get("c")
        assert [one["x"].tolist() for one in found if one is not None] == [[97.0, 0.1], [1.0]]


def test_halving_drops_candidates_after_few_runs_and_ranks_those_that_stay_on_all(sobol: Tuned) -> None:
    halved = tune([TRACES], START, candidates=512, halving=True, seed=1)
    assert (halved.tried, halved.candidates) == (512, 33), "128, then 32, and the start whatever it is worth"
    assert halved.values[0].tolist() == [d.start for d in halved.space.dimensions]
    assert halved.objectives.missed[0] == pytest.approx(sobol.objectives.missed[0]), "measured on all runs after all"
    with pytest.raises(TuneError, match="has to rank all"):
        tune([TRACES], START, candidates=200, search="cmaes", halving=True)


def test_with_a_plant_the_policy_is_tuned_too_and_judged_with_other_noise() -> None:
    plant = PlantSpec.load("lasting_damage")
    found = tune(
        [TRACES], START, candidates=40, search="random", plants=[plant], seeds=3,
        schedules={"low": np.full(150, 5e-3), "high": np.full(150, 0.05)}, only=["policy"],
    )  # fmt: skip
    assert {d.path.partition(".")[0] for d in found.space.dimensions} == {"policy"}
    assert found.simulated is not None
    assert found.simulated.runs == 6
    assert np.isfinite(found.objectives.final_loss).all()
    assert (found.objectives.missed == found.objectives.missed[0]).all(), "a policy sees nothing"
    assert found.front[0]["final_loss"] <= found.objectives.final_loss[0] + 1e-4
    mean, low, high = found.simulated.against_start
    assert low <= mean <= high
    with pytest.raises(TuneError, match="no plant can fly that"):
        tune([TRACES], START.with_changes({"envelope.max_rollbacks": 2}), plants=[plant], schedules={"a": np.ones(3)})


def test_a_study_holds_every_candidate_as_optuna_shows_it(sobol: Tuned, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from optuna.storages.journal import JournalFileBackend

    keep_study(sobol, tmp_path / "study.journal", name="mine")
    keep_study(sobol, tmp_path / "study.journal", name="mine")
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    study = optuna.load_study(study_name="mine", storage=storage)
    assert study.metric_names == ["missed", "false_alarms_per_10k", "delay_steps", "energy"]
    assert len(study.trials) == len(sobol.values)
    for place in (0, -1):
        trial = study.trials[place]
        assert list(trial.params.values()) == sobol.values[place].tolist()
        shown = [getattr(sobol.objectives, one)[place] for one in study.metric_names]
        assert trial.values == [value if value == value else float("inf") for value in shown]
    fronts = {tuple(trial.values) for trial in study.best_trials}
    assert len(fronts) == len(pareto(sobol.objectives)), "Optuna finds the same Pareto set"


def test_a_library_that_is_not_there_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, ask in (
        ("scipy", lambda: search("sobol", np.zeros(2), 4, 0)),
        ("cmaes", lambda: search("cmaes", np.zeros(2), 64, 0)),
        ("optuna", require_optuna),
        ("ray", lambda: executor("ray")),
    ):
        for name in [name for name in sys.modules if name.partition(".")[0] == library]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(TuneError, match=rf"needs {library}: pip install 'lbw-sim\[(tune|ray)\]'"):
            ask()
    assert search("random", np.zeros(2), 4, 0).ask().shape == (4, 2)


def test_the_same_record_twice_is_refused(tmp_path: Path) -> None:
    for name in ("run_id=one", "run_id=two"):
        (tmp_path / name).symlink_to(TRACES / "run_id=postln_none_shadow_s7")
    with pytest.raises(TuneError, match="hold the same record"):
        tune([tmp_path], START, candidates=2, search="random")


def test_two_ray_workers_give_what_this_process_gives_even_when_they_are_killed(sobol: Tuned, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    killed: list[int] = []
    over = threading.Event()
    ledger = tmp_path / "ledger"

    def kill() -> None:
        # one that is at work on the first look at the runs, one in the middle of the search
        while not over.wait(0.002):
            if len(killed) == 1 and not (ledger.exists() and ledger.stat().st_size):
                continue
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.cmdline()[:1] == ["ray::_do"]:
                        os.kill(process.pid, signal.SIGKILL)
                        killed.append(process.pid)
                        break
                except (psutil.Error, OSError):
                    continue
            if len(killed) == 2:
                return

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        found = tune([TRACES.as_uri()], START, candidates=96, seed=1, ledger=ledger, workers=executor("ray", 2))
    finally:
        over.set()
        killer.join()
    assert len(killed) == 2
    assert found.spec.fingerprint == sobol.spec.fingerprint
    assert found.front == sobol.front
    assert repr((found.held_out, found.tuning)) == repr((sobol.held_out, sobol.tuning))
    for one, other in zip(found.objectives, sobol.objectives, strict=True):
        np.testing.assert_array_equal(one, other)
