"""Probes on real models: what they measure, and that training does not notice them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lbw_sim.errors import LiveError
from lbw_sim.live import attach
from lbw_sim.live.probes import (
    Canary,
    FullStepLr,
    GradientReach,
    GradNorm,
    HalfStep,
    InitialWeightRms,
    PairedProbe,
    RobustRms,
    UpdateNorm,
    measuring,
)
from lbw_sim.live.probes.measuring import undisturbed
from lbw_sim.trace import read_trace

EVERYTHING = {
    "grad_norm", "update_norm", "robust_rms", "canary_loss", "probe_gain", "initial_weight_rms", "full_step_lr",
    "step_gain", "half_step_gain", "gradient_reach",
}  # fmt: skip


def noisy_model(seed: int = 0) -> nn.Sequential:
    """One with random numbers in its forward pass and buffers that it writes."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 1))


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    return x, x.sum(dim=1, keepdim=True).sin()


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    given = batch[0].to(next(model.parameters()).dtype)
    return functional.mse_loss(model(given).float(), batch[1])


def all_probes(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    canary = batch_of(10_000)

    def with_dice() -> torch.Tensor:
        # a measurement that uses random numbers must not take them from training
        return loss_of(model, canary) + 0.0 * torch.randn(())

    return [
        GradNorm(optimizer),
        UpdateNorm(optimizer),
        RobustRms(optimizer, every_steps=3),
        Canary(model, with_dice, every_steps=2),
        PairedProbe(model, lambda batch: loss_of(model, batch), every_steps=2, span_steps=3),
        InitialWeightRms(model),
        FullStepLr(model),
        HalfStep(model, lambda batch: loss_of(model, batch), optimizer, dense_steps=10, every_steps=5),
        GradientReach(optimizer, every_steps=2),
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, live: Any = None) -> None:
    torch.manual_seed(1)
    for step in range(steps):
        batch = batch_of(step)
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        if live is not None:
            live.observe(loss, batch=batch)
        optimizer.step()


@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16 weights"])
def test_training_with_every_probe_is_bit_for_bit_training_without(
    precision: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone, watched = noisy_model(), noisy_model()
    if precision == "bfloat16 weights":
        alone.bfloat16(), watched.bfloat16()
    optimizer = torch.optim.AdamW(watched.parameters(), lr=1e-2)
    probes = all_probes(watched, optimizer)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        train(alone, torch.optim.AdamW(alone.parameters(), lr=1e-2), 30)
        with attach(optimizer, "default", trace=tmp_path, run_id="r", probes=probes) as live:
            train(watched, optimizer, 30, live)
            assert set(live.cost_us) == {type(probe).__name__ for probe in probes}
    assert caplog.text == ""
    for name, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert all(module.training for module in watched.modules())
    trace = read_trace(tmp_path).to_numpy()
    measured = {name: int(np.isfinite(trace[name]).sum()) for name in EVERYTHING}
    assert measured == {
        "grad_norm": 30,
        "update_norm": 30,
        "robust_rms": 9,  # the optimizer has no memory at step 0
        "canary_loss": 15,
        "probe_gain": 14,
        "initial_weight_rms": 30,
        "full_step_lr": 30,
        "step_gain": 14,  # steps 0 to 9, 10, 15, 20 and 25, each told with the next
        "half_step_gain": 14,
        "gradient_reach": 15,
    }


def test_buffers_that_every_forward_pass_writes_are_those_of_training_alone() -> None:
    class Centred(nn.Module):
        """Counts its passes in place, and replaces its running mean, in evaluation mode too."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1)
            self.register_buffer("passes", torch.zeros(1))
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("mask", torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.passes += 1
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            output: torch.Tensor = self.linear((x - self.mean) * self.mask / self.passes)
            return output

    def fly(watched: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = Centred()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        mask = model.mask._version  # a graph that waits for its backward would not survive a new one
        with attach(optimizer, "never", probes=all_probes(model, optimizer) if watched else ()) as live:
            train(model, optimizer, 30, live)
        assert float(model.passes) == 30
        assert model.mask._version == mask
        return [tensor.clone() for tensor in model.state_dict().values()]

    assert all(torch.equal(ours, theirs) for ours, theirs in zip(fly(True), fly(False), strict=True))


def test_a_large_buffer_is_copied_once_something_is_seen_to_write_it() -> None:
    class Packed(nn.Module):
        """Packed weights, and a queue that every forward pass writes."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 1)
            self.register_buffer("packed", torch.ones(1_000_000))
            self.register_buffer("queue", torch.zeros(1_000_000))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.queue += 1
            output: torch.Tensor = self.linear(x)
            return output

    model = Packed()
    for _ in range(3):
        model(torch.ones(1, 1))
        before = model.queue[0].item()
        with undisturbed(model):
            assert measuring._copied(model, "packed", model.packed) is None
            model(torch.ones(1, 1))
    # the first measurement could not know it: 3 passes of training, and that one
    assert model.queue[0].item() == before == 4


def test_mode_comes_back_when_a_measurement_raises() -> None:
    model = noisy_model()
    model[1].eval()

    def broken() -> float:
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError("no such batch")

    with pytest.raises(RuntimeError, match="no such batch"):
        Canary(model, broken).before_step(0, None)
    assert [module.training for module in model] == [True, False, True, True, True]


def test_a_canary_that_fails_is_no_evidence_from_there_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = noisy_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    calls: list[int] = []

    def fails_the_fourth_time() -> SupportsFloat:
        calls.append(1)
        if len(calls) == 4:
            raise OSError("the canary's file is gone")
        return loss_of(model, batch_of(0))

    canary = Canary(model, fails_the_fourth_time, every_steps=1)
    with attach(optimizer, "default", trace=tmp_path, run_id="r", probes=[canary]) as live:
        train(model, optimizer, 10, live)
        assert live.grounded is None
    assert np.isfinite(read_trace(tmp_path).to_numpy()["canary_loss"]).tolist() == [True] * 3 + [False] * 7
    assert caplog.text.count("the canary's file is gone") == 1


def test_grad_norm_is_the_one_that_clipping_sees() -> None:
    torch.manual_seed(0)
    embedding, model = nn.Embedding(20, 4, sparse=True), noisy_model()
    optimizer = torch.optim.SGD([*model.parameters(), *embedding.parameters(), nn.Parameter(torch.ones(3))], lr=0.1)
    x = embedding(torch.tensor([3, 3, 7, 1]))
    model(x).sum().backward()
    dense = [p.grad for p in model.parameters() if p.grad is not None] + [embedding.weight.grad.to_dense()]
    expected = torch.linalg.vector_norm(torch.cat([gradient.flatten().double() for gradient in dense]))
    found = GradNorm(optimizer).before_step(0, None)["grad_norm"]
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_gradient_is_measured_as_it_is_also_where_the_optimizer_unscales_it_by_itself(tmp_path: Path) -> None:
    """A fused optimizer takes the gradient scaler's factor out inside its step, after the probes have looked."""
    found = {}
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
        probes = [GradNorm(optimizer), RobustRms(optimizer, every_steps=1)]
        name = f"fused-{fused}"
        with attach(optimizer, "default", trace=tmp_path, run_id=name, probes=probes, scaler=scaler) as live:
            for step in range(10):
                loss = loss_of(model, batch_of(step))
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                live.observe(loss)
                scaler.step(optimizer)
                scaler.update()
        found[fused] = read_trace(tmp_path, name).to_numpy()
    assert found[True]["grad_norm"].tolist() == pytest.approx(found[False]["grad_norm"].tolist(), rel=1e-4)
    assert found[True]["robust_rms"][1:].tolist() == pytest.approx(found[False]["robust_rms"][1:].tolist(), rel=1e-4)


def test_a_half_step_is_half_a_step_also_where_the_whole_training_step_is_under_autocast(tmp_path: Path) -> None:
    """Autocast keeps cast weights until its block ends: those of before the probe moved the weights."""
    found = {}
    for place in ("forward only", "whole step"):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def autocast_loss(batch: Any, model: nn.Module = model) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return loss_of(model, batch)

        probe = HalfStep(model, autocast_loss, optimizer)
        run = place.replace(" ", "-")
        with attach(optimizer, "default", trace=tmp_path, run_id=run, probes=[probe]) as live:
            for step in range(5):
                with torch.autocast("cpu", torch.bfloat16, enabled=place == "whole step"):
                    loss = autocast_loss(batch_of(step))
                    optimizer.zero_grad()
                    loss.backward()
                    live.observe(loss, batch=batch_of(step))
                    optimizer.step()
        assert torch.is_autocast_cache_enabled()
        found[place] = read_trace(tmp_path, run).to_numpy()
    for channel in ("loss", "step_gain", "half_step_gain"):
        assert np.array_equal(found["whole step"][channel], found["forward only"][channel], equal_nan=True), channel
    assert not np.array_equal(found["whole step"]["step_gain"][1:], found["whole step"]["half_step_gain"][1:])


def test_half_way_between_weights_in_bfloat16_is_the_middle_rounded_once_and_they_are_put_back() -> None:
    torch.manual_seed(0)
    model = nn.Linear(32, 32).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)  # about the distance of neighbouring weights
    seen: list[torch.Tensor] = []

    def loss(batch: torch.Tensor) -> torch.Tensor:
        seen.append(model.weight.detach().clone())
        return model(batch).float().square().mean()

    probe, batch = HalfStep(model, loss, optimizer), torch.randn(8, 32).bfloat16()
    loss(batch).backward()
    probe.before_step(0, batch)
    optimizer.step()
    values = probe.before_step(1, None)
    _, before, after, between = seen
    assert torch.equal(between, ((before.float() + after.float()) / 2.0).bfloat16())
    assert torch.equal(model.weight, after)
    assert not torch.equal(after, before)
    assert 0.4 < float(values["half_step_gain"]) / float(values["step_gain"]) < 0.7


@pytest.mark.parametrize(("kind", "warnings"), [(torch.bfloat16, 1), (torch.float16, 0), (torch.float32, 0)])
def test_a_loss_in_bfloat16_is_told_once_to_be_too_coarse_for_a_half_step(
    kind: torch.dtype, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = HalfStep(model, lambda batch: loss_of(model, batch).to(kind), optimizer)
    with attach(optimizer, "default", probes=[probe]) as live:
        train(model, optimizer, 4, live)
    assert (
        caplog.text.count("HalfStep: the loss comes in bfloat16, where numbers between 2 and 4 lie 0.0156 apart")
        == warnings
    )


def test_update_norm_is_the_length_of_the_weights_own_change(tmp_path: Path) -> None:
    model = noisy_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    expected = []
    with attach(optimizer, "default", trace=tmp_path, run_id="r", probes=[UpdateNorm(optimizer)]) as live:
        for step in range(6):
            before = torch.cat([p.detach().flatten() for p in model.parameters()])
            loss_of(model, batch_of(step)).backward()
            if step == 3:
                optimizer.zero_grad()  # no gradient, no update
            live.observe(1.0)
            optimizer.step()
            expected.append(float((torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm()))
    assert expected[3] == 0.0
    assert read_trace(tmp_path).to_numpy()["update_norm"].tolist() == pytest.approx(expected, rel=1e-5)


def test_robust_rms_is_not_fooled_by_an_embeddings_rare_rows_and_sees_a_gradient_that_grows() -> None:
    torch.manual_seed(0)
    tokens, layers = nn.Parameter(torch.zeros(50, 4)), [nn.Parameter(torch.zeros(4, 4)) for _ in range(4)]
    optimizer = torch.optim.AdamW([tokens, *layers], lr=0.0)
    probe = RobustRms(optimizer, every_steps=1)
    found = []
    for step in range(300):
        tokens.grad = torch.zeros(50, 4)
        tokens.grad[step % 2] = torch.randn(4)
        if step == 299:
            tokens.grad[40] = 10.0  # a row that has never been seen
        for layer in layers:
            layer.grad = torch.randn(4, 4) * (20.0 if step == 298 else 1.0)
        found.append(probe.before_step(step, None).get("robust_rms", math.nan))
        optimizer.step()
    values = [float(value) for value in found]
    assert 0.7 < sum(values[100:298]) / 198 < 1.2
    assert values[298] > 5.0
    assert values[299] < 2.0


def test_robust_rms_refuses_an_optimizer_without_a_second_moment() -> None:
    with pytest.raises(LiveError, match="SGD keeps no second moment"):
        RobustRms(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))


class Scalar(nn.Module):
    """One weight; the loss of a batch is weight × batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))


def gains_over(probe: PairedProbe, model: Scalar, steps: list[int]) -> dict[int, float]:
    """Gains by position; the weight is multiplied by 2 before each further step."""
    found = {}
    for place, step in enumerate(steps):
        for value in probe.before_step(step, float(10**place)).values():
            found[place] = float(value)
        model.weight.data *= 2.0
    return found


def test_a_gain_is_the_old_batchs_loss_now_minus_its_own_loss_then() -> None:
    model = Scalar()
    probe = PairedProbe(model, lambda batch: model.weight * batch, every_steps=2, span_steps=3)
    # batch 10^s is kept at even steps s under weight 2^s and seen again under 2^(s+3)
    assert gains_over(probe, model, list(range(8))) == {3: 7.0, 5: 2800.0, 7: 1_120_000.0}


def test_after_a_rollback_no_gain_spans_it() -> None:
    model = Scalar()
    probe = PairedProbe(model, lambda batch: model.weight * batch, every_steps=2, span_steps=3)
    # after step 4 comes step 3 again: what began at 2 and at 4 is dropped, and 4 begins anew
    assert sorted(gains_over(probe, model, [0, 1, 2, 3, 4, 3, 4, 5, 6, 7])) == [3, 9]


def test_without_a_batch_a_paired_probe_has_nothing_to_say() -> None:
    model = Scalar()
    probe = PairedProbe(model, lambda batch: model.weight * batch, every_steps=1, span_steps=1)
    assert [probe.before_step(step, None) for step in range(3)] == [{}, {}, {}]


def test_initial_weight_rms_is_the_median_matrix_and_stays_what_it_was() -> None:
    model = nn.ModuleList([nn.Embedding(8, 4), *(nn.Linear(4, 4) for _ in range(3))])
    for layer, size in zip(model, (1.0, 0.25, 0.125, 0.0), strict=True):
        nn.init.constant_(layer.weight, size)
    probe = InitialWeightRms(model)
    nn.init.constant_(model[1].weight, 9.0)
    assert float(probe.before_step(500, None)["initial_weight_rms"]) == 0.25
    assert float(InitialWeightRms(model, rms=0.5).before_step(0, None)["initial_weight_rms"]) == 0.5
    with pytest.raises(LiveError, match="rms=nan is not a positive number"):
        InitialWeightRms(model, rms=math.nan)
    with pytest.raises(LiveError, match="trains no weight matrix"):
        InitialWeightRms(nn.LayerNorm(4))


def test_the_learning_rate_of_a_full_step_is_the_median_matrix_and_falls_with_the_width() -> None:
    model = nn.ModuleList([nn.Embedding(8, 4), *(nn.Linear(width, width) for width in (4, 16, 64))])
    for layer in model:
        nn.init.constant_(layer.weight, 0.5)
    # 0.5 · (1/√8 + 1/√4), and of the squares 1/√width: 0.43, 0.5, 0.25, 0.125, of which the lower middle one
    probe = FullStepLr(model)
    nn.init.zeros_(model[2].weight)
    assert float(probe.before_step(500, None)["full_step_lr"]) == 0.25
    assert float(FullStepLr(model).before_step(0, None)["full_step_lr"]) == pytest.approx(0.5 * (8**-0.5 + 0.5))
    assert float(FullStepLr(model, lr=0.5).before_step(0, None)["full_step_lr"]) == 0.5
    with pytest.raises(LiveError, match="is not a positive number"):
        FullStepLr(model, lr=-1.0)
    with pytest.raises(LiveError, match="trains no weight matrix"):
        FullStepLr(nn.LayerNorm(4))


def test_a_half_step_is_measured_on_its_own_batch_and_one_that_a_rollback_cut_off_is_not() -> None:
    model = Scalar()
    probe = HalfStep(
        model, lambda batch: batch * model.weight.square(), torch.optim.SGD([model.weight], lr=1.0), every_steps=3,
        dense_steps=2,
    )  # fmt: skip
    found = {}
    for place, step in enumerate([0, 1, 2, 3, 4, 6, 5, 6, 7]):
        values = probe.before_step(step, float(place + 1))
        if values:
            found[place] = (float(values["step_gain"]), float(values["half_step_gain"]))
        model.weight.data += 1.0  # weight is place + 1 before this
    # batch 1: 1 → 4, half-way 2.25; batch 2, twice; batch 4 at step 3; step 6 is taken back; and again at place 7
    assert found == {1: (3.0, 1.25), 2: (10.0, 4.5), 4: (36.0, 17.0), 8: (136.0, 66.0)}


def test_the_reach_is_whole_in_a_linear_net_and_gone_in_one_that_ignores_its_input() -> None:
    torch.manual_seed(0)
    alive = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 1))
    dead = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 1))
    nn.init.constant_(dead[0].bias, -100.0)  # no unit of the first layer ever fires
    found = []
    for model in (alive, dead):
        optimizer = torch.optim.AdamW(model.parameters())
        assert GradientReach(optimizer).before_step(0, None) == {}, "no gradient yet"
        loss_of(model, batch_of(0)).backward()
        probe = GradientReach(optimizer, every_steps=5)
        assert probe.before_step(3, None) == {}
        found.append(float(probe.before_step(5, None)["gradient_reach"]))
        norms = [float(p.grad.norm()) for p in model.parameters() if p.dim() == 2 and p.grad is not None]
        assert found[-1] == pytest.approx(sorted(norms)[1] / math.hypot(*norms))
        for parameter in model.parameters():
            parameter.grad *= 1024.0
        assert float(probe.before_step(10, None)["gradient_reach"]) == pytest.approx(found[-1]), "of a scaled loss"
    assert found[0] > 0.2
    assert found[1] == 0.0


def test_weights_stand_where_they_were_when_the_half_step_cannot_be_measured() -> None:
    model = noisy_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    calls: list[int] = []

    def fails_the_third_time(batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("no loss half-way")
        return loss_of(model, batch)

    probe = HalfStep(model, fails_the_third_time, optimizer)
    probe.before_step(0, batch_of(0))
    train(model, optimizer, 1)
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(OSError, match="half-way"):
        probe.before_step(1, batch_of(1))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_probes_leave_gradients_and_the_optimizers_memory_alone() -> None:
    model = noisy_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 3)
    loss_of(model, batch_of(3)).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state = copy.deepcopy(optimizer.state_dict())
    for probe in all_probes(model, optimizer):
        probe.before_step(0, batch_of(3))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    for name, held in state["state"].items():
        for key, value in held.items():
            assert torch.equal(optimizer.state_dict()["state"][name][key], value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_probe_waits_for_the_gpu() -> None:
    model = noisy_model().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = tuple(part.cuda() for part in batch_of(0))
    probes = [
        GradNorm(optimizer),
        UpdateNorm(optimizer),
        RobustRms(optimizer, every_steps=1),
        Canary(model, lambda: loss_of(model, batch), every_steps=1),
        PairedProbe(model, lambda given: loss_of(model, given), every_steps=1, span_steps=1),
        InitialWeightRms(model),
        FullStepLr(model),
        HalfStep(model, lambda given: loss_of(model, given), optimizer),
        GradientReach(optimizer),
    ]
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for probe in probes:
                probe.before_step(step, batch)
            optimizer.step()
            for probe in probes:
                probe.after_step(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
