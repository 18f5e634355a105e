"""A fork that was killed by SIGKILL goes on run by run, and ends with the traces of one that nobody stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lbw_sim.errors import StressError
from lbw_sim.replay import verify
from lbw_sim.stress import RunPlan
from lbw_sim.stress.fork_ledger import LEDGER
from lbw_sim.stress.forks import ForkAction, fork_loop, fork_tiny
from lbw_sim.stress.leg import Leg
from lbw_sim.stress.run_ledger import Ledger
from lbw_sim.trace import read_traces

STEPS, AT = 24, 12
ACTIONS = [ForkAction.planned(text) for text in ("lr:0.5", "lr:0.3", "skip:0-2")]
KILL = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import test_forks_killed as mine
mine.{fork}(Path(sys.argv[1]), sys.argv[2])
"""


def kill() -> None:
    signal.raise_signal(signal.SIGKILL)


def train(leg: Leg) -> float:
    """A user's loop, in which dropout draws from torch's own generator."""
    torch.manual_seed(leg.seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    leg.restore(model=model, optimizer=optimizer)
    with leg.attach(optimizer) as live:
        for step in range(leg.first_step, STEPS):
            leg.keep(step, model=model, optimizer=optimizer)
            if leg.run_id == KILLED_IN and step == STEPS - 3:
                kill()
            batch = torch.randn(16, 4, generator=torch.Generator().manual_seed(100 * leg.seed + step))
            loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            live.observe(loss)
            optimizer.step()
    return float(loss.detach())


KILLED_IN = ""


def own_loop(folder: Path, killed_in: str = "") -> Any:
    """Two trunks of a user's loop; killed three steps before the end of a leg."""
    global KILLED_IN
    KILLED_IN = killed_in
    return fork_loop(train, [0, 1], [AT], ACTIONS, folder, name="mine")


def tiny(folder: Path, killed_in: str = "") -> Any:
    """Three tiny GPTs, whose twelve branches make two graphs; killed in the middle of the second one, or of trunks."""
    stage, _, after = killed_in.partition(" ")

    def progress(now: str, done: int, total: int) -> None:
        if now == stage and done == int(after):
            kill()

    plans = [RunPlan(run_id=f"t{seed}", lr=0.01, steps=STEPS, seed=seed) for seed in range(3)]
    return fork_tiny(plans, [AT], ACTIONS, folder, progress)


def killed(fork: str, where: str, folder: Path) -> set[str]:
    """Run ids that a fork had finished when it killed itself there."""
    words = [sys.executable, "-c", KILL.format(fork=fork), str(folder), where, str(Path(__file__).parent), *sys.path]
    done = subprocess.run(words, check=False, timeout=300, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return {run_id for run_id, line in Ledger(folder / LEDGER).read().items() if line["run"]}


def shown(folder: Path) -> dict[str, dict[str, Any]]:
    """Every run's rows, without the clock and the checksum over it."""
    found = {}
    for trace in read_traces(folder):
        assert verify(trace).rows == len(trace.table("all"))
        found[trace.run_id] = trace.to_numpy("all")
        del found[trace.run_id]["elapsed_s"], found[trace.run_id]["crc32"]
    return found


@pytest.mark.parametrize(
    ("fork", "where", "finished", "runs"),
    [
        ("own_loop", "mine_s0", 0, 10),
        ("own_loop", "mine_s1_at12_lr-0.3", 5 + 3, 10),
        ("tiny", "trunks 30", 0, 15),
        ("tiny", f"branches {6 * (STEPS - AT) + 30}", 3 + 6, 15),
    ],
)
def test_a_killed_fork_goes_on_and_ends_with_the_traces_of_one_that_nobody_stopped(
    fork: str, where: str, finished: int, runs: int, tmp_path: Path
) -> None:
    make = {"own_loop": own_loop, "tiny": tiny}[fork]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    before = killed(fork, where, stopped)
    assert len(before) == finished
    stamps = {run: (stopped / f"run_id={run}" / "segment-000.parquet").stat().st_mtime_ns for run in before}
    resumed, wanted = make(stopped), make(whole)
    assert resumed == wanted
    assert all(one.is_trunk for one in resumed)
    found, expected = shown(stopped), shown(whole)
    assert found.keys() == expected.keys()
    assert len(found) == runs
    for run_id, rows in expected.items():
        for name, column in rows.items():
            np.testing.assert_array_equal(found[run_id][name], column, err_msg=f"{run_id} {name}")
    files = [(stopped / f"run_id={run}" / "segment-000.parquet").stat().st_mtime_ns for run in before]
    assert files == list(stamps.values()), "a finished run was flown again"
    assert sorted(path.name for path in stopped.iterdir() if not path.name.startswith("run_id=")) == [LEDGER]


def test_the_same_fork_again_trains_nothing_and_another_action_only_itself(tmp_path: Path) -> None:
    first = own_loop(tmp_path)
    legs: list[tuple[int, int]] = []
    assert (
        fork_loop(train, [0, 1], [AT], ACTIONS, tmp_path, name="mine", progress=lambda *_: legs.append(_[1:])) == first
    )
    assert legs == []
    more = [*ACTIONS, ForkAction.planned("lr:0.9")]
    again = fork_loop(train, [0, 1], [AT], more, tmp_path, name="mine", progress=lambda *_: legs.append(_[1:]))
    assert legs[-1] == (4, 4), "two trunks for their checkpoints, and two branches"
    assert [one for one in again if one.branch != "lr:0.9"] == first
    assert len(read_traces(tmp_path)) == 12


def test_what_is_not_of_this_fork_is_refused_and_stays(tmp_path: Path) -> None:
    own_loop(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}

    ledger = Ledger(tmp_path / LEDGER)
    line = ledger.read()["mine_s0"]
    ledger.add("mine_s0", line["stamp"] | {"loop": "of yesterday"}, line["run"])
    with pytest.raises(StressError, match=r"holds mine_s0 of another fork \(not the same: loop\)"):
        own_loop(tmp_path)
    (tmp_path / LEDGER).write_text("")
    with pytest.raises(StressError, match=r"holds mine_s0, .* already; fork into another folder"):
        own_loop(tmp_path)
    (tmp_path / LEDGER).unlink()
    with pytest.raises(StressError, match="already; fork into another folder"):
        own_loop(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before


def test_a_trunk_that_is_another_when_it_is_trained_again_is_told(tmp_path: Path) -> None:
    def loop(leg: Leg) -> float:
        loss = train(leg)
        if leg.run_id.endswith("lr-0.3") and (tmp_path / "stop").exists():
            raise KeyboardInterrupt
        return loss

    def drifting(leg: Leg) -> float:
        leg.seed += 100
        return train(leg)

    (tmp_path / "stop").touch()
    with pytest.raises(KeyboardInterrupt):
        fork_loop(loop, [0], [AT], ACTIONS, tmp_path / "forks", name="mine")
    with pytest.raises(StressError, match="mine_s0 was trained again for its other branches, and is not the one"):
        fork_loop(drifting, [0], [AT], ACTIONS, tmp_path / "forks", name="mine")
    (tmp_path / "stop").unlink()
    assert all(one.is_trunk for one in fork_loop(loop, [0], [AT], ACTIONS, tmp_path / "forks", name="mine"))
