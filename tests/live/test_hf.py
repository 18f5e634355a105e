"""The guard in real trainers of transformers and TRL, on tiny models with random weights: nothing is downloaded."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lbw_sim.errors import LiveError
from lbw_sim.live import LiveGuard
from lbw_sim.replay import verify
from lbw_sim.trace import read_trace
from lbw_sim.values import Regime

from .trainers import ACTIVE, EAGER, assert_parts_are_the_whole, fails, same_bits, weights

# transformers takes seconds to import: inside the tests, so that only the process that runs them pays
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(?!lbw_sim)"),
]
Fault = Callable[[int, torch.Tensor], torch.Tensor]
VOCABULARY = 64


def tiny_model(seed: int = 0) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
        )
    )


def examples(count: int) -> list[dict[str, torch.Tensor]]:
    """Sequences of which more or less is trained on: between 4 and 15 of 16 tokens have a label."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        tokens = torch.randint(0, VOCABULARY, (16,), generator=generator)
        labels = tokens.clone()
        labels[: int(torch.randint(1, 12, (1,), generator=generator))] = -100
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


def tiny_trainer(folder: Path, *, seed: int = 0, fault: Fault | None = None, rows: int = 64, **settings: Any) -> Any:
    """A trainer that also keeps, by hand, what every micro-batch's loss was made of."""
    from transformers import Trainer, TrainingArguments

    class Witness(Trainer):  # type: ignore[misc]
        seen: ClassVar[dict[int, list[tuple[float, int]]]] = {}

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if model.training:
                with torch.no_grad():
                    logits, labels = model(inputs["input_ids"]).logits[:, :-1], inputs["labels"][:, 1:]
                    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
                kept = self.seen.setdefault(self.state.global_step, [])
                kept.append((float(total), int((labels != -100).sum())))
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            return loss if fault is None else fault(self.state.global_step, loss)

    Witness.seen = {}
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 12,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        **settings,
    }
    arguments = TrainingArguments(str(folder), report_to=[], use_cpu=True, disable_tqdm=True, **settings)
    return Witness(model=tiny_model(seed), args=arguments, train_dataset=examples(rows))


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


def spike(step: int, loss: torch.Tensor) -> torch.Tensor:
    return loss * 4.0 if 6 <= step < 10 else loss


@pytest.mark.parametrize("counts_tokens", [True, False], ids=["by tokens", "by micro-batches"])
def test_a_row_holds_the_loss_of_its_step_and_its_gradient_before_clipping(counts_tokens: bool, tmp_path: Path) -> None:
    from lbw_sim.live.hf import guard_trainer

    # 13 micro-batches an epoch: every fifth step has a single one
    trainer = tiny_trainer(tmp_path / "out", rows=26, gradient_accumulation_steps=3, max_grad_norm=0.1)
    trainer.model_accepts_loss_kwargs = counts_tokens
    guard_trainer(trainer, EAGER, trace=tmp_path, run_id="truth")
    trainer.train()
    columns = read_trace(tmp_path).to_numpy()
    micro = [trainer.seen[step] for step in range(12)]
    assert sorted({len(step) for step in micro}) == [1, 3]
    by_tokens = [sum(total for total, _ in step) / sum(count for _, count in step) for step in micro]
    by_micro_batches = [sum(total / count for total, count in step) / len(step) for step in micro]
    assert columns["loss"].tolist() == pytest.approx(by_tokens if counts_tokens else by_micro_batches, rel=1e-5)
    assert by_tokens != pytest.approx(by_micro_batches, rel=1e-4), "else this test could not tell"
    if counts_tokens:
        assert columns["tokens"].tolist() == [sum(count for _, count in step) for step in micro]
    assert columns["loss"].tolist() == logged(trainer, "loss")
    assert columns["grad_norm"].tolist() == logged(trainer, "grad_norm")
    assert columns["grad_norm"].min() > 0.1
    assert columns["lr"].tolist() == logged(trainer, "learning_rate")


def test_a_shadow_guard_changes_no_bit_of_training_and_leaves_the_trainer_as_it_was(tmp_path: Path) -> None:
    from lbw_sim.live.hf import guard_trainer

    alone, watched = (tiny_trainer(tmp_path / name, fault=spike) for name in ("alone", "watched"))
    alone.train()
    guard = guard_trainer(watched, EAGER, trace=tmp_path / "traces", run_id="shadow")
    watched.train()
    assert same_bits(weights(alone.model), weights(watched.model))
    columns = read_trace(tmp_path / "traces").to_numpy()
    assert columns["scale"].min() < 1.0, "it decided to act"
    assert columns["effective_lr"].tolist() == columns["lr"].tolist(), "and did not"
    assert logged(watched, "lbw/effective_lr") == logged(watched, "learning_rate")
    guard.uninstall()
    assert not {"train", "training_step", "log"} & vars(watched).keys()
    assert "clip_grad_norm_" not in vars(watched.accelerator)
    assert guard not in watched.callback_handler.callbacks
    assert not watched.optimizer.optimizer._optimizer_step_pre_hooks


