"""Forks, really trained: a branch without an action is its trunk, and one with an action differs by that alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lbw_sim.errors import StressError
from lbw_sim.guard import Envelope, Guard, GuardSpec
from lbw_sim.guard.analyzers import LOSS
from lbw_sim.guard.analyzers.limit import Limit
from lbw_sim.guard.policies.damp_release import DampRelease
from lbw_sim.guard.policies.rewind import Rewind
from lbw_sim.guard.sensors.raw import Raw
from lbw_sim.live import Snapshots
from lbw_sim.replay import verify
from lbw_sim.stress import RunPlan, fault
from lbw_sim.stress.forks import ForkAction, Outcome, effects, fork_loop, fork_tiny
from lbw_sim.stress.leg import Leg
from lbw_sim.trace import read_trace, read_traces
from lbw_sim.trace.ancestry import Ancestry, ancestry_rows

STEPS, AT = 50, 35
EAGER = GuardSpec.load("zscore").with_changes(
    {"analyzer.limit_sd": 1.0, "analyzer.warmup_steps": 10, "envelope.max_rise": 1.0}, "eager"
)


def columns(folder: Path, run_id: str) -> dict[str, Any]:
    return read_trace(folder / f"run_id={run_id}").to_numpy()


def columns_of_all(folder: Path, run_id: str) -> dict[str, Any]:
    return read_trace(folder / f"run_id={run_id}").to_numpy("all")


def by_branch(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {one.branch: one for one in outcomes}


def test_branches_leave_their_trunk_where_their_action_begins_and_nowhere_else(tmp_path: Path) -> None:
    plan = RunPlan(run_id="trunk", lr=0.01, steps=STEPS, fault=fault("bad_labels", 30), seed=3)
    other = dataclasses.replace(plan, run_id="other", seed=4, architecture="pre_ln")
    actions = [ForkAction.of_guard(EAGER), ForkAction.planned("lr:0.3:2-4"), ForkAction.planned("skip:1")]
    found = fork_tiny([plan, other], [20, AT], actions, tmp_path)
    assert len(found) == 2 * 2 * 4
    assert all(one.is_trunk for one in found)
    branch = {one.branch: one for one in found if one.trunk == "trunk" and one.step == AT}
    trunk, rows = columns(tmp_path, "trunk"), {name: columns(tmp_path, one.run_id) for name, one in branch.items()}
    for name, mine in rows.items():
        assert mine["step"].tolist() == list(range(AT, STEPS)), name
    # with nothing done: the uninterrupted run, every column but time
    for name in ("loss", "lr", "effective_lr", "grad_norm", "update_norm", "tokens"):
        assert np.array_equal(rows["off"][name], trunk[name][AT:]), name
    cut = rows["lr:0.3:2-4"]
    assert (cut["effective_lr"] / cut["lr"]).round(9).tolist() == [1.0] * 2 + [0.3] * 3 + [1.0] * (STEPS - AT - 5)
    same = cut["loss"] == trunk["loss"][AT:]
    assert same[:3].all()
    assert not same[3:].any()
    assert rows["skip:1"]["skipped"].tolist() == [step == 1 for step in range(STEPS - AT)]
    # the guard has seen the fault, before the fork: it is past its warm-up and acts at once
    assert rows["eager"]["scale"][0] < 1.0
    assert all(verify(trace).rows for trace in read_traces(tmp_path))
    origin = Ancestry.of(read_trace(tmp_path / f"run_id={branch['eager'].run_id}").meta.provenance)
    assert origin == Ancestry("trunk", AT, "eager")
    told = [row for row in ancestry_rows(read_traces(tmp_path)) if row["trunk"] == "trunk" and row["fork_step"] == AT]
    assert [row["branch"] for row in told] == ["off", "eager", "lr:0.3:2-4", "skip:1"]
    assert told[2]["difference"] == pytest.approx(cut["loss"][-2:].mean() - trunk["loss"][-2:].mean())
    assert len({one.final_loss for one in branch.values()}) == 4


def test_a_guard_with_probes_and_rollback_forks_through_the_live_guard(tmp_path: Path) -> None:
    plan = RunPlan(run_id="trunk", lr=0.03, steps=30)
    capped = GuardSpec.load("static_cap")
    found = by_branch(
        fork_tiny([plan], [20], [ForkAction.of_guard(capped), ForkAction.of_guard("paired_rollback")], tmp_path)
    )
    assert found["off"].is_trunk
    mine, trunk = columns(tmp_path, found["static_cap"].run_id), columns(tmp_path, "trunk")
    # of the weights before the trunk's first step, not of those at the fork
    assert mine["initial_weight_rms"][0] == trunk["initial_weight_rms"][0]
    assert mine["effective_lr"][0] < trunk["lr"][20]
    assert mine["effective_lr"].max() < trunk["effective_lr"][20]
    assert found["static_cap"].final_loss != found["off"].final_loss
    assert all(verify(trace).rows for trace in read_traces(tmp_path))


def dropping_loop(leg: Leg, forgetful: bool = False, unreadable_step: int = -1) -> float:
    """A loop as a user writes one, with momentum, dropout, and data that a generator of its own draws."""
    torch.manual_seed(leg.seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = Stream(leg.seed)
    kept: dict[str, Any] = {"model": model, "optimizer": optimizer} | ({} if forgetful else {"data": data})
    leg.restore(**kept)
    with leg.attach(optimizer) as live:
        for step in range(leg.first_step, 40):
            leg.keep(step, **kept)
            batch = torch.randn(16, 4, generator=data.generator)
            loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            live.observe(object() if step == unreadable_step else loss)
            optimizer.step()
    return float(loss.detach())


REWINDING = GuardSpec.of(
    Guard(
        sensor=Raw(), analyzer=Limit(channel=LOSS, limit=1e3), policy=Rewind(rollback_steps=5),
        envelope=Envelope(max_rollbacks=3, rollback_cooldown_steps=1),
    ),
    "rewinding",
)  # fmt: skip


class Rewinding:
    """A loop whose loss reads far too high at some steps; it notes the weights that each of its steps began with."""

    def __init__(self, high: set[int]) -> None:
        self.high = high
        self.weights: dict[str, list[torch.Tensor]] = {}

    def __call__(self, leg: Leg) -> float:
        torch.manual_seed(leg.seed)
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        leg.restore(model=model, optimizer=optimizer)
        seen = self.weights[leg.run_id] = []
        with leg.attach(optimizer, snapshots=Snapshots(every_steps=1, keep=8)) as live:
            for step in range(leg.first_step, 30):
                leg.keep(step, model=model, optimizer=optimizer)
                seen.append(model.weight.detach().clone())
                batch = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
                loss = (model(batch) - batch.sum(1, keepdim=True)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                live.observe(loss + (1e6 if step in self.high else 0.0))
                optimizer.step()
        return float(loss.detach())


def test_a_guard_rolls_back_in_its_first_steps_to_the_trunk_before_the_fork(tmp_path: Path) -> None:
    loop = Rewinding(high={21})
    found = by_branch(fork_loop(loop, [0], [20], [ForkAction.of_guard(REWINDING)], tmp_path))
    assert found["off"].is_trunk
    trunk, off, mine = (loop.weights[run] for run in ("run_s0", found["off"].run_id, found["rewinding"].run_id))
    assert all(map(torch.equal, off, trunk[20:])), "taking snapshots changes no bit of the trunk"
    rows = columns_of_all(tmp_path, found["rewinding"].run_id)
    assert rows["step"].tolist() == [20, 21, *range(16, 24)]
    assert rows["rolled_back_to"].tolist()[:3] == [-1, 16, -1]
    assert torch.equal(mine[2], trunk[16])
    assert not torch.equal(mine[3], trunk[17]), "batches go on"
    assert all(verify(trace).rows for trace in read_traces(tmp_path))


def test_a_guard_does_not_go_back_to_steps_of_the_trunk_that_it_called_unsafe(tmp_path: Path) -> None:
    loop = Rewinding(high={15, 16, 21})
    found = by_branch(fork_loop(loop, [0], [20], [ForkAction.of_guard(REWINDING)], tmp_path))
    assert found["off"].is_trunk
    rows = columns_of_all(tmp_path, found["rewinding"].run_id)
    assert rows["rolled_back_to"][1] == 14
    assert torch.equal(loop.weights[found["rewinding"].run_id][2], loop.weights["run_s0"][14])


class Stream:
    """A data order with a memory."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["state"])


