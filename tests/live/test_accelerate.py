"""The guard in loops written with accelerate, and what lies inside its wrappers."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from lbw_sim.errors import LiveError
from lbw_sim.live import LiveGuard
from lbw_sim.live.accelerate import guard_accelerator
from lbw_sim.live.wrappers import plain_optimizers
from lbw_sim.trace import read_trace

from .trainers import ACTIVE, EAGER, assert_parts_are_the_whole, fails, same_bits, weights

# accelerate takes seconds to import: inside the tests, so that only the process that runs them pays
pytestmark = pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate")
STEPS, MICRO_BATCHES = 14, 3


class Trained(NamedTuple):
    """What a run left."""

    weights: list[torch.Tensor]
    losses: list[float]
    norms: list[float]


def train(
    folder: Path,
    run_id: str | None,
    *,
    seed: int = 0,
    save_at: int | None = None,
    resume: bool = False,
    spiky: bool = True,
    before_training: Callable[[], None] = lambda: None,
    **options: Any,
) -> Trained:
    """Gradient accumulation, clipping, checkpoints: the loop of accelerate's own documentation."""
    from accelerate import Accelerator

    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO_BATCHES)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    x = torch.randn(STEPS * MICRO_BATCHES * 64, 4, generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True))
    model, optimizer, batches = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-2), torch.utils.data.DataLoader(data, batch_size=64)
    )
    guard = None
    if run_id is not None:
        guard = guard_accelerator(accelerator, optimizer, EAGER, trace=folder, run_id=run_id, **options)
    step = 0
    if resume:
        accelerator.load_state(str(folder / "checkpoint"))
        assert guard is not None
        step = guard.step
        batches = accelerator.skip_first_batches(batches, step * MICRO_BATCHES)
    before_training()
    losses, norms = [], []
    for x, y in batches:
        with accelerator.accumulate(model):
            loss = (model(x) - y).square().mean() * (40.0 if spiky and 6 <= step < 10 else 1.0)
            losses.append(loss.item())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norms.append(float(accelerator.clip_grad_norm_(model.parameters(), 0.1)))
            optimizer.step()
            optimizer.zero_grad()
        step += accelerator.sync_gradients
        if step == save_at and accelerator.sync_gradients:
            accelerator.save_state(str(folder / "checkpoint"))
        if save_at is not None and step > save_at:
            break
    if guard is not None:
        guard.close()
    return Trained(weights(model), losses, norms)


def test_a_row_holds_the_mean_of_its_micro_batches_and_shadow_changes_no_bit(tmp_path: Path) -> None:
    alone, watched = train(tmp_path, None), train(tmp_path, "shadow", tokens=64)
    assert same_bits(alone.weights, watched.weights)
    columns = read_trace(tmp_path).to_numpy()
    means = [sum(watched.losses[i : i + MICRO_BATCHES]) / MICRO_BATCHES for i in range(0, len(watched.losses), 3)]
    assert columns["loss"].tolist() == pytest.approx(means, rel=1e-6)
    assert columns["grad_norm"].tolist() == watched.norms
    assert columns["tokens"].tolist() == [64.0 * MICRO_BATCHES] * STEPS
    assert columns["scale"].min() < 1.0, "it decided to act"


def test_a_run_resumed_from_save_state_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole", **ACTIVE)
    train(tmp_path, "parts", save_at=9, **ACTIVE)
    second = train(tmp_path, "parts", seed=9, resume=True, **ACTIVE)
    assert same_bits(whole.weights, second.weights)
    assert_parts_are_the_whole(tmp_path, rows=STEPS)


def test_a_bug_of_ours_never_reaches_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone = train(tmp_path, None, spiky=False)
    with caplog.at_level(logging.WARNING, logger="lbw_sim"):
        broken = train(
            tmp_path,
            "bug",
            spiky=False,
            before_training=lambda: monkeypatch.setattr(LiveGuard, "observe", fails),
            **ACTIVE,
        )
    assert same_bits(alone.weights, broken.weights)
    assert caplog.text.count("a bug of ours") == 1, "said once"


def test_the_optimizer_inside_the_wrappers_is_found_and_what_steps_elsewhere_is_refused() -> None:
    from accelerate import Accelerator

    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert plain_optimizers(Accelerator(cpu=True).prepare(sgd)) == [sgd]

    class Engine:
        """Says that it is DeepSpeed's, as its real engine does."""

    Engine.__module__ = "deepspeed.runtime.engine"
    with pytest.raises(LiveError, match="Engine is DeepSpeed's"):
        plain_optimizers(Engine())
    with pytest.raises(LiveError, match="Engine is DeepSpeed's"):
        guard_accelerator(Accelerator(cpu=True), Engine(), EAGER)
    with pytest.raises(LiveError, match="this is dict"):
        plain_optimizers({})


def test_a_scheduler_can_be_made_for_a_prepared_optimizer_that_has_a_guard(tmp_path: Path) -> None:
    from accelerate import Accelerator

    model = torch.nn.Linear(4, 1)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    with guard_accelerator(accelerator, optimizer, EAGER, trace=tmp_path, run_id="r"):
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(3):
            accelerator.backward(model(torch.ones(2, 4)).square().mean())
            optimizer.step()
            scheduler.step()
    columns = read_trace(tmp_path).to_numpy()
    assert columns["lr"].tolist() == [1e-2, 5e-3, 2.5e-3]
    assert all(map(math.isfinite, columns["loss"].tolist()))
