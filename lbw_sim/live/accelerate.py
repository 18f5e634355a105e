"""The guard in a loop that is written with Hugging Face's accelerate: one line after `prepare`.

It takes each step's loss from `accelerator.backward` and the gradient norm from `accelerator.clip_grad_norm_`, so it is
for one loss and one optimizer. For several, and to record tokens, use `attach` on the prepared optimizer's
`.optimizer` and call `observe` yourself. It refuses DeepSpeed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lbw_sim.errors import LiveError
from lbw_sim.guard import GuardSpec
from lbw_sim.live.attach import attach
from lbw_sim.live.flight import Window, wrap_method
from lbw_sim.live.live_guard import LiveGuard
from lbw_sim.live.wrappers import plain_optimizers, refuse_deepspeed


def guard_accelerator(
    accelerator: Any,
    optimizer: Any,
    guard: GuardSpec | str | Path = "default",
    *,
    trace: str | Path | None = None,
    run_id: str | None = None,
    **options: Any,
) -> LiveGuard:
    """Guard a prepared optimizer; `options` go to `lbw_sim.live.attach`.

    The loss of a step is the mean of what went to `accelerator.backward` since the last step. `save_state` and
    `load_state` carry the guard's memory; call `load_state` before the first step and give the `run_id` of the run that
    goes on. Close the guard when training is over.

    Raises LiveError for DeepSpeed and for what `attach` refuses.

        guard = guard_accelerator(accelerator, optimizer, "default", trace="traces", run_id="first")
    """
    refuse_deepspeed(getattr(accelerator.state, "deepspeed_plugin", None))
    inner, *others = plain_optimizers(optimizer)
    if others:
        raise LiveError("guard_accelerator is for one loss and one optimizer; for several use attach and observe")
    steps = _Steps(accelerator)
    # before attach's own hook: it reads what this one tells it
    hook = inner.register_step_pre_hook(steps.before_step)
    try:
        live = attach(inner, guard, trace=trace, run_id=run_id, **options)
    except Exception:
        hook.remove()
        raise
    steps.live = live
    accelerator.register_for_checkpointing(live)
    wrap_method(accelerator, "backward", steps.backward)
    wrap_method(accelerator, "clip_grad_norm_", steps.clip_grad_norm)
    return live


class _Steps:
    """Puts micro-batches together to steps. None of its exceptions reaches the loop."""

    def __init__(self, accelerator: Any) -> None:
        self.live: LiveGuard | None = None
        self._accelerator = accelerator
        self._window = Window()
        self._complete = False

    def backward(self, original: Callable[..., Any], loss: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(loss, *args, **kwargs)
        with self._harmless():
            if self._complete and self._accelerator.scaler is not None:
                # the scaler found an overflow and took no step
                self._window = Window()
            # whole, not divided by the accumulated batches: that happens inside
            self._window.add(loss)
            self._complete = self._accelerator.sync_gradients
        return result

    def clip_grad_norm(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        norm = original(*args, **kwargs)
        with self._harmless():
            self._window.set_grad_norm(norm)
        return norm

    def before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with self._harmless():
            window, self._window, self._complete = self._window, Window(), False
            if self.live is not None and window.loss_sum is not None:
                self.live.observe(window.loss_sum / window.micro_batches, grad_norm=window.grad_norm)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self.live is not None:
                self.live.ground(error)