def test_a_loop_of_the_users_own_is_forked_and_what_it_forgot_to_keep_is_told(tmp_path: Path) -> None:
    above = Guard(
        sensor=Raw(), analyzer=Limit(channel=LOSS, limit=1e-3), policy=DampRelease(cut=0.5), envelope=Envelope()
    )
    actions = [ForkAction.planned("lr:0.1"), ForkAction.of_guard(GuardSpec.of(above, "above"))]
    found = fork_loop(dropping_loop, [0, 1, 2], [15, 25], actions, tmp_path / "whole", name="mine")
    assert all(one.is_trunk for one in found)
    off, cut, _ = effects(found)
    assert (off.difference, off.trunks, off.forks) == (0.0, 3, 6)
    assert cut.low < cut.difference < cut.high
    assert cut.difference != 0.0
    rows = columns(tmp_path / "whole", "mine_s1_at25_lr-0.1")
    assert (rows["effective_lr"] / rows["lr"]).round(9).tolist() == [0.1] * 15
    assert columns(tmp_path / "whole", "mine_s1_at25_above")["effective_lr"].min() < 0.01
    assert all(verify(trace).rows for trace in read_traces(tmp_path / "whole"))
    assert not list((tmp_path / "whole").glob("_checkpoints*")), "checkpoints are left over"

    forgot = fork_loop(lambda leg: dropping_loop(leg, True), [0], [15], actions, tmp_path / "part", name="mine")
    assert not by_branch(forgot)["off"].is_trunk


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: ForkAction.planned("lr:3"), "outside"),
        (lambda: ForkAction.planned("skip"), "more than 100"),
        (lambda: ForkAction.planned("lr:0.5:9-3"), "ends before"),
        (lambda: ForkAction.planned("halve"), "lr:FACTOR"),
        (lambda: fork_tiny([RunPlan(run_id="t", steps=9)], [9], [], Path("never")), "step 9"),
        (lambda: fork_tiny([RunPlan(run_id="t", method="clip")], [5], [], Path("never")), "plain AdamW"),
        (
            lambda: fork_loop(lambda leg: 0.0, [0], [5], [ForkAction.of_guard("zscore")] * 2, Path("never")),
            "two actions",
        ),
    ],
)
def test_what_cannot_be_forked_is_refused_before_anything_is_trained(wrong: Any, told: str) -> None:
    with pytest.raises(StressError, match=told):
        wrong()
    assert not Path("never").exists()


