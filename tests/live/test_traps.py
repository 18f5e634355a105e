"""The traps of real training loops, each with its remedy: scalers, several optimizers, compiled steps, late groups."""

from __future__ import annotations

import copy
import gc
import math
import os
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked

from lbw_sim.errors import EvidenceError, LiveError, SpecError, TraceError
from lbw_sim.live import GuardedAdamW, attach
from lbw_sim.replay import verify
from lbw_sim.trace import read_trace
from lbw_sim.values import Posture, Regime

from .test_attach import EAGER, KINDS, Run, batch, make_run, same_bits, spike, train, weights

ACTIVE: dict[str, Any] = {"mode": "active", "unproven": True}


@pytest.mark.parametrize("delay_steps", [0, 1])
@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_a_step_that_the_gradient_scaler_drops_is_a_dropped_step_and_no_alarm(
    kind: str, delay_steps: int, tmp_path: Path
) -> None:
    run, spec = make_run(kind), EAGER.with_changes({"delay_steps": delay_steps})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=1000)
    with attach(run.optimizer, spec, trace=tmp_path, run_id="amp", scaler=scaler) as live:
        for step in range(30):
            x, y = batch(step)
            loss = (run.model(x) - y).square().mean()
            run.optimizer.zero_grad()
            scaler.scale(loss).backward()
            if step in (0, 7):  # as in half precision, where the first scale is often too large
                next(iter(run.model.parameters())).grad.fill_(math.inf)  # type: ignore[union-attr]
            scaler.unscale_(run.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
            live.observe(loss, grad_norm=norm)
            scaler.step(run.optimizer)
            scaler.update()
    columns = read_trace(tmp_path).to_numpy()
    assert columns["step"].tolist() == list(range(30)), "a dropped step is not glued to the next one"
    dropped = [step for step, event in enumerate(columns["event"].tolist()) if event == "grad_scaler_overflow"]
    assert dropped == [0, 7]
    assert columns["skipped"].nonzero()[0].tolist() == dropped
    assert columns["effective_lr"][dropped].tolist() == [0.0, 0.0]
    assert columns["nonfinite"].max() == 0.0
    assert Regime.NONFINITE not in columns["regime"].tolist()
    assert verify(read_trace(tmp_path)).rows == 30
    assert "step" not in vars(scaler), "closing gives the scaler back"


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_a_scaled_step_is_half_a_step_under_a_gradient_scaler_too(kind: str) -> None:
    runs = {name: make_run(kind) for name in ("guarded", "by hand")}
    recorded: list[float] = []
    for name, run in runs.items():
        scaler = torch.amp.GradScaler("cpu")
        live = attach(run.optimizer, EAGER, scaler=scaler, **ACTIVE) if name == "guarded" else None
        for step in range(40):
            x, y = batch(step)
            loss = spike(step, (run.model(x) - y).square().mean())
            run.optimizer.zero_grad()
            scaler.scale(loss).backward()
            if live is not None:
                live.observe(loss)
            else:
                run.optimizer.param_groups[0]["lr"] = 1e-2 * recorded[step]
            scaler.step(run.optimizer)
            scaler.update()
            if live is not None:
                recorded.append(live.decision.scale)
        if live is not None:
            live.close()
    assert min(recorded) < 1.0
    assert same_bits(weights(runs["guarded"]), weights(runs["by hand"]))


def two_optimizers(seed: int = 0) -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
    run = make_run(seed=seed)
    first, *rest = run.model.parameters()
    return run.model, [torch.optim.SGD([first], lr=1e-2, momentum=0.9), torch.optim.AdamW(rest, lr=1e-3)]


def train_several(model: torch.nn.Module, optimizers: list[Any], steps: range, live: Any) -> None:
    for step in steps:
        x, y = batch(step)
        loss = spike(step, (model(x) - y).square().mean())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        if live is not None:
            live.observe(loss)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("delay_steps", [0, 1])
def test_several_optimizers_take_one_step_and_one_decision_between_them(delay_steps: int, tmp_path: Path) -> None:
    spec = EAGER.with_changes({"delay_steps": delay_steps})
    model, optimizers = two_optimizers()
    applied: list[list[float]] = [[], []]
    with attach(optimizers, spec, trace=tmp_path, run_id="two", **ACTIVE) as live:
        for place, optimizer in enumerate(optimizers):
            optimizer.register_step_pre_hook(
                lambda o, *_, place=place: applied[place].append(o.param_groups[0]["lr"])  # type: ignore[misc]
            )
        train_several(model, optimizers, range(60), live)
    columns = read_trace(tmp_path).to_numpy()
    assert columns["step"].tolist() == list(range(60))
    assert columns["scale"].min() < 1.0
    assert applied[0] == [1e-2 * scale for scale in columns["scale"].tolist()]
    assert applied[1] == [1e-3 * scale for scale in columns["scale"].tolist()]
    assert [o.param_groups[0]["lr"] for o in optimizers] == [1e-2, 1e-3]
    assert verify(read_trace(tmp_path)).rows == 60


def test_a_skip_of_several_optimizers_leaves_all_their_weights() -> None:
    model, optimizers = two_optimizers()
    with attach(optimizers, EAGER, **ACTIVE) as live:
        train_several(model, optimizers, range(10), live)
        before = [p.detach().clone() for p in model.parameters()]
        x, y = batch(10)
        loss = (model(x) - y).square().mean() * math.nan
        loss.backward()
        live.observe(loss)
        for optimizer in optimizers:
            optimizer.step()
        assert live.decision.posture == Posture.SKIP
        assert same_bits(before, [p.detach() for p in model.parameters()])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_a_compiled_step_is_scaled_without_being_compiled_anew() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend  # takes seconds to import

    runs = {}
    for name in ("compiled", "plain"):
        run = runs[name] = make_run("tensor lr")
        run.optimizer.param_groups[0]["fused"] = False
        counter = CompileCounterWithBackend("eager")
        with attach(run.optimizer, EAGER, **ACTIVE) as live:
            step = torch.compile(run.optimizer.step, backend=counter) if name == "compiled" else run.optimizer.step
            scales = []
            for number in range(45):
                x, y = batch(number)
                loss = spike(number, (run.model(x) - y).square().mean())
                run.optimizer.zero_grad()
                loss.backward()
                live.observe(loss)
                step()
                scales.append(live.decision.scale)
        assert len(set(scales)) >= 3, "the scale moved"
        if name == "compiled":
            assert counter.frame_count <= 2, "one graph before Adam has its moments, one after"
    for a, b in zip(weights(runs["compiled"]), weights(runs["plain"]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_skip_harms_neither_way_of_zeroing_gradients(set_to_none: bool, kind: str) -> None:
    guarded, by_hand = make_run(kind), make_run(kind)
    with attach(guarded.optimizer, EAGER, **ACTIVE) as live:
        for step in range(30):
            for run in (guarded, by_hand):
                x, y = batch(step)
                loss = (run.model(x) - y).square().mean() * (math.nan if step == 20 else 1.0)
                run.optimizer.zero_grad(set_to_none=set_to_none)
                loss.backward()
                if run is guarded:
                    live.observe(loss)
                    run.optimizer.step()
                elif step != 20:
                    run.optimizer.step()
    assert same_bits(weights(guarded), weights(by_hand))


def test_parameter_groups_added_mid_run_are_scaled_and_skipped_like_the_others(tmp_path: Path) -> None:
    run = make_run()
    extra = torch.nn.Parameter(torch.ones(3))
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="groups", **ACTIVE) as live:
        train(run, range(20), live)
        run.optimizer.add_param_group({"params": [extra], "lr": 0.5})
        seen: list[float] = []
        run.optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[1]["lr"]))
        train(run, range(20, 60), live, fault=spike)
    columns = read_trace(tmp_path).to_numpy()
    assert seen == [0.5 * scale for scale in columns["scale"].tolist()[20:]]
    assert min(seen) < 0.5
    assert run.optimizer.param_groups[1]["lr"] == 0.5


