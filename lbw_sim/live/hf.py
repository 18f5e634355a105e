"""The guard in a Hugging Face `Trainer` and in the trainers of TRL, which derive from it: one line before `train()`.

It records the loss that was trained on, step by step, not the log: the log is a mean over `logging_steps` and shows a
nan as 0. It never reads the log to decide. It refuses DeepSpeed, and refuses before the first step or not at all:
from then on a fault of ours ends the recording, is said once, and training goes on.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import transformers
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("lbw_sim.live.hf needs transformers: pip install 'lbw-sim[hf]'") from error

from lbw_sim.errors import LiveError
from lbw_sim.guard import GuardSpec
from lbw_sim.live.flight import Flight, Window
from lbw_sim.live.live_guard import LiveGuard
from lbw_sim.live.wrap_method import wrap_method
from lbw_sim.live.wrappers import plain_optimizers, refuse_deepspeed
from lbw_sim.whole_file import write_whole

logger = logging.getLogger("lbw_sim")

STATE_FILE = "lbw_guard.json"
"""The guard's memory, one file in every checkpoint folder."""
RING_FILE = "lbw_guard_snapshots.pt"
"""Beside it the snapshots, with `Snapshots(in_checkpoints=True)`."""


def guard_trainer(
    trainer: Any,
    guard: GuardSpec | str | Path = "default",
    *,
    trace: str | Path | None = None,
    run_id: str | None = None,
    **options: Any,
) -> TrainerGuard:
    """Put a guard on a trainer, before `trainer.train()`; `options` go to `lbw_sim.live.attach`.

    Shadow is the default: training is bit for bit what it would be without it. The trainer may make its optimizer
    later. Every checkpoint gets the guard's memory (`lbw_guard.json`), and `train(resume_from_checkpoint=...)` goes on
    from it. Without `run_id` each `train()` is a run of its own, and a resumed one continues the run of its checkpoint.

    Raises LiveError for a trainer that has a guard already or runs on DeepSpeed, SpecError for a bad spec, TypeError
    for an option that `attach` does not have. What else cannot be done is refused when `train()` begins.

        guard_trainer(trainer, "default", trace="traces", run_id="first")
        trainer.train()
    """
    if any(isinstance(callback, TrainerGuard) for callback in trainer.callback_handler.callbacks):
        raise LiveError(f"this {type(trainer).__name__} has a guard already; uninstall() that one first")
    refuse_deepspeed(getattr(trainer.accelerator.state, "deepspeed_plugin", None))
    if trainer.optimizer is not None:
        plain_optimizers(trainer.optimizer)
    return TrainerGuard(trainer, Flight(guard, {"trace": trace, "run_id": run_id, **options}))


