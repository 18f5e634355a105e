"""The guard on real torch optimizers: what it changes, what it leaves alone, what it records."""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from broken_guard import broken_guard
from forked import Forked

from lbw_sim.errors import LiveError, TraceError
from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.guard.analyzers.composite import Composite
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.policies.damp_release import DampRelease
from lbw_sim.guard.sensors.robust_loss import RobustLoss
from lbw_sim.live import Snapshots, attach
from lbw_sim.replay import verify
from lbw_sim.trace import read_trace
from lbw_sim.values import Posture, Reason, Regime

EAGER = GuardSpec.of(
    Guard(
        sensor=RobustLoss(startup_rows=5),
        analyzer=Composite(hold_rows=3, recovery_rows=3),
        policy=DampRelease(hold_steps=4),
        envelope=Envelope(),
    ),
    "eager",
)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "tensor lr": {"fused": True, "lr": torch.tensor(1e-2)},
}


class Run(NamedTuple):
    """One small training run."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer


def make_run(kind: str = "plain", seed: int = 0) -> Run:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    options = {"lr": 1e-2, **KINDS[kind]}
    if isinstance(options["lr"], torch.Tensor):
        options["lr"] = options["lr"].clone()
    return Run(model, torch.optim.AdamW(model.parameters(), **options))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 4, generator=generator)
    return x, x.sum(dim=1, keepdim=True).sin() + 0.1 * torch.randn(32, 1, generator=generator)


def train(
    run: Run,
    steps: range,
    live: Any = None,
    fault: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    scheduler: Any = None,
) -> None:
    for step in steps:
        x, y = batch(step)
        loss = (run.model(x) - y).square().mean()
        if fault is not None:
            loss = fault(step, loss)
        run.optimizer.zero_grad()
        loss.backward()
        if live is not None:
            live.observe(loss, tokens=32)
        run.optimizer.step()
        if scheduler is not None:
            scheduler.step()


def weights(run: Run) -> list[torch.Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


def same_bits(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def spike(step: int, loss: torch.Tensor) -> torch.Tensor:
    return loss * 40.0 if 30 <= step < 36 else loss


def test_the_trace_stays_where_it_was_asked_for_when_the_loop_changes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "before" / "after").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "before")
    run = make_run()
    with attach(run.optimizer, EAGER, trace="traces", run_id="early") as live:
        monkeypatch.chdir(tmp_path / "before" / "after")
        train(run, range(3), live)
        monkeypatch.chdir(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*segment*")] == [
        "before/traces/run_id=early/segment-000.parquet"
    ]


def test_a_tilde_is_the_home_of_the_user_in_writing_and_in_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run = make_run()
    with attach(run.optimizer, EAGER, trace="~/traces", run_id="mine") as live:
        train(run, range(3), live)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert read_trace("~/traces").run_id == "mine"
    assert read_trace(tmp_path / "home" / "traces").segments[0].rows == 3


@pytest.mark.parametrize("kind", KINDS)
def test_shadow_guard_changes_no_bit_of_training(kind: str, tmp_path: Path) -> None:
    alone, watched = make_run(kind), make_run(kind)
    train(alone, range(60), fault=spike)
    with attach(watched.optimizer, EAGER, trace=tmp_path, run_id="shadow") as live:
        train(watched, range(60), live, fault=spike)
    assert same_bits(weights(alone), weights(watched))
    assert alone.optimizer.state_dict()["param_groups"] == watched.optimizer.state_dict()["param_groups"]
    columns = read_trace(tmp_path).to_numpy()
    assert columns["scale"].min() < 1.0, "it decided to act"
    assert (columns["effective_lr"] == columns["lr"]).all(), "and did not"


@pytest.mark.parametrize("kind", KINDS)
def test_active_scale_is_bit_for_bit_the_step_of_a_scaled_lr(kind: str, tmp_path: Path) -> None:
    guarded, by_hand = make_run(kind), make_run(kind)
    with attach(guarded.optimizer, EAGER, trace=tmp_path, run_id="active", mode="active", unproven=True) as live:
        train(guarded, range(60), live, fault=spike)
    columns = read_trace(tmp_path).to_numpy()
    assert columns["scale"].min() <= 0.5
    for step, lr in enumerate(columns["effective_lr"].tolist()):
        for group in by_hand.optimizer.param_groups:
            group["lr"] = torch.tensor(lr, dtype=torch.float32) if kind == "tensor lr" else lr
        train(by_hand, range(step, step + 1), fault=spike)
    assert same_bits(weights(guarded), weights(by_hand))
    assert float(guarded.optimizer.param_groups[0]["lr"]) == pytest.approx(1e-2, rel=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skip_leaves_weights_moments_and_step_counts_even_under_nan_gradients(kind: str) -> None:
    run = make_run(kind)
    with attach(run.optimizer, EAGER, mode="active", unproven=True) as live:
        train(run, range(20), live)
        before, state = weights(run), copy.deepcopy(run.optimizer.state_dict()["state"])
        train(run, range(20, 21), live, fault=lambda step, loss: loss * math.nan)
        assert live.decision.posture == Posture.SKIP
        assert same_bits(weights(run), before)
        after = run.optimizer.state_dict()["state"]
        for parameter, values in state.items():
            for name, value in values.items():
                assert torch.equal(after[parameter][name], value), name
        assert all(p.grad is not None and p.grad.isnan().any() for p in run.model.parameters()), "gradients are back"
        train(run, range(21, 40), live)
    assert all(w.isfinite().all() for w in weights(run))
    assert not same_bits(weights(run), before)


SCHEDULERS = {
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 60),
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.98),
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 10, 0.7),
    "linear": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 40),
    "warm restarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 25),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 10), torch.optim.lr_scheduler.CosineAnnealingLR(o, 50)],
        milestones=[10],
    ),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, total_steps=80, cycle_momentum=False),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_scheduler_goes_its_own_way_under_an_active_guard(name: str, tmp_path: Path) -> None:
    free, guarded = make_run(), make_run()
    schedule = SCHEDULERS[name](free.optimizer)
    expected = []
    for _ in range(60):
        expected.append(free.optimizer.param_groups[0]["lr"])
        free.optimizer.step()
        schedule.step()
    scheduler = SCHEDULERS[name](guarded.optimizer)
    with attach(guarded.optimizer, EAGER, trace=tmp_path, run_id="s", mode="active", unproven=True) as live:
        train(guarded, range(60), live, fault=spike, scheduler=scheduler)
    columns = read_trace(tmp_path).to_numpy()
    assert columns["lr"].tolist() == expected
    assert columns["scale"].min() < 1.0


@pytest.mark.parametrize("delay_steps", [0, 1])
@pytest.mark.parametrize("mode", ["shadow", "active"])
def test_replay_of_a_flight_gives_equal_bits(delay_steps: int, mode: Any, tmp_path: Path) -> None:
    run, spec = make_run(), EAGER.with_changes({"delay_steps": delay_steps})
    with attach(run.optimizer, spec, trace=tmp_path, run_id="flight", mode=mode, unproven=True) as live:
        train(run, range(80), live, fault=lambda s, loss: loss * math.nan if s in (50, 51) else spike(s, loss))
    trace = read_trace(tmp_path)
    assert verify(trace).rows == 80
    columns = trace.to_numpy()
    assert columns["step"].tolist() == list(range(80))
    assert columns["tokens"].tolist() == [32.0] * 80
    first = int((columns["regime"] == Regime.NONFINITE).argmax())
    assert first == 50 + delay_steps


def test_with_a_delay_the_row_still_holds_the_loss_of_its_own_step(tmp_path: Path) -> None:
    losses: dict[int, list[float]] = {}
    for delay_steps in (0, 1):
        run, spec = make_run(), EAGER.with_changes({"delay_steps": delay_steps})
        with attach(run.optimizer, spec, trace=tmp_path, run_id=f"delay-{delay_steps}") as live:
            train(run, range(30), live)
        losses[delay_steps] = read_trace(tmp_path / f"run_id=delay-{delay_steps}").to_numpy()["loss"].tolist()
    assert losses[0] == losses[1]


@pytest.mark.parametrize("delay_steps", [0, 1])
@pytest.mark.parametrize("stop", [1, 33, 34])
def test_a_resumed_run_equals_an_uninterrupted_one(delay_steps: int, stop: int, tmp_path: Path) -> None:
    spec = EAGER.with_changes({"delay_steps": delay_steps})
    options: dict[str, Any] = {"mode": "active", "unproven": True}
    whole = make_run()
    with attach(whole.optimizer, spec, trace=tmp_path, run_id="whole", **options) as live:
        train(whole, range(60), live, fault=spike)

    first = make_run()
    with attach(first.optimizer, spec, trace=tmp_path, run_id="parts", **options) as live:
        train(first, range(stop), live, fault=spike)
        checkpoint = tmp_path / "checkpoint.pt"
        torch.save(
            {"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict(), "guard": live.state_dict()},
            checkpoint,
        )
    second, saved = make_run(seed=9), torch.load(checkpoint, weights_only=True)
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    with attach(second.optimizer, spec, trace=tmp_path, run_id="parts", **options) as live:
        live.load_state_dict(saved["guard"])
        train(second, range(stop, 60), live, fault=spike)

    assert same_bits(weights(whole), weights(second))
    a, b = (read_trace(tmp_path / f"run_id={name}") for name in ("whole", "parts"))
    assert len(b.segments) == 2
    assert verify(b).rows == 60
    for name in ("step", "loss", "regime", "posture", "scale", "energy", "reason"):
        assert a.to_numpy()[name].tolist() == b.to_numpy()[name].tolist(), name


def test_accumulated_micro_batches_make_one_token_weighted_loss(tmp_path: Path) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="micro") as live:
        for step in range(3):
            run.optimizer.zero_grad()
            for value, tokens in ((1.0 + step, 100), (4.0, 300)):
                (run.model(torch.ones(1, 4)).sum() * 0.0).backward()
                live.observe(torch.tensor(value), tokens=tokens)
            run.optimizer.step()
    columns = read_trace(tmp_path).to_numpy()
    assert columns["loss"].tolist() == [(100 * (1.0 + s) + 300 * 4.0) / 400 for s in range(3)]
    assert columns["tokens"].tolist() == [400.0] * 3


def test_a_closure_is_judged_by_its_own_loss(tmp_path: Path) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="closure", mode="active", unproven=True):
        for step in range(60):
            x, y = batch(step)

            def closure(step: int = step, x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
                run.optimizer.zero_grad()
                loss = spike(step, (run.model(x) - y).square().mean())
                loss.backward()
                return loss

            run.optimizer.step(closure)
    columns = read_trace(tmp_path).to_numpy()
    assert not any(math.isnan(loss) for loss in columns["loss"].tolist())
    assert columns["scale"].min() < 1.0
    assert verify(read_trace(tmp_path)).rows == 60


def test_an_exception_inside_the_step_leaves_the_lr_as_it_was() -> None:
    run = make_run()
    with attach(run.optimizer, EAGER, mode="active", unproven=True) as live:
        train(run, range(33), live, fault=spike)
        assert live.decision.scale < 1.0

        def fail(*_: Any) -> None:
            raise RuntimeError("somebody else's hook")

        hook = run.optimizer.register_step_pre_hook(fail)
        with pytest.raises(RuntimeError, match="somebody else's hook"):
            train(run, range(33, 34), live)
        hook.remove()
        assert run.optimizer.state_dict()["param_groups"][0]["lr"] == 1e-2
        train(run, range(34, 60), live)
        assert run.optimizer.param_groups[0]["lr"] == 1e-2


def test_a_bug_in_a_rule_grounds_the_guard_and_never_reaches_the_training_loop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone, run = make_run(), make_run()
    train(alone, range(40))
    with caplog.at_level(logging.WARNING, logger="lbw_sim"):
        broken = broken_guard(tmp_path, 20)
        live = attach(run.optimizer, broken, trace=tmp_path, run_id="bug", mode="active", unproven=True)
        train(run, range(40), live)
        live.close()
    assert "a bug in somebody's rule" in str(live.grounded)
    assert len(caplog.records) == 1, "said once"
    assert same_bits(weights(alone), weights(run))
    columns = read_trace(tmp_path / "run_id=bug").to_numpy()
    assert columns["reason"].tolist() == [Reason.NONE] * 20 + [Reason.GUARD_FAULT] * 20
    assert not any(math.isnan(loss) for loss in columns["loss"].tolist()), "recording went on"
    assert verify(read_trace(tmp_path / "run_id=bug")).grounded_rows == 20


@pytest.mark.parametrize("loss", ["nonsense", torch.ones(3), None], ids=["text", "vector", "none"])
def test_a_loss_that_is_no_number_grounds_the_guard_and_training_goes_on(loss: Any, tmp_path: Path) -> None:
    alone, run = make_run(), make_run()
    train(alone, range(10))
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="r", mode="active", unproven=True) as live:
        for step in range(10):
            live.observe(loss)
            train(run, range(step, step + 1))
        assert live.grounded is not None
    assert same_bits(weights(alone), weights(run))
    reasons = read_trace(tmp_path).table()["reason"].to_pylist()
    assert reasons == ["GUARD_FAULT"] * 10, "grounded before its first step, and the trace says so"


def test_a_trace_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="file"):
        attach(make_run().optimizer, EAGER, trace=tmp_path / "file")


@pytest.mark.parametrize("said", ["no", "False", 0, 1, None])
def test_a_flag_that_is_no_bool_is_refused_and_not_taken_for_a_yes(said: Any) -> None:
    run = make_run()
    for mode in ("active", "shadow"):
        with pytest.raises(LiveError, match=r"unproven=.* is neither True nor False"):
            attach(run.optimizer, EAGER, mode=mode, unproven=said)
    with pytest.raises(LiveError, match=r"Snapshots: in_checkpoints=.* is neither True nor False"):
        Snapshots(in_checkpoints=said)
    with attach(run.optimizer, EAGER):
        pass  # nothing was left on it


def test_what_cannot_be_guarded_is_refused_with_the_reason() -> None:
    run = make_run()
    with pytest.raises(LiveError, match="unproven=True"):
        attach(run.optimizer, EAGER, mode="active")
    with pytest.raises(LiveError, match="LBFGS"):
        attach(torch.optim.LBFGS(run.model.parameters()), EAGER)
    with pytest.raises(LiveError, match="max_rollbacks = 0"):
        attach(run.optimizer, EAGER.with_changes({"envelope.max_rollbacks": 2}), mode="active", unproven=True)
    with attach(run.optimizer, EAGER), pytest.raises(LiveError, match="has a guard already"):
        attach(run.optimizer, EAGER)
    with attach(run.optimizer, EAGER) as live:
        train(run, range(3), live)
        with pytest.raises(LiveError, match="before the first step"):
            live.load_state_dict(live.state_dict())
    other = attach(run.optimizer, "zscore")
    with pytest.raises(LiveError, match="checkpoint belongs to guard"):
        other.load_state_dict(live.state_dict())
    other.close()


def test_an_optimizer_without_a_learning_rate_is_recorded_and_never_acted_on(tmp_path: Path) -> None:
    run = make_run()
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.0)

    class RelativeStep(torch.optim.Optimizer):
        """Like Adafactor, whose lr is None when it finds its step size by itself."""

        def __init__(self) -> None:
            super().__init__(run.model.parameters(), {"lr": None})

        def step(self, closure: Any = None) -> None:
            optimizer.step()

    relative = RelativeStep()
    with pytest.raises(LiveError, match="RelativeStep has no 'lr'"):
        attach(relative, EAGER, mode="active", unproven=True)
    with attach(relative, EAGER, trace=tmp_path, run_id="relative") as live:
        train(Run(run.model, relative), range(5), live)
        assert live.grounded is None
    columns = read_trace(tmp_path).to_numpy()
    assert columns["step"].tolist() == list(range(5))
    assert all(map(math.isnan, columns["lr"].tolist()))


def test_two_guards_that_record_under_one_name_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Forgotten torch.distributed, or the same script twice: the reader would show one of the two."""
    runs = make_run(seed=0), make_run(seed=1)
    with attach(runs[0].optimizer, EAGER, trace=tmp_path, run_id="same") as first:
        train(runs[0], range(3), first)
        assert not caplog.text
        with attach(runs[1].optimizer, EAGER, trace=tmp_path, run_id="same") as second:
            train(runs[1], range(3), second)
            assert "run same" in caplog.text
            assert "its own run_id" in caplog.text
    assert len(read_trace(tmp_path).table("all")) == 6
    caplog.clear()
    with attach(runs[0].optimizer, EAGER, trace=tmp_path, run_id="same") as third:
        train(runs[0], range(3, 6), third)
        assert not caplog.text, "a resumption"


