"""The guard as a Lightning callback, for automatic optimization.

It refuses manual optimization, where only the module knows which loss belongs to which step (use `attach` there), and
DeepSpeed. It refuses before the first step or not at all: from then on a fault of ours ends the recording, is said
once, and training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("lbw_sim.live.lightning needs lightning: pip install 'lbw-sim[lightning]'") from error

from lbw_sim.errors import LiveError
from lbw_sim.guard import GuardSpec
from lbw_sim.live.flags import flag
from lbw_sim.live.flight import Flight, Window
from lbw_sim.live.live_guard import LiveGuard
from lbw_sim.live.wrappers import refuse_deepspeed
from lbw_sim.values import nan


class GuardCallback(Callback):  # type: ignore[misc]
    """Guards the optimizer of a module; `options` go to `lbw_sim.live.attach`.

    The loss of a step is the mean over its micro-batches, as the module returned it. `grad_norm` measures the whole
    gradient before clipping, at the price of reading every gradient once a step. Guard and trace continue when a fit is
    resumed (`ckpt_path=`). `tokens`: how many a batch holds, a number or a function of the batch; several ranks' losses
    are then weighted by it. None: not recorded.

    Raises SpecError for a bad spec and TypeError for an option that `attach` does not have; `fit` raises LiveError
    before its first step for manual optimization and DeepSpeed.

        trainer = lightning.Trainer(callbacks=[GuardCallback("default", trace="traces", run_id="first")])
    """

    def __init__(
        self,
        guard: GuardSpec | str | Path = "default",
        *,
        trace: str | Path | None = None,
        run_id: str | None = None,
        grad_norm: bool = True,
        tokens: int | Callable[[Any], int] | None = None,
        **options: Any,
    ) -> None:
        self._flight = Flight(guard, {"trace": trace, "run_id": run_id, **options})
        self._measures_grad_norm = flag(grad_norm, "GuardCallback: grad_norm")
        self._tokens = tokens
        self._loaded: dict[str, Any] = {}
        self._window = Window()

    @property
    def live(self) -> LiveGuard | None:
        """The guard of the present or last fit; None before the first."""
        return self._flight.live

    def state_dict(self) -> dict[str, Any]:
        """Goes into every checkpoint that Lightning writes."""
        try:
            return self._flight.memory() or self._loaded
        except Exception as error:
            self._flight.fail("saving the guard's memory", error)
            return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Kept until the optimizer exists."""
        self._loaded = dict(state_dict)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be guarded."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise LiveError(
                f"{type(pl_module).__name__} optimizes manually, and only it knows which loss belongs to which step: "
                "in its on_train_start call lbw_sim.live.attach(self.optimizers().optimizer, ...), and observe(loss) "
                "before every step"
            )
        refuse_deepspeed(trainer.strategy)
        # this rank's shard of the gradient is not the gradient
        self._measures_grad_norm = self._measures_grad_norm and "FSDP" not in type(trainer.strategy).__name__

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach: optimizer and checkpoint are loaded by now, and no step was taken."""
        if not trainer.optimizers:
            raise LiveError(f"{type(pl_module).__name__} has no optimizer: there is nothing to guard")
        self._window = Window()
        memory = self._loaded if trainer.global_step > 0 else {}
        self._loaded = {}
        last = self._flight.memory()
        if not memory and last and last["guard"]["step"] == trainer.global_step > 0:
            memory = last  # a fit that goes on where the last one ended
        self._flight.begin(
            trainer.optimizers[0],
            memory=memory,
            steps_taken=trainer.global_step,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            provenance={
                "trainer": f"{type(trainer).__module__}.{type(trainer).__qualname__}",
                "gradient_accumulation_steps": trainer.accumulate_grad_batches,
                "precision": str(trainer.precision),
            },
        )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count a micro-batch's tokens."""
        if self._flight.flying and self._tokens is not None:
            with self._flight.harmless("counting tokens"):
                self._window.add_tokens(self._tokens(batch) if callable(self._tokens) else self._tokens)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        """Take a micro-batch's loss, which Lightning has divided by the accumulated batches and a scaler scaled."""
        if self._flight.flying:
            with self._flight.harmless("reading a loss"):
                share = loss.detach()
                scaler = getattr(trainer.precision_plugin, "scaler", None)
                if scaler is not None:
                    # scaled once more, not read: reading the scale would wait for the device
                    share = share / scaler.scale(torch.ones_like(share))
                self._window.add(share)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Tell the guard about the coming step: gradients are complete and not yet clipped."""
        window, self._window = self._window, Window()
        if self._flight.flying and self.live is not None:
            with self._flight.harmless("observing a step"):
                if window.loss_sum is not None:
                    if self._measures_grad_norm:
                        window.set_grad_norm(_grad_norm(optimizer, trainer.precision_plugin))
                    # the last batches of an epoch may be fewer than it was divided by
                    loss = window.loss_sum * (trainer.accumulate_grad_batches / window.micro_batches)
                    self.live.observe(loss, tokens=window.tokens, grad_norm=window.grad_norm)
                elif getattr(trainer.precision_plugin, "scaler", None) is None:
                    # training_step returned None; without a scaler Lightning steps all the same
                    self.live.observe(nan)
                    self.live.mark("no loss")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the trace."""
        self._flight.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Finish the trace."""
        self._flight.end()


def _grad_norm(optimizer: Any, precision: Any) -> torch.Tensor:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    scaler = getattr(precision, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return norm
    # a fused step takes the scaler's factor out by itself, later
    unscaled: torch.Tensor = norm / scaler.scale(torch.ones_like(norm))
    return unscaled