def test_a_nan_loss_that_the_log_hides_is_seen_and_its_step_skipped(tmp_path: Path) -> None:
    from lbw_sim.live.hf import guard_trainer

    trainer = tiny_trainer(tmp_path / "out", fault=lambda step, loss: loss * math.nan if step == 6 else loss)
    guard_trainer(trainer, EAGER, trace=tmp_path, run_id="nan", **ACTIVE)
    trainer.train()
    columns = read_trace(tmp_path).to_numpy()
    assert logged(trainer, "loss")[6] == 0.0, "the log's word for nan"
    assert [math.isnan(loss) for loss in columns["loss"].tolist()] == [step == 6 for step in range(12)]
    assert columns["regime"][6] == Regime.NONFINITE
    assert columns["skipped"].tolist()[6]
    assert logged(trainer, "lbw/effective_lr") == columns["effective_lr"].tolist()
    assert all(w.isfinite().all() for w in weights(trainer.model))


@pytest.mark.parametrize("restore_callbacks", [False, True])
def test_a_resumed_training_equals_an_uninterrupted_one(restore_callbacks: bool, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from lbw_sim.live.hf import guard_trainer

    class StopsBeforeTen(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 10

    settings: dict[str, Any] = {
        "fault": spike,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 9,
        "restore_callback_states_from_checkpoint": restore_callbacks,
    }
    whole = tiny_trainer(tmp_path / "whole", **settings)
    guard_trainer(whole, EAGER, trace=tmp_path / "traces", run_id="whole", **ACTIVE)
    whole.train()

    first = tiny_trainer(tmp_path / "parts", **settings)
    first.add_callback(StopsBeforeTen())
    guard_trainer(first, EAGER, trace=tmp_path / "traces", run_id="parts", **ACTIVE)
    first.train()
    second = tiny_trainer(tmp_path / "parts", seed=9, **settings)
    # no run_id: the run of the checkpoint goes on
    guard = guard_trainer(second, EAGER, trace=tmp_path / "traces", **ACTIVE)
    second.train(resume_from_checkpoint=True)

    assert guard.live is not None
    assert guard.live.run_id == "parts"
    assert same_bits(weights(whole.model), weights(second.model))
    assert_parts_are_the_whole(tmp_path / "traces", rows=12)


@pytest.mark.parametrize("in_checkpoints", [False, True])
def test_a_guard_that_may_roll_back_goes_through_checkpoints(in_checkpoints: bool, tmp_path: Path) -> None:
    from lbw_sim.live import Snapshots
    from lbw_sim.live.hf import guard_trainer

    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}

    def guarded(**settings: Any) -> tuple[Any, Any, Any]:
        trainer = tiny_trainer(tmp_path / "out", **saving, **settings)
        ring = Snapshots(every_steps=2, keep=2, in_checkpoints=in_checkpoints)
        return trainer, guard_trainer(trainer, EAGER, snapshots=ring, **ACTIVE), ring

    first, guard, ring = guarded(max_steps=4)
    first.train()
    assert guard.live is not None
    assert guard.live.grounded is None
    held = [step.clone() for step in ring.held()[-1][1]]
    if in_checkpoints:
        # a later training without the ring, in the same folder, leaves none of this one's there
        stays = tiny_trainer(tmp_path / "again", **saving, max_steps=4)
        (tmp_path / "again" / "checkpoint-4").mkdir(parents=True)
        (tmp_path / "again" / "checkpoint-4" / "lbw_guard_snapshots.pt").write_bytes(b"old")
        guard_trainer(stays, EAGER, snapshots=Snapshots(), **ACTIVE)
        stays.train()
        assert not (tmp_path / "again" / "checkpoint-4" / "lbw_guard_snapshots.pt").exists()
    second, again, taken_over = guarded(max_steps=5)
    second.train(resume_from_checkpoint=True)
    assert again.live is not None
    assert again.live.grounded is None
    assert again.live.step == 5
    assert taken_over.steps == ([2, 4] if in_checkpoints else [4])
    if in_checkpoints:
        assert same_bits(taken_over.held()[0][1], held)


def test_a_guard_that_comes_late_counts_the_trainers_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from lbw_sim.live.hf import guard_trainer

    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 8}
    tiny_trainer(tmp_path / "out", **settings).train()
    resumed = tiny_trainer(tmp_path / "elsewhere", **settings)
    guard_trainer(resumed, EAGER, trace=tmp_path / "traces", run_id="late")
    with caplog.at_level(logging.WARNING, logger="lbw_sim"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
    assert "starts afresh at step 8" in caplog.text
    trace = read_trace(tmp_path / "traces")
    assert trace.to_numpy()["step"].tolist() == [8, 9, 10, 11]
    assert verify(trace).rows == 4

    other = tiny_trainer(tmp_path / "elsewhere", **settings)
    guard_trainer(other, "default", trace=tmp_path / "traces", run_id="other")
    (tmp_path / "out" / "checkpoint-8" / "lbw_guard.json").write_text('{"run_id": "x", "guard": {"fingerprint": "y"}}')
    with pytest.raises(LiveError, match="the checkpoint belongs to guard 'y'"):
        other.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))


