"""The guard in a loop that is written with Hugging Face's accelerate: one line after `prepare`.

It takes each step's loss from `accelerator.backward` and the gradient norm from `accelerator.clip_grad_norm_`, so it is
for one loss and one optimizer. For several, use `attach` on the prepared optimizer's `.optimizer` and call `observe`
yourself. It refuses DeepSpeed.
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
from lbw_sim.live.flight import Window
from lbw_sim.live.live_guard import LiveGuard
from lbw_sim.live.wrap_method import wrap_method
from lbw_sim.live.wrappers import plain_optimizers, refuse_deepspeed


def guard_accelerator(
    accelerator: Any,
    optimizer: Any,
    guard: GuardSpec | str | Path = "default",
    *,
    trace: str | Path | None = None,
    run_id: str | None = None,
    tokens: int | Callable[[], int] | None = None,
    **options: Any,
) -> LiveGuard:
    """Guard a prepared optimizer; `options` go to `lbw_sim.live.attach`.

    The loss of a step is the mean of what went to `accelerator.backward` since the last step. `tokens`: how many each
    of these calls was for, a number or a function that is asked then; several ranks' losses are weighted by their sum.
    None: not recorded. `save_state` and `load_state` carry the guard's memory; call `load_state` before the first step,
    with the `run_id` of the run that is resumed. Close the guard when training is over.

    Raises LiveError for DeepSpeed and for what `attach` refuses.

        guard = guard_accelerator(accelerator, optimizer, "default", trace="traces", run_id="first")
    """
    refuse_deepspeed(getattr(accelerator.state, "deepspeed_plugin", None))
    inner, *others = plain_optimizers(optimizer)
    if others:
        raise LiveError("guard_accelerator is for one loss and one optimizer; for several use attach and observe")
    live = attach(inner, guard, trace=trace, run_id=run_id, **{"scaler": accelerator.scaler, **options})
    steps = _Steps(accelerator, live, tokens)
    accelerator.register_for_checkpointing(live)
    wrap_method(accelerator, "backward", steps.backward)
    wrap_method(accelerator, "clip_grad_norm_", steps.clip_grad_norm)
    wrap_method(optimizer, "step", steps.step)
    return live


class _Steps:
    """Puts micro-batches together to steps. None of its exceptions reaches the loop."""

    def __init__(self, accelerator: Any, live: LiveGuard, tokens: int | Callable[[], int] | None) -> None:
        self._accelerator = accelerator
        self._tokens = tokens
        self._live = live
        self._window = Window()

    def backward(self, original: Callable[..., Any], loss: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(loss, *args, **kwargs)
        with self._harmless():
            # whole, not divided by the accumulated batches: that happens inside
            self._window.add(loss)
            if self._tokens is not None:
                self._window.add_tokens(self._tokens() if callable(self._tokens) else self._tokens)
        return result

    def clip_grad_norm(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        norm = original(*args, **kwargs)
        with self._harmless():
            self._window.set_grad_norm(norm)
        return norm

    def step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._harmless():
            # the wrapper's step is called on every micro-batch and passes the last one of a window on
            if self._accelerator.sync_gradients:
                window, self._window = self._window, Window()
                if window.loss_sum is not None:
                    loss = window.loss_sum / window.micro_batches
                    self._live.observe(loss, tokens=window.tokens, grad_norm=window.grad_norm)
        return original(*args, **kwargs)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._live.ground(error)