def test_a_loop_that_keeps_no_checkpoint_hears_of_it(tmp_path: Path) -> None:
    def loop(leg: Leg) -> float:
        model = torch.nn.Linear(1, 1)
        with leg.attach(torch.optim.SGD(model.parameters(), lr=0.1)):
            return 0.0

    with pytest.raises(StressError, match=r"leg\.keep"):
        fork_loop(loop, [0], [5], [ForkAction.of_guard("zscore")], tmp_path)


@pytest.mark.parametrize(
    ("returned", "told"), [(None, "nothing"), ({"loss": 1.0}, "a dict"), (torch.ones(2), "Tensor")]
)
def test_a_loop_that_returns_no_loss_hears_of_it_before_its_branches_are_trained(
    returned: Any, told: str, tmp_path: Path
) -> None:
    def loop(leg: Leg) -> Any:
        dropping_loop(leg)
        return returned

    with pytest.raises(StressError, match=f"mine_s0: the loop returned .*{told}.*its final loss"):
        fork_loop(loop, [0], [15], [ForkAction.planned("lr:0.1")], tmp_path, name="mine")
    assert [trace.run_id for trace in read_traces(tmp_path)] == ["mine_s0"]


def test_a_branch_whose_guard_was_grounded_is_no_run_of_that_guard(tmp_path: Path) -> None:
    def loop(leg: Leg) -> float:
        return dropping_loop(leg, unreadable_step=-1 if leg.trunk else 25)

    with pytest.raises(StressError, match=r"mine_s0\S+ is not its guard's run, which was grounded: TypeError"):
        fork_loop(loop, [0], [15], [ForkAction.planned("lr:0.1")], tmp_path, name="mine")


def test_a_loss_with_its_graph_is_taken_without_a_warning(tmp_path: Path) -> None:
    def loop(leg: Leg) -> torch.Tensor:
        return torch.tensor(dropping_loop(leg), requires_grad=True)

    assert fork_loop(loop, [0], [15], [ForkAction.planned("lr:0.1")], tmp_path)[0].is_trunk


def test_the_interval_is_students_over_trunks() -> None:
    found = [
        Outcome(f"t{trunk}", step, branch, "", 2.0 + (branch == "cut") * gain, True)
        for trunk, gain in enumerate((-0.1, -0.2, -0.3))
        for step in (5, 9)
        for branch in ("off", "cut")
    ]
    cut = effects(found)[1]
    # three trunks, not six forks: ± 4.303 · 0.1 / √3
    assert (cut.trunks, cut.forks) == (3, 6)
    assert (cut.low, cut.high) == pytest.approx((-0.2 - 0.24844, -0.2 + 0.24844), abs=1e-4)


def test_a_branch_that_ended_in_nan_is_counted_and_averages_nothing() -> None:
    found = [Outcome("a", 5, "off", "", 2.0, True), Outcome("a", 5, "cut", "", float("nan"), True),
             Outcome("b", 5, "off", "", 2.0, True), Outcome("b", 5, "cut", "", 1.0, True)]  # fmt: skip
    cut = effects(found)[1]
    assert cut.broken == 1
    assert np.isnan([cut.final_loss, cut.difference, cut.low, cut.high]).all()
