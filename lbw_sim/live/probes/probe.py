"""What a probe is. It refuses nothing and catches nothing: `attach` turns one that raises into "no evidence"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

Values = Mapping[str, float | Tensor]
"""What was measured now, by channel: a number, or a tensor of one element on any device, never waited for. A channel
that is left out was not measured."""


class Probe(Protocol):
    """Measures something at some steps. Over several ranks it measures at the same steps on all of them."""

    channels: tuple[str, ...]
    """Names of what it delivers. `grad_norm` and `update_norm` are base columns of the trace, others extra ones.
    `attach` averages a channel over the ranks that measured it; `update_norm` becomes the root of summed squares."""

    def before_step(self, step: int, batch: object | None) -> Values:
        """Just before the decision of `step`: the weights as they now are, gradients in place, `batch` the step's."""
        ...

    def after_step(self, step: int) -> Values:
        """Just after the update of `step`. Only `update_norm` is delivered here."""
        ...