def test_a_tensor_lr_that_groups_share_is_scaled_once_and_stays_the_same_object() -> None:
    run = make_run()
    lr = torch.tensor(1e-2)
    first, *rest = run.model.parameters()
    optimizer = torch.optim.AdamW([{"params": [first]}, {"params": rest}], lr=lr, fused=True)
    seen: list[tuple[float, float]] = []
    with attach(optimizer, EAGER, **ACTIVE) as live:
        optimizer.register_step_pre_hook(
            lambda o, *_: seen.append((live.decision.scale, float(o.param_groups[1]["lr"])))
        )
        train(Run(run.model, optimizer), range(45), live, fault=spike)
        assert optimizer.param_groups[0]["lr"] is lr
        assert optimizer.param_groups[1]["lr"] is lr
    assert min(scale for scale, _ in seen) < 1.0
    assert [value for _, value in seen] == pytest.approx([1e-2 * scale for scale, _ in seen], rel=1e-6)
    assert float(lr) == pytest.approx(1e-2)


def test_a_wrapped_optimizer_is_opened_and_what_cannot_be_opened_is_refused() -> None:
    class Wrapper(torch.optim.Optimizer):
        """As accelerate's: passes everything on and is never stepped by torch itself."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

        def step(self, closure: Any = None) -> Any:
            return self.optimizer.step()

    run = make_run()
    with attach(Wrapper(run.optimizer), EAGER) as live:
        train(run, range(3), live)
        assert live.step == 3
    with pytest.raises(LiveError, match="this is str"):
        attach("adamw")  # type: ignore[arg-type]
    with pytest.raises(LiveError, match="each once"):
        attach([run.optimizer, run.optimizer], EAGER)
    with pytest.raises(LiveError, match="at least one"):
        attach([], EAGER)


def test_guarded_adamw_is_adamw_and_comes_back_from_its_own_and_into_a_plain_state_dict(tmp_path: Path) -> None:
    plain, guarded = make_run(), make_run()
    optimizer = GuardedAdamW(
        guarded.model.parameters(),
        lr=1e-2,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        guard=EAGER,
        trace=tmp_path,
        run_id="g",
    )
    reference = torch.optim.AdamW(plain.model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    train(Run(plain.model, reference), range(20))
    train(Run(guarded.model, optimizer), range(20), optimizer)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert same_bits(weights(plain), weights(guarded))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    optimizer.guard.close()

    saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    torch.optim.AdamW(make_run().model.parameters()).load_state_dict(saved)
    second = GuardedAdamW(make_run().model.parameters(), guard=EAGER, trace=tmp_path, run_id="g")
    second.load_state_dict(saved)
    assert second.guard.step == 20
    assert second.param_groups[0]["betas"] == (0.9, 0.95)
    second.guard.close()
    third = GuardedAdamW(make_run().model.parameters(), guard=EAGER, min_scale=0.5)
    third.load_state_dict(reference.state_dict())
    assert third.guard.spec.tables["envelope"]["min_scale"] == 0.5
    with pytest.raises(LiveError, match="unproven=True"):
        GuardedAdamW(make_run().model.parameters(), mode="active")
    third.guard.close()


def test_pickling_an_optimizer_drops_its_guard_and_attaching_again_flies_on() -> None:
    run = make_run()
    with attach(run.optimizer, EAGER, **ACTIVE) as live:
        train(run, range(20), live)
        memory = live.state_dict()
        copied = pickle.loads(pickle.dumps((run.model, run.optimizer)))
    second = Run(*copied)
    with attach(second.optimizer, EAGER, **ACTIVE) as live:
        live.load_state_dict(memory)
        train(second, range(20, 45), live, fault=spike)
        assert live.decision.scale < 1.0
        assert live.step == 45
    lost = pickle.loads(pickle.dumps(GuardedAdamW(make_run().model.parameters(), guard=EAGER)))
    with pytest.raises(LiveError, match="pickling drops its guard"):
        _ = lost.guard


def test_a_copy_of_what_holds_the_guard_leaves_its_recording_open(tmp_path: Path) -> None:
    """As an average of the weights copies the model. A second guard would close the file of the first as it goes."""
    run = make_run()
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="r", **ACTIVE) as live:
        run.model.guard = live
        train(run, range(20), live)
        averaged = torch.optim.swa_utils.AveragedModel(run.model)
        shallow = copy.copy(live)
        del averaged, shallow
        gc.collect()
        train(run, range(20, 40), live, fault=spike)
        assert live.grounded is None
        assert live.decision.energy > 0.0
        with pytest.raises(LiveError, match="a live guard is not pickled"):
            pickle.dumps(run.model)
    assert len(read_trace(tmp_path).table()) == 40


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scaler: pickle.loads(pickle.dumps(scaler))])
def test_a_copy_of_a_watched_gradient_scaler_is_a_scaler_of_its_own(copied: Any) -> None:
    run, other = make_run(), make_run(seed=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with attach(run.optimizer, EAGER, scaler=scaler, **ACTIVE):
        second = copied(scaler)
    second.scale(other.model(torch.ones(1, 4)).sum()).backward()
    second.step(other.optimizer)
    assert id(other.optimizer) in second._per_optimizer_states
    assert not scaler._per_optimizer_states


@pytest.mark.parametrize("lr", [math.nan, math.inf])
def test_a_learning_rate_that_is_no_number_is_its_owners_again_after_a_skipped_step(
    lr: float, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER, **ACTIVE) as live:
        train(run, range(20), live)
        run.optimizer.param_groups[0]["lr"] = lr
        train(run, range(20, 21), live, fault=lambda step, loss: loss * math.nan)
        assert live.decision.posture == Posture.SKIP
    assert repr(run.optimizer.param_groups[0]["lr"]) == repr(lr)
    assert "somebody set another" not in caplog.text


def test_an_exception_inside_the_step_costs_one_row_no_other_and_no_learning_rate(tmp_path: Path) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER.with_changes({"delay_steps": 1}), trace=tmp_path, run_id="x", **ACTIVE) as live:
        train(run, range(33), live, fault=spike)

        def fail(*_: Any) -> None:
            raise RuntimeError("somebody else's hook")

        hook = run.optimizer.register_step_pre_hook(fail)
        with pytest.raises(RuntimeError, match="somebody else's hook"):
            train(run, range(33, 34), live)
        hook.remove()
        train(run, range(34, 60), live)
        assert run.optimizer.param_groups[0]["lr"] == 1e-2
    columns = read_trace(tmp_path).to_numpy()
    assert columns["step"].tolist() == list(range(60)), "the step that raised had its decision, and has its row"
    assert not any(map(math.isnan, columns["loss"].tolist()))
    assert verify(read_trace(tmp_path)).rows == 60


@pytest.mark.parametrize("attached_first", [True, False])
def test_a_scheduler_that_somebodys_hook_steps_never_finds_a_scaled_lr(attached_first: bool) -> None:
    """An exponential schedule multiplies what it finds: each damped step would lower the learning rate for good."""
    lrs: dict[str, list[float]] = {}
    for name in ("free", "guarded"):
        run = make_run()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.99)
        live = attach(run.optimizer, EAGER, **ACTIVE) if name == "guarded" and attached_first else None
        run.optimizer.register_step_post_hook(lambda *_, scheduler=scheduler: scheduler.step())
        if name == "guarded" and not attached_first:
            live = attach(run.optimizer, EAGER, **ACTIVE)
        lrs[name] = []
        for step in range(60):
            train(run, range(step, step + 1), live, fault=spike)
            lrs[name].append(run.optimizer.param_groups[0]["lr"])
        if live is not None:
            assert live.decision.energy > 0.0
            live.close()
    assert lrs["guarded"] == lrs["free"]


def test_a_learning_rate_that_was_set_while_it_was_scaled_is_not_passed_over_in_silence(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = make_run()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.99)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with attach(run.optimizer, EAGER, **ACTIVE) as live:
        train(run, range(33), live, fault=spike, scheduler=scheduler)
        assert "somebody set another" not in caplog.text
        hook = run.optimizer.register_step_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            train(run, range(33, 34), live)
        hook.remove()
        scheduler.step()  # the loop has caught it and goes on
        train(run, range(34, 40), live)
    assert caplog.text.count("somebody set another") == 1


@pytest.mark.parametrize("closure", [False, True])
def test_a_subclass_that_calls_its_parents_step_takes_one_step(closure: bool, tmp_path: Path) -> None:
    """torch hooks the step of each class that was ever used: of such an optimizer, both."""

    class Averaged(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            if fails:
                raise RuntimeError("before the parent's step")
            return super().step(closure)

    def fly(kind: type[torch.optim.AdamW]) -> dict[str, Any]:
        run = make_run()
        optimizer = kind(run.model.parameters(), lr=1e-2)

        def evaluated() -> torch.Tensor:
            x, y = batch(live.step)
            optimizer.zero_grad()
            loss = spike(live.step, (run.model(x) - y).square().mean())
            loss.backward()
            return loss

        with attach(optimizer, EAGER, trace=tmp_path, run_id=kind.__name__, **ACTIVE) as live:
            for _ in range(60):
                if closure:
                    optimizer.step(evaluated)
                else:
                    live.observe(evaluated())
                    optimizer.step()
            assert live.step == 60
            if kind is Averaged:
                fails.append(True)
                with pytest.raises(RuntimeError, match="parent's step"):
                    optimizer.step()
                fails.clear()
                optimizer.step()
        return read_trace(tmp_path, kind.__name__).to_numpy()

    fails: list[bool] = []
    theirs, ours = fly(torch.optim.AdamW), fly(Averaged)
    for column in ("loss", "scale", "effective_lr"):
        assert ours[column][:60].tolist() == theirs[column].tolist()
    assert len(ours["step"]) == 62
    assert theirs["scale"].min() < 1.0


def test_a_guard_that_was_detached_keeps_nothing_of_what_it_is_told() -> None:
    run = make_run()
    live = attach(run.optimizer, EAGER)
    live.detach()
    loss = torch.ones(())
    freed = weakref.ref(loss)
    for _ in range(100):
        live.observe(loss, batch=loss)
    del loss
    assert live._mail.empty
    assert freed() is None
    live.close()


@pytest.mark.parametrize("place", ["before ours", "after ours", "post", "state dict"])
def test_a_guard_closed_inside_somebodys_hook_is_closed_and_training_goes_on(place: str, tmp_path: Path) -> None:
    run, alone = make_run(), make_run()

    def close(*_: Any) -> None:
        if live.step == 5:
            live.close()

    def hook() -> None:
        if place == "post":
            run.optimizer.register_step_post_hook(close)
        elif place == "state dict":
            run.optimizer.register_state_dict_pre_hook(close)
        else:
            run.optimizer.register_step_pre_hook(close)

    if place == "before ours":
        hook()
    live = attach(run.optimizer, EAGER, trace=tmp_path, run_id="closed", **ACTIVE)
    if place != "before ours":
        hook()
    for step in range(10):
        train(run, range(step, step + 1), live)
        run.optimizer.state_dict()
    train(alone, range(10))
    assert same_bits(weights(run), weights(alone))
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="again") as live:
        train(run, range(10, 13), live)
    assert read_trace(tmp_path, "again").to_numpy()["step"].tolist() == [0, 1, 2]
    assert 5 <= len(read_trace(tmp_path, "closed").to_numpy()["step"]) <= 6


@pytest.mark.parametrize("folder", ["a\0b", Path("a\0b"), "\ud800", b"bytes", 5])
def test_a_trace_where_no_file_system_has_a_folder_is_refused_before_anything_is_trained(folder: Any) -> None:
    run = make_run("plain")
    with pytest.raises(TraceError, match=r"is no path: runs are recorded in a folder, named by text"):
        attach(run.optimizer, "default", trace=folder, run_id="run")
    train(run, range(2))  # nothing was put on


@pytest.mark.parametrize("asked", [{"guard": "a\0b"}, {"guard": "default", "mode": "active", "backtest": "a\0b"}])
def test_so_is_a_guard_or_a_report_whose_file_cannot_be(asked: dict[str, Any]) -> None:
    with pytest.raises((SpecError, EvidenceError), match=r"'a\\x00b' cannot be read as a (guard|back-test report)"):
        attach(make_run("plain").optimizer, **asked)


def test_a_mark_that_is_the_recorders_own_word_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="word") as live:
        live.mark("grad_scaler_overflow")
        train(run, range(3), live)
        live.mark("epoch 1")
        train(run, range(3, 5), live)
    assert read_trace(tmp_path).to_numpy()["event"].tolist() == ["", "", "", "epoch 1", ""]
    assert verify(read_trace(tmp_path)).rows == 5
    assert "mark('grad_scaler_overflow') is left out" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_guarded_run_on_a_gpu_never_waits_for_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    spec = EAGER.with_changes({"delay_steps": 1})
    batches = [tuple(part.cuda() for part in batch(step)) for step in range(60)]
    with attach(optimizer, spec, trace=tmp_path, run_id="gpu", **ACTIVE) as live:
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step, (x, y) in enumerate(batches):
                loss = (model(x) - y).square().mean() * (40.0 if 30 <= step < 36 else 1.0)
                optimizer.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                live.observe(loss, grad_norm=norm, tokens=32)
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert live.grounded is None
    columns = read_trace(tmp_path).to_numpy()
    assert columns["scale"].min() < 1.0
    assert verify(read_trace(tmp_path)).rows == 60


def test_a_flight_is_mirrored_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from lbw_sim.live.sinks import TensorBoardSink

    run = make_run()
    sink = TensorBoardSink(tmp_path / "board")
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="mirrored", mirror=[sink], **ACTIVE) as live:
        train(run, range(20), live)
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    columns = read_trace(tmp_path).to_numpy()
    shown = events.Scalars("lbw/loss")
    assert [event.step for event in shown] == list(range(20))
    assert [event.value for event in shown] == pytest.approx(columns["loss"].tolist(), rel=1e-6)
    assert {"lbw/regime", "lbw/scale", "lbw/energy", "lbw/effective_lr"} <= set(events.Tags()["scalars"])


def test_a_loop_that_goes_back_by_itself_loads_a_guarded_adamw_in_mid_run(tmp_path: Path) -> None:
    run = make_run()
    optimizer = GuardedAdamW(run.model.parameters(), lr=1e-2, guard=EAGER, trace=tmp_path, run_id="own")
    train(Run(run.model, optimizer), range(10), optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    train(Run(run.model, optimizer), range(10, 20), optimizer)
    optimizer.load_state_dict(saved)
    assert float(optimizer.state_dict()["state"][0]["step"]) == 10.0
    train(Run(run.model, optimizer), range(20, 30), optimizer)
    optimizer.guard.close()
    assert verify(read_trace(tmp_path)).rows == 30


@pytest.mark.parametrize("observes", [False, True])
def test_a_closure_that_is_evaluated_twice_a_step_is_one_step(observes: bool, tmp_path: Path) -> None:
    class Searching(torch.optim.SGD):
        """Evaluates its closure at two places, as a line search does."""

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for _ in range(2):
                with torch.enable_grad():
                    loss = closure()
            used.append(self.param_groups[0]["lr"])
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-self.param_groups[0]["lr"])
            return loss

    run, used, losses = make_run(), [], []
    optimizer = Searching(run.model.parameters(), lr=1e-2)
    with attach(optimizer, EAGER, trace=tmp_path, run_id="search", **ACTIVE) as live:

        def closure() -> torch.Tensor:
            x, y = batch(step)
            optimizer.zero_grad()
            loss = spike(step, (run.model(x) - y).square().mean())
            loss.backward()
            losses.append(loss.item())
            if observes:
                live.observe(loss)
            return loss

        for step in range(60):  # noqa: B007 (the closure reads it)
            before = weights(run)
            optimizer.step(closure)
            if live.applied_scale == 0.0:
                assert same_bits(before, weights(run))
            assert optimizer.param_groups[0]["lr"] == 1e-2
    columns = read_trace(tmp_path).to_numpy()
    assert columns["loss"].tolist() == losses[::2], "the first evaluation counts, and only in its own step"
    assert used == columns["effective_lr"].tolist()
    assert 0.0 < min(used) < 1e-2


def test_a_skipped_step_moves_no_weight_where_the_optimizer_makes_up_gradients(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Filling(torch.optim.SGD):
        """Gives zeros to a parameter without gradient, as Muon's reference code does."""

        def step(self, closure: Any = None) -> Any:
            for parameter in self.param_groups[0]["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            return super().step(closure)

    run = make_run()
    optimizer = Filling(run.model.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.1)
    with attach(optimizer, EAGER, **ACTIVE) as live:
        train(Run(run.model, optimizer), range(20), live)
        before = weights(run)
        for step in (20, 21):
            train(Run(run.model, optimizer), range(step, step + 1), live, fault=lambda _, loss: loss * math.nan)
            assert live.applied_scale == 0.0
            assert same_bits(before, weights(run))
            assert math.isnan(float(next(iter(run.model.parameters())).grad.sum()))  # type: ignore[union-attr]
        train(Run(run.model, optimizer), range(22, 24), live)
        assert not same_bits(before, weights(run))
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert caplog.text.count("Filling made up gradients") == 1


def test_a_guard_that_is_thrown_away_unclosed_takes_nothing_with_it(tmp_path: Path) -> None:
    """As in a sweep that makes a new model and a new GuardedAdamW for each trial."""

    def trial(number: int) -> weakref.ref[torch.Tensor]:
        run = make_run()
        optimizer = GuardedAdamW(run.model.parameters(), guard=EAGER, trace=tmp_path, run_id=f"trial-{number}")
        train(Run(run.model, optimizer), range(5), optimizer.guard)
        return weakref.ref(next(iter(run.model.parameters())))

    files = len(os.listdir("/proc/self/fd"))
    weights_of = [trial(number) for number in range(3)]
    gc.collect()
    assert [weight() for weight in weights_of] == [None] * 3
    assert len(os.listdir("/proc/self/fd")) == files
    for number in range(3):
        # by the collector, in the middle of anything: nothing that imports or takes a lock
        assert os.listdir(tmp_path / f"run_id=trial-{number}") == ["_segment-000.journal"]
        assert read_trace(tmp_path, f"trial-{number}").to_numpy()["step"].tolist() == [0, 1, 2, 3, 4]


def test_a_guard_that_nobody_closed_is_closed_when_the_process_ends(tmp_path: Path, forked: Forked) -> None:
    program = (
        "import sys, torch\n"
        "from lbw_sim.live import attach\n"
        "model = torch.nn.Linear(2, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "live = attach(optimizer, 'default', trace=sys.argv[1], run_id='left')\n"
        "model(torch.ones(1, 2)).sum().backward(); live.observe(1.0); optimizer.step()\n"
    )
    assert forked.run(program, tmp_path).returncode == 0
    assert (tmp_path / "run_id=left" / "segment-000.parquet").exists()


@pytest.mark.parametrize(("losses", "warnings"), [(3, 0), (20, 1), (1500, 2)])
def test_a_guard_on_an_optimizer_that_never_steps_says_so(
    losses: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Sharp(torch.optim.Optimizer):
        """Sharpness-aware: the loop calls its two half steps, and it calls the inner optimizer's step."""

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.base = inner

        def second_step(self) -> None:
            self.base.step()

    run = make_run()
    optimizer = Sharp(run.optimizer)
    with attach(optimizer, EAGER) as live:
        for _ in range(losses):
            live.observe(1.0)
            optimizer.second_step()
    assert caplog.text.count("no step of Sharp was seen") == warnings
    with attach(run.optimizer, EAGER) as live:
        for _ in range(1500):
            live.observe(1.0)
        run.optimizer.step()
        live.observe(1.0)
    assert caplog.text.count("was seen") == warnings + 1, "in the first step: that may be a very long accumulation"
