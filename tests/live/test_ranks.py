"""Many ranks, one guard: real processes over gloo, each with batches of its own, under DDP and FSDP2."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Child, Forked

from lbw_sim.replay import verify
from lbw_sim.trace import read_trace
from lbw_sim.values import Posture, Reason, Regime

START = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import rank_worker
rank_worker.start(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
"""


def started(forked: Forked, size: int, folder: Path, *scenarios: str) -> tuple[Child, list[int]]:
    """The parent of the ranks, and their process numbers."""
    parent = forked.start(START, Path(__file__).parent, size, folder, *scenarios)
    return parent, [int(pid) for pid in parent.stdout.readline().split()]


def told(forked: Forked, size: int, folder: Path, *scenarios: str) -> list[dict[str, dict[str, Any]]]:
    """What each rank told, by scenario."""
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        # two workers of pytest may ask for it: one trains, the other waits and reads
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            parent, _ = started(forked, size, folder, *scenarios)
            # ranks that wait for ever are killed
            assert parent.wait(240) == 0
    lines = [(folder / f"rank-{rank}.jsonl").read_text().splitlines() for rank in range(size)]
    return [{line["scenario"]: line for line in map(json.loads, mine)} for mine in lines]


STEPS = 48
"""Of every scenario; the worker takes a second to import."""
WHOLE = ("ddp", "ddp_late", "nan", "nan_late", "rollback", "fsdp", "fsdp_late", "fsdp_rollback")
"""Scenarios in which nothing of ours breaks."""
OTHERS = (
    "broken",
    "broken_late",
    "disagreement",
    "recorder",
    "different",
    "refusal",
    "resumption",
    "norms",
    "join",
    "local_sgd",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks"


@pytest.fixture(scope="module")
def two(forked: Forked, folder: Path) -> list[dict[str, dict[str, Any]]]:
    return told(forked, 2, folder, *WHOLE, *OTHERS)


@pytest.mark.parametrize("name", WHOLE)
def test_all_ranks_decide_alike_and_hold_the_same_weights(name: str, two: list[dict[str, dict[str, Any]]]) -> None:
    first = two[0][name]
    assert "error" not in first, first
    for other in (rank[name] for rank in two[1:]):
        assert other["losses"] != first["losses"], "each rank has losses of its own"
        assert str(other["decisions"]) == str(first["decisions"])
        assert other["applied"] == first["applied"]
        assert other["weights"] == first["weights"]
    assert all(rank[name]["grounded"] is None for rank in two)
    assert any(d[1] != Posture.HOLD for d in first["decisions"]), "there was something to decide"


@pytest.mark.parametrize("name", WHOLE)
def test_the_first_rank_records_the_mean_over_ranks_and_the_whole_verifies(
    name: str, folder: Path, two: list[dict[str, dict[str, Any]]]
) -> None:
    assert [rank[name]["recorded_here"] for rank in two] == [True, False]
    trace = read_trace(folder / "traces", name)
    assert verify(trace).rows == STEPS
    assert len(trace.segments) == 1
    columns = trace.to_numpy("all")
    weight = [100.0 * (rank + 1) if name == "ddp" else 1.0 for rank in range(2)]
    for step in range(STEPS):
        losses = [rank[name]["losses"][step] for rank in two]
        mean = sum(w * loss for w, loss in zip(weight, losses, strict=True)) / sum(weight)
        assert columns["loss"][step] == pytest.approx(mean, rel=1e-12, nan_ok=True)
        assert math.isnan(columns["loss"][step]) == (columns["nonfinite"][step] == 1.0)
    if name == "ddp":
        assert columns["tokens"].tolist() == [300.0] * STEPS
    # Adam's update is about lr per weight whatever the gradient: the norm is that of the whole model on any layout
    full = 1e-2 * math.sqrt(97)
    moved = columns["update_norm"][(columns["effective_lr"] > 0) & (columns["scale"] == 1.0)]
    assert 0.2 * full < moved[1] < 1.5 * full
    # without a delay it is known before the row is written; with one, the last row has it too
    assert not any(math.isnan(norm) for norm in columns["update_norm"][:19].tolist())


def test_a_nan_on_one_rank_is_a_nan_for_all(two: list[dict[str, dict[str, Any]]]) -> None:
    for name, step in (("nan", 20), ("nan_late", 21)):
        for rank in two:
            assert rank[name]["decisions"][step][:2] == [Regime.NONFINITE, Posture.SKIP]


@pytest.mark.parametrize(
    ("name", "reason"), [("broken", "ValueError"), ("broken_late", "ValueError"), ("recorder", "")]
)
def test_a_fault_of_ours_on_one_rank_grounds_all_ranks_at_the_same_step(
    name: str, reason: str, two: list[dict[str, dict[str, Any]]]
) -> None:
    assert all(rank[name]["grounded"] is not None for rank in two)
    assert "rank is in trouble" in " ".join(str(rank[name]["grounded"]) for rank in two)
    assert reason in " ".join(str(rank[name]["grounded"]) for rank in two)
    assert two[0][name]["applied"] == two[1][name]["applied"]
    assert two[0][name]["weights"] == two[1][name]["weights"]
    assert min(two[0][name]["applied"]) < 1e-2, "it had acted before"
    assert two[0][name]["applied"][-10:] == [1e-2] * 10, "and no longer does"


def test_ranks_that_decide_differently_find_out_within_a_step(two: list[dict[str, dict[str, Any]]]) -> None:
    for rank in two:
        assert "decided differently" in rank["disagreement"]["grounded"]
    apart = [a != b for a, b in zip(two[0]["disagreement"]["applied"], two[1]["disagreement"]["applied"], strict=True)]
    assert apart == [step == 25 for step in range(STEPS)]


def test_ranks_that_were_given_different_guards_are_refused_before_training(
    two: list[dict[str, dict[str, Any]]],
) -> None:
    assert all("the ranks were given different guards" in rank["different"]["error"] for rank in two)


def test_a_memory_that_one_rank_cannot_take_up_is_taken_up_by_none(two: list[dict[str, dict[str, Any]]]) -> None:
    first, last = (rank["resumption"]["words"] for rank in two)
    refused = "LiveError: no rank goes on from its checkpoint, because rank 1 refuses: "
    assert first[::2] == [refused + last[0], last[2], refused + last[4], ""]
    assert "'another'" in last[0]
    assert "different memories" in last[2]
    assert "step: rank 0 has 7, rank 1 has 8" in last[2]
    assert first[1::2] == last[1::2] == [0, 0, 0, 7]


def test_what_one_rank_refuses_all_refuse_with_its_words_and_nobody_waits(
    two: list[dict[str, dict[str, Any]]],
) -> None:
    first, last = (rank["refusal"] for rank in two)
    assert last["words"].startswith("SpecError: no guard preset or TOML file named 'defualt'")
    assert first["words"] == f"LiveError: no rank is guarded, because rank 1 refuses: {last['words']}"
    assert [first["hooks"], last["hooks"]] == [0, 0]


def test_norms_over_shards_and_copies_on_two_ranks_are_those_of_one_process(
    folder: Path, two: list[dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    from .rank_worker import measure_norms, partly_sharded_model  # takes a second to import

    model = partly_sharded_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    measure_norms(model, optimizer, tmp_path)
    one, both = (read_trace(at, "norms").to_numpy() for at in (tmp_path, folder / "traces"))
    for channel in ("grad_norm", "update_norm"):
        assert both[channel].tolist() == pytest.approx(one[channel].tolist(), rel=1e-5)
        assert one[channel].min() > 0.0


def test_a_rank_that_is_killed_leaves_a_whole_trace_and_one_that_is_stopped_only_time(
    forked: Forked, tmp_path: Path
) -> None:
    parent, pids = started(forked, 3, tmp_path, "death")
    # stop a rank in mid-training for a moment: the others wait for it, as they do in the training itself
    journal = tmp_path / "traces" / "run_id=death" / "_segment-000.journal"
    while not journal.exists():
        assert Path(f"/proc/{pids[0]}").exists()
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGSTOP)
    time.sleep(0.3)
    os.kill(pids[1], signal.SIGCONT)
    assert parent.wait(60) == 0
    assert (tmp_path / "rank-2.jsonl").read_text() == "", "it died before it could tell"
    trace = read_trace(tmp_path / "traces")
    steps = trace.to_numpy()["step"].tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= 40
    assert Reason.GUARD_FAULT not in trace.to_numpy()["reason"].tolist()[:40], "three ranks agreed to the end"
    assert verify(trace).rows == len(steps)


def test_over_a_group_of_its_own_a_guard_outlives_unequally_many_steps_and_training_is_what_it_was(
    two: list[dict[str, dict[str, Any]]],
) -> None:
    for rank in two:
        assert "error" not in rank["local_sgd"], rank["local_sgd"]
        without, guarded = rank["local_sgd"]["weights"]
        assert guarded == without
    assert "imed out" in two[1]["local_sgd"]["words"][0], "nobody answered its fifth all-reduce"


def test_inside_of_a_join_the_guard_is_grounded_and_training_is_what_it_was(
    two: list[dict[str, dict[str, Any]]], folder: Path
) -> None:
    for rank in two:
        assert "error" not in rank["join"], rank["join"]
        without, guarded = rank["join"]["weights"]
        assert guarded == without
        assert "the 2 ranks are inside of a join()" in rank["join"]["words"][0]
        assert "process_group=None" in rank["join"]["words"][0]
    columns = read_trace(folder / "traces", "join").to_numpy()
    assert columns["step"].tolist() == list(range(25))
    assert [math.isfinite(loss) for loss in columns["loss"]] == [True] * 5 + [False] * 20, "no rank's own loss"
