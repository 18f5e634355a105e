"""One guard inside somebody else's training loop: begun before its first step, remembered in its checkpoints, ended
whatever happens.

`attach` is for loops whose owner calls it; this is what the integrations of trainers have in common. It may refuse
before the first step; from then on no exception of ours leaves it.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import torch

from lbw_sim.errors import LbwError, LiveError
from lbw_sim.guard import GuardSpec
from lbw_sim.live.attach import attach
from lbw_sim.live.live_guard import LiveGuard
from lbw_sim.live.wrap_method import wrap_method
from lbw_sim.trace.provenance import Fact

logger = logging.getLogger("lbw_sim")


@dataclass
class Window:
    """What was measured since the last step. Losses are added on the device, so that nobody waits for them.

    >>> window = Window()
    >>> window.add(torch.tensor(2.0))
    >>> window.add(torch.tensor(4.0))
    >>> window.loss_sum, window.micro_batches
    (tensor(6.), 2)
    """

    loss_sum: torch.Tensor | None = None
    micro_batches: int = 0
    tokens: float | None = None
    """Of all micro-batches; None: not counted."""
    grad_norm: Any = None
    """Of the whole gradient, before clipping; None: not measured."""

    def add(self, loss: torch.Tensor) -> None:
        """One more micro-batch."""
        self.loss_sum = loss.detach() if self.loss_sum is None else self.loss_sum + loss.detach()
        self.micro_batches += 1

    def add_tokens(self, tokens: SupportsFloat) -> None:
        """Those of one more micro-batch."""
        self.tokens = (self.tokens or 0.0) + float(tokens)

    def set_grad_norm(self, norm: Any) -> None:
        """The last one counts, as for clipping."""
        # sharded over ranks: each holds a part of it
        self.grad_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm


class Flight:
    """Attaches when the trainer is ready, and keeps what must survive a checkpoint.

    Raises SpecError for a bad spec and TypeError for an option that `attach` does not have.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> flight = Flight("default", {})
    >>> flight.begin(torch.optim.SGD(model.parameters(), lr=0.1), steps_taken=7)
    >>> flight.live.step, sorted(flight.memory())
    (7, ['guard', 'run_id'])
    >>> flight.end()
    """

    def __init__(self, guard: GuardSpec | str | Path, options: Mapping[str, Any]) -> None:
        inspect.signature(attach).bind(None, guard, **options)
        self.live: LiveGuard | None = None
        """The guard of the present or last training; None before the first."""
        self.flying = False
        """Training goes on and so does the guard."""
        self._spec = guard if isinstance(guard, GuardSpec) else GuardSpec.load(guard)
        self._options = dict(options)
        self._memory: dict[str, Any] = {}
        self._wrapped: list[Callable[[], None]] = []

    def begin(
        self,
        optimizer: Any,
        *,
        memory: Mapping[str, Any] | None = None,
        steps_taken: int = 0,
        scaler: torch.amp.GradScaler | None = None,
        provenance: Mapping[str, Fact] | None = None,
    ) -> None:
        """Attach, with the memory of a checkpoint or, where it has none, afresh at the trainer's own step.

        Without a `run_id` of its own the guard continues the run of the checkpoint. Raises LbwError when the user must
        mend something; any other fault leaves training unguarded and is logged.
        """
        self.end()
        live = None
        try:
            options = {"scaler": scaler, **self._options}
            options["provenance"] = {**(provenance or {}), **(options.get("provenance") or {})}
            options["run_id"] = options.get("run_id") or (memory or {}).get("run_id")
            live = attach(optimizer, self._spec, **options)
            if memory:
                # refused there, not here, where no other rank would hear of it
                live.load_state_dict(memory.get("guard", {}))
            elif steps_taken > 0:
                # a row's step is the trainer's, also where the guard comes late
                live.load_state_dict({**live.state_dict(), "step": steps_taken})
                logger.warning(
                    "lbw-sim: the checkpoint holds no memory of a guard: it starts afresh at step %d", steps_taken
                )
            self.live, self.flying = live, True
        except Exception as error:
            if live is not None:
                live.close()
            if isinstance(error, LbwError):
                raise
            if live is not None and memory:
                raise LiveError(f"the checkpoint's memory of its guard cannot be read: {error!r}") from error
            self.fail("attaching the guard", error)

    def memory(self) -> dict[str, Any]:
        """What a checkpoint keeps: plain numbers, lists and strings. Empty before the first `begin`."""
        if self.live is not None and self.flying:
            self._memory = {"run_id": self.live.run_id, "guard": self.live.state_dict()}
        return self._memory

    def end(self) -> None:
        """Finish the trace, take the guard off, give wrapped methods back. Idempotent; never raises."""
        if self.flying:
            with self.harmless("closing the guard"):
                self.memory()
        self.flying = False
        if self.live is not None:
            with contextlib.suppress(Exception):
                self.live.close()
        for give_back in self._wrapped:
            give_back()
        self._wrapped.clear()

    @contextlib.contextmanager
    def harmless(self, doing: str) -> Iterator[None]:
        """Around whatever we do inside the trainer's loop: a fault grounds the guard and leaves the training alone."""
        try:
            yield
        except Exception as error:
            self.fail(doing, error)

    def fail(self, doing: str, error: Exception) -> None:
        """Scale 1 from here on; said once, and in the trace. Must not raise, and may come in the middle of a step."""
        if self.live is None:
            logger.warning("lbw-sim: %s failed, training goes on without a guard: %r", doing, error)
        else:
            self.live.ground(LiveError(f"{doing} failed: {error!r}"))

    def wrap(self, owner: Any, name: str, replacement: Callable[..., Any]) -> None:
        """Until `end`: see `wrap_method`."""
        self._wrapped.append(wrap_method(owner, name, replacement))