@pytest.mark.parametrize("broken", ["observe", "state_dict", "decision", "detach"])
def test_a_bug_of_ours_never_reaches_the_trainers_loop(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lbw_sim.live.hf import guard_trainer

    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    alone, trainer = (tiny_trainer(tmp_path / name, **settings) for name in ("alone", "guarded"))
    alone.train()
    guard = guard_trainer(trainer, EAGER, trace=tmp_path / "traces", run_id="bug", **ACTIVE)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="lbw_sim"):
        patch.setattr(LiveGuard, broken, property(fails) if broken == "decision" else fails)
        trainer.train()
    assert guard.live is not None
    guard.live.detach()
    assert same_bits(weights(alone.model), weights(trainer.model))
    assert ("a bug of ours" in caplog.text) == (broken != "detach")
    assert "training_step" not in vars(trainer)


def test_an_exception_of_the_training_itself_passes_and_the_trace_is_finished(tmp_path: Path) -> None:
    from lbw_sim.live.hf import guard_trainer

    def interrupt(step: int, loss: torch.Tensor) -> torch.Tensor:
        if step == 4:
            raise KeyboardInterrupt
        return loss

    trainer = tiny_trainer(tmp_path / "out", fault=interrupt)
    guard_trainer(trainer, EAGER, trace=tmp_path, run_id="interrupted")
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trace = read_trace(tmp_path)
    assert trace.meta.ended == "closed"
    assert trace.to_numpy()["step"].tolist() == [0, 1, 2, 3]
    assert "training_step" not in vars(trainer)


def test_a_training_that_begins_again_with_smaller_batches_is_watched_again(tmp_path: Path) -> None:
    from lbw_sim.live.hf import guard_trainer

    sizes = []

    def full_memory(step: int, loss: torch.Tensor) -> torch.Tensor:
        sizes.append(trainer._train_batch_size)
        if sizes[-1] > 1 and step == 2:
            raise RuntimeError("CUDA out of memory.")
        return loss

    trainer = tiny_trainer(tmp_path / "out", fault=full_memory, auto_find_batch_size=True, max_steps=5)
    guard_trainer(trainer, EAGER, trace=tmp_path, run_id="again")
    trainer.train()
    assert set(sizes) == {1, 2}
    assert read_trace(tmp_path).to_numpy()["loss"].tolist() == logged(trainer, "loss")[-5:]


class FromDeepSpeed(torch.optim.SGD):
    """Says that it is DeepSpeed's, as its real optimizers do."""


FromDeepSpeed.__module__ = "deepspeed.runtime.zero.stage3"


def test_what_cannot_be_guarded_is_refused_before_the_first_step(tmp_path: Path) -> None:
    from lbw_sim.live.hf import guard_trainer

    trainer = tiny_trainer(tmp_path / "out")
    with pytest.raises(TypeError, match="unprovn"):
        guard_trainer(trainer, EAGER, unprovn=True)
    guard = guard_trainer(trainer, EAGER, mode="active")
    with pytest.raises(LiveError, match="has a guard already"):
        guard_trainer(trainer, EAGER)
    with pytest.raises(LiveError, match="unproven=True"):
        trainer.train()
    assert trainer.state.global_step == 0
    guard.uninstall()

    guard = guard_trainer(trainer, EAGER)
    trainer.create_optimizer = lambda *_: setattr(trainer, "optimizer", FromDeepSpeed(trainer.model.parameters()))
    with pytest.raises(LiveError, match="FromDeepSpeed is DeepSpeed's"):
        trainer.train()
    guard.uninstall()
    with pytest.raises(LiveError, match="FromDeepSpeed is DeepSpeed's"):
        guard_trainer(trainer, EAGER)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_trl_trains_a_lora_adapter_under_guard_without_a_download(tmp_path: Path) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    from lbw_sim.live.hf import guard_trainer

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    trainer = SFTTrainer(
        model=tiny_model(),
        args=SFTConfig(
            str(tmp_path / "out"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=6,
            logging_steps=1,
            save_steps=3,
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in examples(32)]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    guard_trainer(trainer, EAGER, trace=tmp_path / "traces", run_id="lora")
    trainer.train()
    columns = read_trace(tmp_path / "traces").to_numpy()
    assert columns["loss"].tolist() == logged(trainer, "loss")
    assert columns["grad_norm"].tolist() == logged(trainer, "grad_norm")
    assert columns["tokens"].tolist() == [4.0 * 15] * 6
    assert (tmp_path / "out" / "checkpoint-3" / "lbw_guard.json").exists()