def test_after_detach_the_optimizer_is_its_owners_again() -> None:
    alone, run = make_run(), make_run()
    train(alone, range(20), fault=lambda s, loss: loss * 1.0)
    live = attach(run.optimizer, "default", mode="active", unproven=True)
    train(run, range(10), live)
    live.close()
    train(run, range(10, 20))
    assert same_bits(weights(alone), weights(run))
    assert not run.optimizer._optimizer_step_pre_hooks  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(run.optimizer.state_dict()))["param_groups"][0]["lr"] == 1e-2


FULL_DISK = """
import pathlib, resource, signal, sys
sys.path[:0] = sys.argv[2:]
from lbw_sim.live import attach
from test_attach import EAGER, make_run, spike, train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = make_run()
live = attach(run.optimizer, EAGER, trace=sys.argv[1], run_id="full", mode="active", unproven=True)
train(run, range(33), live, fault=spike)
assert live.decision.scale < 1.0 and live.grounded is None, live
(journal,) = pathlib.Path(sys.argv[1]).rglob("*.journal")
resource.setrlimit(resource.RLIMIT_FSIZE, (journal.stat().st_size,) * 2)
train(run, range(33, 34), live, fault=spike)
assert "cannot be written" in live.grounded, live
train(run, range(34, 60), live, fault=spike)
assert run.optimizer.param_groups[0]["lr"] == 1e-2
live.close()
print("TRAINED ON", live.step)
"""