class TrainerGuard(TrainerCallback):  # type: ignore[misc]
    """What `guard_trainer` returns: one of the trainer's callbacks, until `uninstall`."""

    def __init__(self, trainer: Any, flight: Flight) -> None:
        """Use `guard_trainer`."""
        self._trainer = trainer
        self._flight = flight
        self._checkpoint: str | None = None
        self._window = Window()
        self._items: Any = None
        # for good, not for one training: it tells which checkpoint is resumed, and sees every end
        self._give_train_back = wrap_method(trainer, "train", self._train)
        trainer.add_callback(self)
        hub = str(getattr(trainer.args.hub_strategy, "value", trainer.args.hub_strategy))
        if trainer.args.push_to_hub and "checkpoint" in hub:
            logger.warning(
                "lbw-sim: hub_strategy=%r pushes a checkpoint before %s is in it: resume from the local folder, or "
                "the guard will have forgotten what it saw", hub, STATE_FILE,
            )  # fmt: skip

    @property
    def live(self) -> LiveGuard | None:
        """The guard of the present or last `train()`; None before the first."""
        return self._flight.live

    def uninstall(self) -> None:
        """Close the trace and take the guard off the trainer. Idempotent."""
        self._flight.end()
        self._give_train_back()
        if self in self._trainer.callback_handler.callbacks:
            self._trainer.callback_handler.callbacks.remove(self)

    # what the trainer calls

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach: the optimizer exists by now, and no step was taken."""
        memory = None
        if state.global_step > 0:
            folder = self._checkpoint or Path(args.output_dir, f"checkpoint-{state.global_step}")
            memory = self._load(Path(folder, STATE_FILE))
        self._window = Window()
        self._flight.begin(
            kwargs["optimizer"],
            memory=memory,
            steps_taken=state.global_step,
            scaler=self._trainer.accelerator.scaler,
            provenance={
                "trainer": f"{type(self._trainer).__module__}.{type(self._trainer).__qualname__}",
                "transformers": transformers.__version__,
                "seed": args.seed,
                "gradient_accumulation_steps": args.gradient_accumulation_steps,
            },
        )
        if self._flight.flying:
            self._flight.wrap(self._trainer, "training_step", self._training_step)
            self._flight.wrap(self._trainer, "log", self._log)
            self._flight.wrap(self._trainer.accelerator, "clip_grad_norm_", self._clip_grad_norm)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the guard what the coming step was computed from."""
        window, self._window = self._window, Window()
        if self._flight.flying and self.live is not None and window.loss_sum is not None:
            with self._flight.harmless("observing a step"):
                self.live.observe(window.loss_sum, tokens=self._tokens(args), grad_norm=window.grad_norm)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the guard's memory into the checkpoint."""
        if self._flight.flying:
            with self._flight.harmless("saving the guard's memory"):
                # on every rank, should reading the last numbers need them all
                memory = self._flight.memory()
                if args.should_save:
                    self._save(memory, Path(args.output_dir, f"checkpoint-{state.global_step}"))

    # what the trainer's own methods do more than before

    def _train(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        resume = kwargs.get("resume_from_checkpoint", args[0] if args else None)
        self._checkpoint = os.fspath(resume) if isinstance(resume, (str, os.PathLike)) else None
        try:
            return original(*args, **kwargs)
        finally:
            self._flight.end()

    def _training_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        if self._flight.flying:
            with self._flight.harmless("reading a loss"):
                # a micro-batch's share of the step's loss: whatever it was normalised by, the shares add up, as they
                # do in the gradient
                self._window.add(loss)
                self._items = kwargs.get("num_items_in_batch", args[2] if len(args) > 2 else None)
        return loss

    def _clip_grad_norm(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        norm = original(*args, **kwargs)
        if self._flight.flying:
            with self._flight.harmless("reading the gradient norm"):
                self._window.set_grad_norm(norm)
        return norm

    def _log(self, original: Callable[..., Any], logs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self._flight.flying and self.live is not None and "loss" in logs and "learning_rate" in logs:
            with self._flight.harmless("adding to the log"):
                logs["lbw/scale"] = self.live.decision.scale
                logs["lbw/effective_lr"] = logs["learning_rate"] * self.live.applied_scale
        return original(logs, *args, **kwargs)

    def _tokens(self, args: Any) -> Any:
        """Tokens with a label in this step, this rank's share of them; None where the trainer does not count them."""
        ranks = self._trainer.accelerator.num_processes
        if self._items is None or args.n_gpu > 1:
            return None
        if ranks == 1:
            return self._items
        # The trainer's loss is the plain mean over ranks, and a guard weighs ranks by tokens: so all must name the
        # same number. Where each rank normalised by its own count there is none.
        return self._items / ranks if args.average_tokens_across_devices else None

    def _save(self, memory: dict[str, Any], folder: Path) -> None:
        snapshots = memory["guard"]["snapshots"]
        plain = {**memory, "guard": {**memory["guard"], "snapshots": {**snapshots, "ring": ""}}}
        try:
            if ring := snapshots.get("ring", b""):
                write_whole(folder / RING_FILE, ring)
            else:
                # another training's, in a folder that is used again
                (folder / RING_FILE).unlink(missing_ok=True)
            write_whole(folder / STATE_FILE, json.dumps(plain))
        except OSError as error:
            logger.warning("lbw-sim: the guard's memory could not be saved in %s: %s", folder, error)

    def _load(self, path: Path) -> dict[str, Any] | None:
        try:
            memory = json.loads(path.read_text(encoding="utf-8"))
            guard = memory["guard"]
            ring = path.with_name(RING_FILE)
            if ring.exists():
                guard["snapshots"]["ring"] = ring.read_bytes()
            return {"run_id": memory["run_id"], "guard": guard}
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("lbw-sim: no memory of a guard could be read from %s: %s", path, error)
            return None
