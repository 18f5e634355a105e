"""The paired probe: one batch's loss before and after, so that its difficulty cancels. It judges nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, SupportsFloat

from torch import Tensor, nn

from lbw_sim.errors import LiveError
from lbw_sim.live.probes.measuring import every, undisturbed


class _Waiting(NamedTuple):
    """A batch that is evaluated again later."""

    due_step: int
    batch: Any
    before: Tensor | float


class PairedProbe:
    """Channel `probe_gain`: loss of one training batch `span_steps` updates later minus its loss before them; nats.

    Every `every_steps` steps the batch that the loop passes to `observe(..., batch=batch)` is evaluated, `loss(batch)`,
    in evaluation mode, and once more when `span_steps` updates have followed. Negative while training works. One update
    (`span_steps=1`) tells how well it fitted its own batch, which a learning rate that is far too high does as well;
    some ten updates tell whether the weights still are good for what they were trained on.

    Batches are kept by reference until then, about `span_steps` / `every_steps` of them: a loop that overwrites a batch
    in place must pass a copy. Going back in steps, as after a rollback that counts anew, drops what is waiting.

    Cost: two forward passes of a batch per `every_steps` steps, and the memory of the batches kept.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> probe = PairedProbe(model, lambda batch: model.weight.detach().sum() * batch, every_steps=5, span_steps=1)
    >>> _ = torch.nn.init.constant_(model.weight, 2.0), probe.before_step(0, 10.0)
    >>> _ = torch.nn.init.constant_(model.weight, 1.5)
    >>> float(probe.before_step(1, 10.0)["probe_gain"])
    -5.0
    """

    channels: tuple[str, ...] = ("probe_gain",)

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any], Tensor | float],
        *,
        every_steps: int = 5,
        span_steps: int = 10,
    ) -> None:
        """`model`: what `loss` evaluates, so that its mode can be put back. Raises LiveError for a value below 1."""
        self.every_steps = every(every_steps, "PairedProbe")
        if span_steps < 1 or span_steps != int(span_steps):
            raise LiveError(f"PairedProbe: span_steps={span_steps!r} is not a whole number of at least 1")
        self.span_steps = int(span_steps)
        self._model = model
        self._loss = loss
        self._waiting: list[_Waiting] = []
        self._last_step = -1

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """The gain of the batch that is due; this step's batch is put on the list."""
        if step <= self._last_step:
            self._waiting.clear()
        self._last_step = step
        due = [waiting for waiting in self._waiting if waiting.due_step == step]
        # one whose step was passed over cannot be compared with the others
        self._waiting = [waiting for waiting in self._waiting if waiting.due_step > step]
        starts = step % self.every_steps == 0 and batch is not None
        if not due and not starts:
            return {}
        values: dict[str, Tensor | float] = {}
        with undisturbed(self._model):
            for waiting in due:
                values["probe_gain"] = self._loss(waiting.batch) - waiting.before
            if starts:
                self._waiting.append(_Waiting(step + self.span_steps, batch, self._loss(batch)))
        return values

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """Nothing: a gain is measured before the next decision."""
        return {}
