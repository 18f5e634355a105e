"""Tells the guard of steps that a gradient scaler drops without calling the optimizer.

A fused optimizer is called on an overflow too, and finds `found_inf` set; every other one is not called at all, so that
no hook fires. It changes nothing about the scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lbw_sim.live.wrap_method import wrap_method


def watch_scaler(
    scaler: torch.amp.GradScaler,
    optimizers: Sequence[torch.optim.Optimizer],
    dropped: Callable[[torch.optim.Optimizer], None],
) -> Callable[[], None]:
    """Call `dropped(optimizer)` after each `scaler.step(optimizer)` that did not reach it; returns how to stop that."""
    watched = {id(optimizer) for optimizer in optimizers}

    def step_and_tell(step: Callable[..., Any], optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        called = False

        def see(*_: object) -> None:
            nonlocal called
            called = True

        inner = getattr(optimizer, "optimizer", optimizer)
        if id(inner) not in watched:
            return step(optimizer, *args, **kwargs)
        hook = inner.register_step_pre_hook(see)
        try:
            result = step(optimizer, *args, **kwargs)
        finally:
            hook.remove()
        if not called:
            dropped(inner)
        return result

    return wrap_method(scaler, "step", step_and_tell)
