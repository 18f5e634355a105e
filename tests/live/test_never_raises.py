"""No fault of ours reaches the training loop: every part of the live guard is made to raise, in turn."""

from __future__ import annotations

import logging
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.live import Snapshots, attach, hooks, live_guard, mailbox, probing, snapshots
from lbw_sim.live.actuator import Actuator
from lbw_sim.trace import Recorder, read_trace

from .test_attach import EAGER, batch, make_run, same_bits, spike, train, weights
from .test_rollback import REWINDING


class StubbornProbe:
    """Delivers what it is told to."""

    channels = ("odd", "update_norm")

    def before_step(self, step: int, batch: object | None) -> dict[str, float]:
        return {"odd": float(step)}

    def after_step(self, step: int) -> dict[str, float]:
        return {"update_norm": 1.0}


PARTS = [
    (Guard, "step"), (Guard, "seen"),
    (mailbox.Mail, "post_loss"), (mailbox.Mail, "post"), (mailbox.Mail, "send"), (mailbox.Letter, "read"),
    (Actuator, "scale"), (Actuator, "hide_gradients"), (Actuator, "restore"),
    (Recorder, "open"), (Recorder, "append"), (Recorder, "close"),
    (Snapshots, "take"), (Snapshots, "roll_back"),
    (probing.Probes, "before_step"), (probing.Probes, "after_step"), (StubbornProbe, "before_step"),
    (StubbornProbe, "after_step"),
    (live_guard.LiveGuard, "_begin_step"), (live_guard.LiveGuard, "_decided"), (live_guard.LiveGuard, "_end_step"),
    (live_guard.LiveGuard, "_settle"), (live_guard, "telemetry_of"),
    (hooks.StepHooks, "_take_part"), (hooks.StepHooks, "_join"), (hooks.StepHooks, "_count_out"),
    (hooks.StepHooks, "restore"), (hooks.StepHooks, "remove"), (snapshots, "_put_back"),
]  # fmt: skip


@cache
def weights_without_a_guard() -> list[torch.Tensor]:
    """After the 42 steps, with the spikes, that a shadow guard watches."""
    run = make_run()
    train(run, range(42), fault=spike)
    return weights(run)


@pytest.mark.parametrize(("first_call", "delay_steps"), [(1, 0), (34, 1)], ids=["at once", "later"])
@pytest.mark.parametrize(("owner", "name"), PARTS, ids=[f"{owner.__name__}.{name}" for owner, name in PARTS])
def test_training_goes_on_whatever_part_raises(
    owner: Any, name: str, first_call: int, delay_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    whole = getattr(owner, name)
    calls = 0

    def breaks(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= first_call:
            raise ZeroDivisionError("a bug of ours")
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, staticmethod(breaks) if owner is Recorder and name == "open" else breaks)
    caplog.set_level(logging.CRITICAL, logger="lbw_sim")
    for mode, spec in (("shadow", EAGER), ("active", EAGER), ("active", REWINDING)):
        calls = 0
        run = make_run()
        live = attach(
            run.optimizer, spec.with_changes({"delay_steps": delay_steps}), trace=tmp_path, unproven=True, mode=mode,  # type: ignore[arg-type]
            run_id=f"{mode}-{spec.name}", probes=[StubbornProbe()], snapshots=Snapshots(every_steps=3),
        )  # fmt: skip
        nan_step = 39 if mode == "active" else -1
        faulty = lambda step, loss, at=nan_step: spike(step, loss) * (math.nan if step == at else 1.0)  # noqa: E731
        train(run, range(37), live, fault=faulty)
        live.mark("half way")
        live.state_dict()
        train(run, range(37, 42), live, fault=faulty)
        live.close()
        if mode == "shadow":
            assert same_bits(weights(run), weights_without_a_guard())
        assert run.optimizer.param_groups[0]["lr"] <= 1e-2
    monkeypatch.undo()
    for folder in tmp_path.iterdir():
        if list(folder.iterdir()):
            read_trace(folder)  # what was written can be read


def test_a_probe_that_fails_is_no_evidence_and_the_guard_flies_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(StubbornProbe):
        def before_step(self, step: int, batch: object | None) -> dict[str, float]:
            return {"odd": float(step)} if step < 10 else {"odd": 1 / 0}

    run = make_run()
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="probe", probes=[Fails()]) as live:
        train(run, range(30), live)
        assert live.grounded is None
        assert live.cost_us["Fails"] > 0.0
    odd = read_trace(tmp_path).to_numpy()["odd"].tolist()
    assert odd[:10] == [float(step) for step in range(10)]
    assert all(map(math.isnan, odd[10:]))
    assert "probe Fails failed at step 10" in caplog.text
    assert len(caplog.records) == 1


def test_a_channel_that_nobody_declared_is_left_out_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER) as live:
        for step in range(5):
            x, y = batch(step)
            loss = (run.model(x) - y).square().mean()
            loss.backward()
            live.observe(loss, gradnorm=torch.tensor(1.0))
            run.optimizer.step()
        assert live.grounded is None
    assert caplog.text.count("'gradnorm'") == 1


def test_a_guard_whose_probe_was_forgotten_says_so_before_training(caplog: pytest.LogCaptureFixture) -> None:
    with attach(make_run().optimizer, GuardSpec.load("paired_rollback")):
        assert "'paired_rollback' reads probe_gain, and no probe delivers that" in caplog.text


def test_a_loss_that_nobody_averaged_grounds_the_guard_with_its_shape(caplog: pytest.LogCaptureFixture) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER) as live:
        live.observe(torch.ones(32, 1))
        assert "one number each, not a tensor of shape (32, 1)" in str(live.grounded)
