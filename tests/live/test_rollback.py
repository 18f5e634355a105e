"""Rollback in flight: what goes back, what stays, what the trace says, and what happens when it cannot."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import lbw

from lbw_sim.errors import LiveError
from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.guard.analyzers.composite import Composite
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.policies.rewind import Rewind
from lbw_sim.guard.sensors.robust_loss import RobustLoss
from lbw_sim.live import Snapshots, attach
from lbw_sim.live.snapshots import _free_bytes, _group_free_bytes
from lbw_sim.replay import verify
from lbw_sim.report.findings import examine
from lbw_sim.trace import read_trace
from lbw_sim.values import Posture, Reason

from .test_attach import KINDS, Run, batch, make_run, same_bits, spike, train, weights

REWINDING = GuardSpec.of(
    Guard(
        sensor=RobustLoss(startup_rows=5),
        analyzer=Composite(hold_rows=3, recovery_rows=3),
        policy=Rewind(rollback_steps=4),
        envelope=Envelope(max_rollbacks=2, rollback_cooldown_steps=5),
    ),
    "rewinding",
)
ACTIVE: dict[str, Any] = {"mode": "active", "unproven": True}


def state_of(run: Run) -> tuple[list[torch.Tensor], dict[str, Any]]:
    return weights(run), copy.deepcopy(run.optimizer.state_dict()["state"])


def assert_same_state(
    a: tuple[list[torch.Tensor], dict[str, Any]], b: tuple[list[torch.Tensor], dict[str, Any]]
) -> None:
    assert same_bits(a[0], b[0])
    assert a[1].keys() == b[1].keys()
    for parameter, values in a[1].items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(b[1][parameter][name])), name


@pytest.mark.parametrize("delay_steps", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rollback_restores_weights_moments_and_step_counts_to_the_bit(
    kind: str, delay_steps: int, tmp_path: Path
) -> None:
    run, spec = make_run(kind), REWINDING.with_changes({"delay_steps": delay_steps})
    states, told = {}, []
    ring = Snapshots(every_steps=2, keep=5, on_rollback=told.append)
    with attach(run.optimizer, spec, trace=tmp_path, run_id="back", snapshots=ring, **ACTIVE) as live:
        step = 0
        while live.decision.posture != Posture.ROLLBACK:
            states[live.step] = state_of(run)
            train(run, range(step, step + 1), live, fault=spike)
            step += 1
        assert told == [live.step]
        assert live.step <= step - 1 - 4, "at least as deep as asked"
        assert_same_state(state_of(run), states[live.step])
        assert [s for s in ring.steps if s > live.step] == [], "newer snapshots belong to the life that was given up"
        train(run, range(step, 60), live)
    everything = read_trace(tmp_path).to_numpy("all")
    row = everything["posture"].tolist().index(Posture.ROLLBACK)
    assert everything["rolled_back_to"][row] == told[0]
    assert everything["effective_lr"][row] == 0.0
    assert everything["step"][row + 1] == told[0]
    assert everything["attempt"].tolist() == [0] * (row + 1) + [1] * (60 - row - 1)
    final = read_trace(tmp_path).to_numpy()["step"].tolist()
    assert final == list(range(len(final)))
    assert verify(read_trace(tmp_path)).rows == 60


def test_named_companions_go_back_and_others_stay() -> None:
    run = make_run()
    goes, stays = (torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 1.0) for _ in range(2))
    ring = Snapshots(every_steps=1, keep=10, also=[goes])
    with attach(run.optimizer, REWINDING, snapshots=ring, **ACTIVE) as live:
        for step in range(40):
            train(run, range(step, step + 1), live, fault=spike)
            if live.decision.posture == Posture.ROLLBACK:
                assert goes.last_epoch == live.step
                assert stays.last_epoch == step
                return
            goes.step()
            stays.step()
    raise AssertionError("no rollback came")


def test_where_one_companion_cannot_go_back_none_does_and_the_guard_is_grounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Loader:
        """Knows how many batches it gave, and cannot go back to an earlier one."""

        given = 0

        def state_dict(self) -> dict[str, int]:
            return {"given": self.given}

        def load_state_dict(self, state: dict[str, int]) -> None:
            before, self.given = self.given, state["given"]
            if self.given < before:
                raise ValueError("a stream has no way back")

    run, loader = make_run(), Loader()
    schedule = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 1.0)
    ring = Snapshots(every_steps=1, keep=10, also=[schedule, loader])
    states: dict[Any, Any] = {}
    with attach(run.optimizer, REWINDING, trace=tmp_path, run_id="half", snapshots=ring, **ACTIVE) as live:
        for step in range(40):
            states[live.step] = state_of(run)
            train(run, range(step, step + 1), live, fault=spike)
            if live.grounded is None:
                schedule.step()
                loader.given += 1
            elif "went_back" not in states:
                states["went_back"] = live.step
                assert live.step <= step - 4
                assert_same_state(state_of(run), states[live.step])
                assert schedule.last_epoch == loader.given == step, "the schedule had gone back and came again"
                assert "a Loader of also= could not go back" in live.grounded
                assert "a stream has no way back" in live.grounded
    assert "went_back" in states
    assert caplog.text.count("is grounded at step") == 1
    assert verify(read_trace(tmp_path)).rows == 40


def test_running_statistics_go_back_with_the_model() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    run = Run(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    means: dict[int, torch.Tensor] = {}
    ring = Snapshots(every_steps=1, keep=10, model=model)
    with attach(run.optimizer, REWINDING, snapshots=ring, **ACTIVE) as live:
        for step in range(40):
            train(run, range(step, step + 1), live, fault=spike)
            if live.decision.posture == Posture.ROLLBACK:
                assert torch.equal(model[0].running_mean, means[live.step])  # type: ignore[arg-type]
                return
            means[live.step - 1] = model[0].running_mean.clone()  # type: ignore[union-attr, operator]
    raise AssertionError("no rollback came")


def test_rollbacks_are_bounded_and_a_step_that_cannot_go_back_is_an_ordinary_step(tmp_path: Path) -> None:
    run = make_run()
    leaping = lambda step, loss: loss * (60.0 if step >= 30 and step // 8 % 2 else 1.0)  # noqa: E731
    with attach(run.optimizer, REWINDING, trace=tmp_path, run_id="storm", snapshots=Snapshots(), **ACTIVE) as live:
        train(run, range(300), live, fault=leaping)
    everything = read_trace(tmp_path).to_numpy("all")
    assert (everything["rolled_back_to"] >= 0).sum() == 2, "the budget"
    assert Reason.ROLLBACKS_SPENT in everything["reason"].tolist()
    assert verify(read_trace(tmp_path)).rows == 300

    run = make_run()
    ring = Snapshots(every_steps=1000)
    with attach(run.optimizer, REWINDING, trace=tmp_path, run_id="empty", snapshots=ring, **ACTIVE) as live:
        live.step = 1  # past the only step at which a snapshot is due
        train(run, range(1, 60), live, fault=spike)
    columns = read_trace(tmp_path, "empty").to_numpy("all")
    assert Posture.ROLLBACK in columns["posture"].tolist()
    assert (columns["rolled_back_to"] == -1).all()
    assert not columns["skipped"].any()
    assert verify(read_trace(tmp_path, "empty")).rows == 59


def test_a_run_that_rolled_back_is_shown_and_reported_with_its_rollbacks(tmp_path: Path) -> None:
    """The row that goes back is itself given up: the final lineage, which everything else is taken from, lacks it."""
    run = make_run()
    with attach(run.optimizer, REWINDING, trace=tmp_path, run_id="back", snapshots=Snapshots(), **ACTIVE) as live:
        train(run, range(60), live, fault=spike)
    trace = read_trace(tmp_path)
    took = int((trace.to_numpy("all")["rolled_back_to"] >= 0).sum())
    assert took > 0
    (said,) = [line for line in lbw("show", tmp_path).stdout.splitlines() if line.startswith("rollbacks")]
    assert said.split() == ["rollbacks", str(took)]
    ((found, _),) = examine([trace], guard=None, fallback=REWINDING, rules={})
    assert found.control.rollbacks == took
    assert next(one.used for one in found.budgets if one.limit == "rollbacks") == took


def test_no_snapshot_is_taken_of_a_run_in_danger() -> None:
    run = make_run()
    ring = Snapshots(every_steps=1, keep=100)
    patient = REWINDING.with_changes({"envelope.max_rollbacks": 0})
    with attach(run.optimizer, patient, snapshots=ring, **ACTIVE) as live:
        unsafe = []
        for step in range(60):
            train(
                run, range(step, step + 1), live, fault=lambda s, loss: loss * math.nan if s == 40 else spike(s, loss)
            )
            if live.decision.regime not in (0, 1, 7):
                unsafe.append(step)
    assert {30, 40} & set(unsafe)
    assert not set(unsafe) & set(ring.steps)


def test_a_full_ring_reuses_its_memory_and_stays_as_large_as_planned() -> None:
    run = make_run()
    ring = Snapshots(every_steps=1, keep=3)
    train(run, range(1))
    for step in range(3):
        ring.take(step, [run.optimizer])
    places = {w.data_ptr() for s in ring._ring for w in s.weights}
    for step in range(3, 20):
        train(run, range(step, step + 1))
        ring.take(step, [run.optimizer])
    assert ring.steps == [17, 18, 19]
    assert {w.data_ptr() for s in ring._ring for w in s.weights} == places
    bytes_held = sum(t.nbytes for s in ring._ring for state in s.states for t in state.values())
    bytes_held += sum(w.nbytes for s in ring._ring for w in s.weights)
    assert ring.plan([run.optimizer]).startswith("3 snapshots of ")
    assert f"{bytes_held / 1024:.1f} KiB in all" in ring.plan([run.optimizer])


def test_a_ring_that_does_not_fit_into_memory_is_refused_before_training() -> None:
    with pytest.raises(LiveError, match="Lower keep"):
        Snapshots(keep=10**10).plan([make_run().optimizer])
    with pytest.raises(LiveError, match=r"every_steps=0 is below 1; keep=-1 .*a list has no state_dict"):
        Snapshots(every_steps=0, keep=-1, also=[[]])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("line", "below", "names"),
    [
        ("0::/job/7", "", ("memory.max", "memory.current")),
        ("4:cpu,memory:/job/7", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_free_memory_is_what_the_tightest_control_group_leaves(
    line: str, below: str, names: tuple[str, str], tmp_path: Path
) -> None:
    membership, mount = tmp_path / "cgroup", tmp_path / "mount"
    membership.write_text(f"1:name=systemd:/\n{line}\n")
    assert _group_free_bytes(membership, mount) is None, "nothing is limited here"
    for folder, limit in (("job/7", "max" if not below else str(2**63 - 4096)), ("job", "5000")):
        group = mount / below / folder
        group.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, "4000"), strict=True):
            (group / name).write_text(f"{value}\n")
        (group / "memory.stat").write_text("anon 3000\ninactive_file 700\n")
    assert _group_free_bytes(membership, mount) == 5000 - 4000 + 700
    # inside a container the path may lead nowhere, and the top is its own group
    (mount / below / "job").rename(mount / below / "other")
    for name, value in zip(names, ("900", "400"), strict=True):
        (mount / below / name).write_text(value)
    (mount / below / "memory.stat").write_text("")
    assert _group_free_bytes(membership, mount) == 500


def test_ranks_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    free = _free_bytes(torch.device("cpu"))
    assert free is not None
    one = sum(p.numel() * 4 for p in run.model.parameters()) * 3
    ring = Snapshots(keep=int(0.5 * free / one))
    assert "ranks" not in ring.plan([run.optimizer])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(LiveError, match=r"8 ranks share this memory; only .* are free. Lower keep"):
        ring.plan([run.optimizer])


def test_parameters_added_since_a_snapshot_make_it_unfit() -> None:
    run = make_run()
    ring = Snapshots()
    ring.take(0, [run.optimizer])
    run.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert ring.roll_back(5, 1, [run.optimizer]) is None
    assert ring.steps == []


@pytest.mark.parametrize("stop", [29, 31, 33, 36])
def test_a_run_resumed_with_its_ring_rolls_back_as_the_uninterrupted_one_does(stop: int, tmp_path: Path) -> None:
    def ring() -> Snapshots:
        return Snapshots(every_steps=2, keep=5, in_checkpoints=True)

    whole = make_run()
    with attach(whole.optimizer, REWINDING, trace=tmp_path, run_id="whole", snapshots=ring(), **ACTIVE) as live:
        train(whole, range(60), live, fault=spike)
    first = make_run()
    with attach(first.optimizer, REWINDING, trace=tmp_path, run_id="parts", snapshots=ring(), **ACTIVE) as live:
        train(first, range(stop), live, fault=spike)
        parts = {
            "model": first.model.state_dict(),
            "optimizer": first.optimizer.state_dict(),
            "guard": live.state_dict(),
        }
        torch.save(parts, tmp_path / "checkpoint.pt")
    second, saved = make_run(seed=9), torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    with attach(second.optimizer, REWINDING, trace=tmp_path, run_id="parts", snapshots=ring(), **ACTIVE) as live:
        live.load_state_dict(saved["guard"])
        train(second, range(stop, 60), live, fault=spike)
    assert same_bits(weights(whole), weights(second))
    a, b = (read_trace(tmp_path, name) for name in ("whole", "parts"))
    assert (a.to_numpy("all")["rolled_back_to"] >= 0).any()
    assert verify(b).segments == 2
    for name in ("step", "loss", "regime", "posture", "scale", "energy", "reason", "rolled_back_to"):
        assert a.to_numpy("all")[name].tolist() == b.to_numpy("all")[name].tolist(), name


def test_batches_and_loss_after_a_rollback_are_those_that_the_loop_goes_on_with(tmp_path: Path) -> None:
    run = make_run()
    with attach(
        run.optimizer, REWINDING, trace=tmp_path, run_id="data", snapshots=Snapshots(every_steps=2), **ACTIVE
    ) as live:
        seen = []
        for number in range(45):
            x, y = batch(number)
            loss = spike(number, (run.model(x) - y).square().mean())
            run.optimizer.zero_grad()
            loss.backward()
            live.observe(loss)
            run.optimizer.step()
            seen.append(float(loss.detach()))
    assert read_trace(tmp_path).to_numpy("all")["loss"].tolist() == seen


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_guard_and_ring_travel_through_a_distributed_checkpoint(tmp_path: Path) -> None:
    from torch.distributed import checkpoint

    first = make_run()
    options = {"snapshots": Snapshots(every_steps=2, in_checkpoints=True), **ACTIVE}
    with attach(first.optimizer, REWINDING, **options) as live:
        train(first, range(25), live)
        checkpoint.save({"guard": live}, checkpoint_id=tmp_path, no_dist=True)
        saved = copy.deepcopy(live.state_dict())
    second = make_run(seed=3)
    options = {"snapshots": Snapshots(every_steps=2, in_checkpoints=True), **ACTIVE}
    with attach(second.optimizer, REWINDING, **options) as live:
        checkpoint.load({"guard": live}, checkpoint_id=tmp_path, no_dist=True)
        assert live.step == 25
        loaded = live.state_dict()
        assert loaded["guard"] == saved["guard"]
        assert loaded["snapshots"]["steps"] == saved["snapshots"]["steps"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_checkpoint_waits_for_a_snapshot_that_is_still_on_its_way() -> None:
    weight = torch.nn.Parameter(torch.zeros(1 << 22, device="cuda"))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    ring = Snapshots(keep=1, in_checkpoints=True)
    ring.take(0, [optimizer])
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    with torch.no_grad():
        weight.fill_(1.0)
    ring.take(1, [optimizer])
    kept = Snapshots(keep=1, in_checkpoints=True)
    kept.load_state_dict(ring.state_dict())
    assert float(kept.held()[0][1][0].min()) == 1.0


def test_a_callback_that_fails_costs_no_rollback(caplog: pytest.LogCaptureFixture) -> None:
    run = make_run()
    ring = Snapshots(every_steps=2, on_rollback=lambda step: 1 / 0)
    with attach(run.optimizer, REWINDING, snapshots=ring, **ACTIVE) as live:
        train(run, range(45), live, fault=spike)
        assert live.grounded is None
        assert live.step < 45
    assert "on_rollback failed at step" in caplog.text


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("scheduler", ["StepLR", "ExponentialLR", "OneCycleLR", "LambdaLR"])
def test_a_scheduler_that_goes_back_takes_its_learning_rate_with_it(scheduler: str, tensor_lr: bool) -> None:
    made: dict[str, dict[str, Any]] = {
        "StepLR": {"step_size": 10},
        "ExponentialLR": {"gamma": 0.9},
        "OneCycleLR": {"max_lr": 0.1, "total_steps": 50},
        "LambdaLR": {"lr_lambda": lambda epoch: 0.9**epoch},
    }
    run = make_run()
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=torch.tensor(0.1) if tensor_lr else 0.1)
    schedule = getattr(torch.optim.lr_scheduler, scheduler)(optimizer, **made[scheduler])
    ring = Snapshots(every_steps=5, keep=4, also=[schedule])
    rates: dict[int, list[tuple[float, tuple[float, float]]]] = {}
    step, lives = 0, 1
    while step < 25:
        group = optimizer.param_groups[0]
        rates.setdefault(step, []).append((float(group["lr"]), group["betas"]))
        if step % 5 == 0:
            ring.take(step, [optimizer])
        if step == 13 and lives == 1:
            lives = 2
            assert ring.roll_back(step, 7, [optimizer]) == 5
            step = 5
            continue
        train(Run(run.model, optimizer), range(step, step + 1))
        schedule.step()
        step += 1
    assert [rates[again][0] for again in range(5, 14)] == [rates[again][1] for again in range(5, 14)]
    assert len({rate for rate, _ in (seen[-1] for seen in rates.values())}) > 2


def test_what_an_optimizer_keeps_under_a_name_goes_back_too() -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.state["all"] = {"k": self.state["all"].get("k", 0) + 1}
            if self.state["all"]["k"] > 6:
                self.state["late"] = torch.ones(1)
            return super().step(closure)

    run = make_run()
    optimizer = Counting(run.model.parameters(), lr=1e-2)
    ring = Snapshots(every_steps=2, keep=4, in_checkpoints=True)
    for step in range(10):
        if step % 2 == 0:
            ring.take(step, [optimizer])
        train(Run(run.model, optimizer), range(step, step + 1))
    again = Snapshots(keep=4, in_checkpoints=True)
    again.load_state_dict(ring.state_dict())
    assert again.roll_back(10, 5, [optimizer]) == 4
    assert optimizer.state["all"] == {"k": 4}
    assert "late" not in optimizer.state