def test_a_full_disk_in_flight_grounds_the_guard_and_training_goes_on(tmp_path: Path, forked: Forked) -> None:
    done = forked.run(FULL_DISK, tmp_path, Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    assert "TRAINED ON 60" in done.stdout
    assert "is grounded at step 34" in done.stderr
    assert "27 rows were not recorded" in done.stderr
    trace = read_trace(tmp_path)
    assert trace.to_numpy()["step"].tolist() == list(range(33))
    assert verify(trace).rows == 33


def test_a_trace_that_somebody_deletes_in_flight_is_told_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="gone") as live:
        train(run, range(5), live)
        shutil.rmtree(tmp_path / "run_id=gone")
        train(run, range(5, 8), live)
    assert "run gone: 8 rows were not recorded" in caplog.text
    assert "somebody deleted" in caplog.text


def test_a_forked_child_says_why_it_records_nothing_and_its_parent_goes_on(tmp_path: Path) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="parent") as live:
        train(run, range(3), live)
        if (child := os.fork()) == 0:
            train(run, range(3, 6), live)
            os._exit(0 if "a forked child records nothing" in (live.grounded or "") else 1)
        assert os.waitpid(child, 0)[1] == 0
        train(run, range(3, 6), live)
    assert read_trace(tmp_path).to_numpy()["step"].tolist() == list(range(6))


