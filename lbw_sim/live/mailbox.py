"""Numbers on their way from the device and between ranks: sent without waiting, read when they are needed.

On a CPU, with one rank, a number is simply there. What was read becomes telemetry here. Nothing here decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat, cast

import torch

from lbw_sim.live.ranks import Number, Ranks, copy_to_host, weighted_sum
from lbw_sim.values import Telemetry, nan

FOUND_INF = "found_inf"
"""What a gradient scaler says of a step: above 0 when it found an overflow and dropped the update."""


class Mail:
    """One step's measurements: collected before the step, sealed and sent at its decision.

    >>> mail = Mail()
    >>> mail.post_loss(torch.tensor(2.0), tokens=100.0)
    >>> mail.post_loss(torch.tensor(4.0), tokens=300.0)
    >>> mail.post("grad_norm", 0.5)
    >>> mail.send().read()
    {'grad_norm': 0.5, 'loss': 3.5, 'tokens': 400.0}
    """

    def __init__(self) -> None:
        self._losses: list[tuple[Number, Number]] = []
        self._tokens: Number | None = None
        self._values: dict[str, Number] = {}

    @property
    def empty(self) -> bool:
        """Nothing was posted yet."""
        return not self._losses and not self._values

    @property
    def micro_batches(self) -> int:
        """Losses that were posted."""
        return len(self._losses)

    def post_loss(self, loss: SupportsFloat, tokens: SupportsFloat | None = None) -> None:
        """Add one micro-batch's mean loss; the step's loss is the mean weighted by tokens."""
        weight = 1.0 if tokens is None else _number(tokens)
        self._losses.append((_number(loss), weight))
        if tokens is not None:
            self._tokens = weight if self._tokens is None else self._tokens + weight

    def post(self, channel: str, value: SupportsFloat) -> None:
        """Set one channel; the last value posted counts."""
        self._values[channel] = _number(value)

    def send(self, ranks: Ranks | None = None) -> Letter:
        """Send what was collected on its way; with `ranks`, to be combined over all of them in one all-reduce."""
        values = self._values
        if ranks is not None:
            return Letter(ranks.send(self._losses, self._tokens, values))
        if len(self._losses) == 1:
            # one micro-batch: its own bits, not those of loss * tokens / tokens
            values["loss"] = self._losses[0][0]
        elif self._losses:
            weight = weighted_sum((1.0, tokens) for _, tokens in self._losses)
            # a step without a token has no loss; on a device the same division gives nan by itself
            values["loss"] = nan if type(weight) is float and weight == 0.0 else weighted_sum(self._losses) / weight
        if self._tokens is not None:
            values["tokens"] = self._tokens
        return Letter(_fetched(values))


class Letter:
    """Numbers that were sent. `read` waits only for what is still under way."""

    def __init__(self, content: dict[str, float] | Callable[[], dict[str, float]]) -> None:
        """`content`: the numbers, or what waits for them and gives them."""
        self._content = content

    def read(self) -> dict[str, float]:
        """All numbers by channel; a channel that was not measured is absent."""
        if not isinstance(self._content, dict):
            self._content = self._content()
        return self._content


def overflowed(numbers: Mapping[str, float]) -> bool:
    """Whether the gradient scaler dropped the step."""
    return numbers.get(FOUND_INF, 0.0) > 0.0


def telemetry_of(step: int, lr: float, numbers: Mapping[str, float], channels: Sequence[str]) -> Telemetry:
    """What was read as telemetry; `channels` names the extra ones, in order.

    >>> telemetry_of(7, 1e-3, {"loss": 2.5, "odd": 1.0}, ["odd"]).nonfinite
    0.0
    """
    loss, grad_norm = numbers.get("loss", nan), numbers.get("grad_norm", nan)
    measured = "loss" in numbers or "grad_norm" in numbers
    finite = ("loss" not in numbers or math.isfinite(loss)) and ("grad_norm" not in numbers or math.isfinite(grad_norm))
    if overflowed(numbers):
        # an overflow of the scaled gradient is the scaler's daily work, not a gradient of the run
        grad_norm, measured, finite = nan, "loss" in numbers, math.isfinite(loss)
    return Telemetry(
        step,
        loss,
        lr,
        grad_norm,
        numbers.get("update_norm", nan),
        numbers.get("tokens", nan),
        (0.0 if finite else 1.0) if measured else nan,
        tuple([numbers.get(name, nan) for name in channels]),
    )


def _number(value: SupportsFloat) -> Number:
    if not isinstance(value, torch.Tensor):
        return float(value)
    if type(value) is torch.Tensor and value.is_cpu and value.numel() == 1:
        # not float(value.detach()): a tensor made for it costs more than all the rest of a measurement
        return float(value.item())
    # over shards, a DTensor is not yet the number of the whole
    number: torch.Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    number = number.detach()
    if number.numel() != 1:
        raise ValueError(f"loss and channels are one number each, not a tensor of shape {tuple(number.shape)}")
    # in double precision from here: a mean of bfloat16 losses is no bfloat16
    if number.device.type == "cpu":
        return float(number)
    # Metal has no double
    return number.reshape(()).to(torch.float32 if number.device.type == "mps" else torch.float64)


def _fetched(values: dict[str, Number]) -> dict[str, float] | Callable[[], dict[str, float]]:
    """Start one copy from the device, if any number is still there."""
    away: Any = {channel: value for channel, value in values.items() if type(value) is not float}
    if not away:
        return cast("dict[str, float]", values)
    buffer, arrived = copy_to_host(torch.stack(list(away.values())))

    def fetch() -> dict[str, float]:
        arrived()
        return {**values, **dict(zip(away, buffer.tolist(), strict=True))}

    return fetch
