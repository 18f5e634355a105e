"""Numbers on their way from the device: copied without waiting, read one step later.

On a CPU the number is simply there. Nothing here decides or reduces over ranks.
"""

from __future__ import annotations

from typing import SupportsFloat

import torch


class Mail:
    """One step's measurements: posted while the device works, read when they are needed.

    >>> mail = Mail(wait=True)
    >>> mail.post_loss(torch.tensor(2.0), tokens=100.0)
    >>> mail.post_loss(torch.tensor(4.0), tokens=300.0)
    >>> mail.post("grad_norm", 0.5)
    >>> mail.read()
    {'loss': 3.5, 'grad_norm': 0.5}
    """

    def __init__(self, *, wait: bool) -> None:
        """With `wait`, numbers are read as they are posted: for a guard without delay."""
        self._wait = wait
        self._losses: list[tuple[float | torch.Tensor, float]] = []
        self._values: dict[str, float | torch.Tensor] = {}
        self._arrived: torch.cuda.Event | None = None

    @property
    def empty(self) -> bool:
        """Nothing was posted yet."""
        return not self._losses and not self._values

    def post_loss(self, loss: SupportsFloat, tokens: float) -> None:
        """Add one micro-batch's mean loss; the step's loss is the mean weighted by tokens."""
        self._losses.append((self._send(loss), tokens))

    def post(self, channel: str, value: SupportsFloat) -> None:
        """Set one channel; the last value posted counts."""
        self._values[channel] = self._send(value)

    def _send(self, value: SupportsFloat) -> float | torch.Tensor:
        if not isinstance(value, torch.Tensor):
            return float(value)
        value = value.detach()
        if self._wait or value.device.type != "cuda":
            return float(value)
        if value.numel() != 1:
            raise ValueError(f"a channel is one number, not a tensor of shape {tuple(value.shape)}")
        buffer = torch.empty((), dtype=torch.float64, pin_memory=True)
        buffer.copy_(value.reshape(()), non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()
        return buffer

    def read(self) -> dict[str, float]:
        """All numbers by channel; waits only for copies that are still under way."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers: dict[str, float] = {}
        if self._losses:
            weight = sum(tokens for _, tokens in self._losses)
            # one micro-batch: its own bits, not those of loss * tokens / tokens
            if len(self._losses) == 1:
                numbers["loss"] = float(self._losses[0][0])
            else:
                numbers["loss"] = sum(float(loss) * tokens for loss, tokens in self._losses) / weight
        numbers.update({channel: float(value) for channel, value in self._values.items()})
        return numbers