KILLED = """
import sys
sys.path[:0] = sys.argv[2:]
from lbw_sim.live import attach
from test_attach import EAGER, make_run, spike, train
run = make_run()
live = attach(run.optimizer, EAGER, trace=sys.argv[1], run_id="killed", mode="active", unproven=True)
for step in range(100_000):
    train(run, range(step, step + 1), live, fault=spike)
    print(step, flush=True)
"""


def test_a_training_process_killed_with_kill_9_leaves_every_step_that_it_finished(
    tmp_path: Path, forked: Forked
) -> None:
    child = forked.start(KILLED, tmp_path, Path(__file__).parent)
    lines = io.TextIOWrapper(io.BufferedReader(child.stdout))
    for line in lines:
        if int(line) >= 150:
            child.kill()
            break
    finished = [int(line) for line in lines.read().split("\n")[:-1]] or [150]
    assert child.wait() == -signal.SIGKILL
    trace = read_trace(tmp_path)
    assert trace.meta.ended == "recovered"
    steps = trace.to_numpy()["step"].tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) > finished[-1]
    assert verify(trace).rows == len(steps)


def test_facts_that_no_trace_can_hold_are_refused_before_training(tmp_path: Path) -> None:
    facts: Any = {"seed": 1, "layers": [4, 4], "config": Path("run.yaml"), "debug": True}
    with pytest.raises(TraceError, match=r"'layers'=\[4, 4\]; 'config'=.*: a text, a number or None is needed"):
        attach(make_run().optimizer, EAGER, trace=tmp_path, provenance=facts)


def test_a_mark_may_be_a_number(tmp_path: Path) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="epochs") as live:
        for epoch in range(3):
            live.mark(epoch)  # type: ignore[arg-type]
            train(run, range(2 * epoch, 2 * epoch + 2), live)
        assert live.grounded is None
    assert read_trace(tmp_path).to_numpy()["event"].tolist() == ["0", "", "1", "", "2", ""]
