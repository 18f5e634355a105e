"""torch's AdamW with a guard on it: the constructor that an AdamW user already knows.

The update rule is torch's own, untouched; for any other optimizer use `attach`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, SupportsFloat

import torch

from lbw_sim.errors import LiveError
from lbw_sim.guard import GuardSpec
from lbw_sim.live.attach import attach
from lbw_sim.live.live_guard import LiveGuard, Mode

_GUARD = "lbw_guard"


class GuardedAdamW(torch.optim.AdamW):
    """A drop-in for `torch.optim.AdamW`. Every argument of AdamW is AdamW's; `guard` and what follows are the guard's.

    `min_scale` replaces the lowest scale that the guard's spec allows, in [0.01, 1]; `mode` and all further names are
    those of `attach`. `state_dict` holds the guard's memory beside AdamW's and loads into a plain AdamW as well;
    `load_state_dict` takes both.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = GuardedAdamW(model.parameters(), lr=1e-3, guard="default", min_scale=0.2)
    >>> loss = model(torch.ones(4, 2)).square().mean()
    >>> loss.backward()
    >>> optimizer.observe(loss)
    >>> optimizer.step()
    >>> optimizer.guard.spec.tables["envelope"]["min_scale"], optimizer.guard.step
    (0.2, 1)
    >>> optimizer.guard.close()
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        guard: GuardSpec | str | Path = "default",
        min_scale: float | None = None,
        mode: Mode = "shadow",
        **options: Any,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=foreach, capturable=capturable,
            differentiable=differentiable, fused=fused,
        )  # fmt: skip
        spec = guard if isinstance(guard, GuardSpec) else GuardSpec.load(guard)
        if min_scale is not None:
            spec = spec.with_changes({"envelope.min_scale": min_scale})
        self._live: LiveGuard | None = attach(self, spec, mode=mode, **options)

    @property
    def guard(self) -> LiveGuard:
        """The guard. Raises LiveError on a copy made by pickling, which has none."""
        live = self.__dict__.get("_live")
        if live is None:
            raise LiveError("this optimizer was unpickled, and pickling drops its guard: put one on it with attach()")
        return live  # type: ignore[no-any-return]

    def observe(self, loss: SupportsFloat, **measured: Any) -> None:
        """The guard's `observe`: after `backward`, before `step`. With a closure `step` does it by itself."""
        self.guard.observe(loss, **measured)

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state, and the guard's memory under one more key, which a plain AdamW passes over."""
        state = super().state_dict()
        live = self.__dict__.get("_live")
        return state if live is None else {**state, _GUARD: live.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """AdamW's state and, before the first step, the guard's memory where there is one.

        A guard that has flown already keeps its own memory: a loop may go back by itself in mid-run, as with AdamW.
        Raises LiveError when the memory is another guard's.
        """
        state = dict(state_dict)
        memory = state.pop(_GUARD, None)
        super().load_state_dict(state)
        live = self.__dict__.get("_live")
        if memory is not None and live is not None and live.step == 0:
            live.load_state_dict(memory)
