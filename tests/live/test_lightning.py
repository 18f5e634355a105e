"""The guard as a callback of real Lightning trainers."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lbw_sim.errors import LiveError
from lbw_sim.live import LiveGuard
from lbw_sim.live.flight import Window
from lbw_sim.replay import verify
from lbw_sim.trace import read_trace
from lbw_sim.values import Regime

from .trainers import ACTIVE, EAGER, assert_parts_are_the_whole, fails, same_bits, weights

# lightning takes seconds to import: inside the tests, so that only the process that runs them pays
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="needs lightning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*training_step. returned .None"),
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
Fault = Callable[[int, torch.Tensor], Any]


def tiny_module(*, seed: int = 0, fault: Fault | None = None, automatic: bool = True, fused: bool | None = None) -> Any:
    import lightning.pytorch as lightning

    class Tiny(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.automatic_optimization = automatic
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
            self.losses: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            loss = (self.net(x) - y).square().mean()
            if fault is not None:
                loss = fault(self.global_step, loss)
            self.losses.append(math.nan if loss is None else loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, fused=fused)

    return Tiny()


def batches(count: int) -> Any:
    x = torch.randn(count * 64, 4, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=64)


def fit(module: Any, folder: Path, *callbacks: Any, data: int = 12, ckpt_path: Any = None, **settings: Any) -> Any:
    import lightning.pytorch as lightning

    settings = {"max_epochs": 1, "enable_checkpointing": False, "default_root_dir": folder, **QUIET, **settings}
    trainer = lightning.Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module, batches(data), ckpt_path=ckpt_path)
    return trainer


def spike(step: int, loss: torch.Tensor) -> torch.Tensor:
    return loss * 40.0 if 6 <= step < 10 else loss


@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "gradient scaler"])
def test_a_row_holds_the_mean_loss_of_its_micro_batches_and_the_gradient_before_clipping(
    scaled: bool, tmp_path: Path
) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    from lbw_sim.live.lightning import GuardCallback

    scaler = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0))
    module = tiny_module()
    norms = []

    def norm_before_clipping(optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any) -> None:
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), gradient_clip_val)))

    module.configure_gradient_clipping = norm_before_clipping
    # 7 batches an epoch: every fourth step has a single one
    fit(
        module,
        tmp_path,
        GuardCallback(EAGER, trace=tmp_path / "traces", run_id="truth", tokens=lambda batch: len(batch[0])),
        data=7,
        max_epochs=2,
        accumulate_grad_batches=2,
        gradient_clip_val=0.01,
        plugins=[scaler] if scaled else [],
    )
    columns = read_trace(tmp_path / "traces").to_numpy()
    steps = [module.losses[i : i + 2] for i in (0, 2, 4)] + [module.losses[6:7]]
    steps += [module.losses[i : i + 2] for i in (7, 9, 11)] + [module.losses[13:]]
    assert columns["loss"].tolist() == pytest.approx([sum(step) / len(step) for step in steps], rel=1e-6)
    assert columns["grad_norm"].tolist() == norms
    assert columns["grad_norm"].min() > 0.01
    assert columns["tokens"].tolist() == [64.0 * len(step) for step in steps]


def test_the_gradient_norm_is_that_of_the_gradient_when_a_fused_optimizer_unscales_it_by_itself(tmp_path: Path) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    from lbw_sim.live.lightning import GuardCallback

    norms = {}
    for fused in (False, True):
        plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0))
        guard = GuardCallback(EAGER, trace=tmp_path / "traces", run_id=f"fused-{fused}")
        fit(tiny_module(fused=fused), tmp_path, guard, plugins=[plugin])
        norms[fused] = read_trace(tmp_path / "traces", f"fused-{fused}").to_numpy()["grad_norm"].tolist()
    assert norms[True] == pytest.approx(norms[False], rel=1e-2)


def test_a_step_that_the_precision_plugins_scaler_drops_is_a_dropped_row_and_no_alarm(tmp_path: Path) -> None:
    from lightning.pytorch.plugins import MixedPrecision

    from lbw_sim.live.lightning import GuardCallback

    # so large a scale that the first gradients overflow, as in half precision on a GPU
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**19, growth_interval=1000)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fit(tiny_module(), tmp_path, GuardCallback(EAGER, trace=tmp_path / "traces", run_id="amp"), plugins=[plugin])
    columns = read_trace(tmp_path / "traces").to_numpy()
    dropped = [event == "grad_scaler_overflow" for event in columns["event"].tolist()]
    assert 1 <= sum(dropped) < len(dropped) == 12
    assert columns["skipped"].tolist() == dropped
    assert columns["nonfinite"].max() == 0.0
    assert Regime.NONFINITE not in columns["regime"].tolist()
    assert verify(read_trace(tmp_path / "traces")).rows == 12


def test_a_shadow_guard_changes_no_bit_of_training(tmp_path: Path) -> None:
    from lbw_sim.live.lightning import GuardCallback

    alone, watched = tiny_module(fault=spike), tiny_module(fault=spike)
    fit(alone, tmp_path)
    trainer = fit(watched, tmp_path, GuardCallback(EAGER, trace=tmp_path / "traces", run_id="shadow"))
    assert same_bits(weights(alone), weights(watched))
    columns = read_trace(tmp_path / "traces").to_numpy()
    assert columns["scale"].min() < 1.0, "it decided to act"
    assert columns["effective_lr"].tolist() == columns["lr"].tolist(), "and did not"
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks


@pytest.mark.parametrize("bad", [math.nan, None], ids=["nan loss", "no loss"])
def test_a_step_with_a_nan_loss_or_none_is_skipped_and_the_guard_flies_on(bad: Any, tmp_path: Path) -> None:
    from lbw_sim.live.lightning import GuardCallback

    module = tiny_module(fault=lambda step, loss: (bad and loss * bad) if step == 6 else loss)
    guard = GuardCallback(EAGER, trace=tmp_path / "traces", run_id="bad", **ACTIVE)
    stuck = []
    if bad is None:
        # Lightning does not count a step without a loss; one such batch is enough
        module.on_train_batch_end = lambda outputs, batch, batch_idx: stuck.append(batch_idx)
    fit(module, tmp_path, guard)
    columns = read_trace(tmp_path / "traces").to_numpy()
    assert [math.isnan(loss) for loss in columns["loss"].tolist()] == [step == 6 for step in range(12)]
    assert columns["regime"][6] == Regime.NONFINITE
    assert columns["skipped"].tolist()[6]
    assert guard.live is not None
    assert guard.live.grounded is None
    assert all(w.isfinite().all() for w in weights(module))


def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from lbw_sim.live.lightning import GuardCallback

    def guard(run_id: str | None) -> Any:
        return GuardCallback(EAGER, trace=tmp_path / "traces", run_id=run_id, **ACTIVE)

    settings: dict[str, Any] = {"data": 6, "accumulate_grad_batches": 2, "max_epochs": 4}
    whole, second = tiny_module(fault=spike), tiny_module(seed=9, fault=spike)
    fit(whole, tmp_path, guard("whole"), **settings)
    saves = ModelCheckpoint(tmp_path, filename="at-9", every_n_epochs=3, save_top_k=-1)
    fit(tiny_module(fault=spike), tmp_path, guard("parts"), saves, max_steps=10, enable_checkpointing=True, **settings)
    # no run_id: the run of the checkpoint goes on
    fit(second, tmp_path, guard(None), ckpt_path=tmp_path / "at-9.ckpt", **settings)

    assert same_bits(weights(whole), weights(second))
    assert_parts_are_the_whole(tmp_path / "traces", rows=12)


@pytest.mark.parametrize("broken", [(Window, "add"), (LiveGuard, "state_dict"), (LiveGuard, "detach")])
def test_a_bug_of_ours_never_reaches_the_trainers_loop(
    broken: tuple[type, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    from lbw_sim.live.lightning import GuardCallback

    alone, module = tiny_module(), tiny_module()
    fit(alone, tmp_path)
    guard = GuardCallback(EAGER, trace=tmp_path / "traces", run_id="bug", **ACTIVE)
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=5)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="lbw_sim"):
        patch.setattr(*broken, fails)
        fit(module, tmp_path, guard, saves, enable_checkpointing=True)
    assert guard.live is not None
    guard.live.detach()
    assert same_bits(weights(alone), weights(module))
    assert ("a bug of ours" in caplog.text) == (broken[1] != "detach")


def test_an_exception_of_the_training_itself_passes_and_the_trace_is_finished(tmp_path: Path) -> None:
    from lbw_sim.live.lightning import GuardCallback

    def explode(step: int, loss: torch.Tensor) -> torch.Tensor:
        if step == 4:
            raise RuntimeError("the module's own")
        return loss

    with pytest.raises(RuntimeError, match="the module's own"):
        fit(tiny_module(fault=explode), tmp_path, GuardCallback(EAGER, trace=tmp_path / "traces", run_id="exploded"))
    trace = read_trace(tmp_path / "traces")
    assert trace.meta.ended == "closed"
    assert trace.to_numpy()["step"].tolist() == [0, 1, 2, 3]


def test_what_cannot_be_guarded_is_refused_before_the_first_step(tmp_path: Path) -> None:
    from lightning.pytorch.strategies import SingleDeviceStrategy

    from lbw_sim.live.lightning import GuardCallback

    class DeepSpeedLike(SingleDeviceStrategy):  # type: ignore[misc]
        """Says that it is DeepSpeed's, as the real strategy does."""

    DeepSpeedLike.__module__ = "lightning.pytorch.strategies.deepspeed"
    module = tiny_module()
    with pytest.raises(TypeError, match="unprovn"):
        GuardCallback(EAGER, unprovn=True)
    with pytest.raises(LiveError, match="grad_norm='no' is neither True nor False"):
        GuardCallback(EAGER, grad_norm="no")  # type: ignore[arg-type]
    with pytest.raises(LiveError, match="optimizes manually"):
        fit(tiny_module(automatic=False), tmp_path, GuardCallback(EAGER))
    with pytest.raises(LiveError, match="DeepSpeedLike is DeepSpeed's"):
        fit(module, tmp_path, GuardCallback(EAGER), strategy=DeepSpeedLike("cpu"))
    with pytest.raises(LiveError, match="unproven=True"):
        fit(module, tmp_path, GuardCallback(EAGER, mode="active"))
    assert module.losses == []
