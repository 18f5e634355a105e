"""Byte-level text as batches, and the session of any model that reads it. It trains nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lbw_sim.stress.corpus import Codes, Corpus, corpus, random_labels, training_windows, validation_windows
from lbw_sim.stress.faults import Fault
from lbw_sim.trace.provenance import Provenance

CANARY_SEED = 10_000
"""Added to a run's seed for its canary batch, which is drawn from the same text."""
VALIDATION_BATCHES = 20

Pair = tuple[Tensor, Tensor]
"""Inputs and labels, [batch, context] of int64."""


class ByteText:
    """Batches of one text; a fault may change labels or text."""

    def __init__(self, text: Corpus, seed: int, batch: int, context: int, device: str = "cpu") -> None:
        self.text = text
        self._now = text
        self._seed, self._batch, self._context, self._device = seed, batch, context, device

    @property
    def facts(self) -> Provenance:
        """Name and digest of the text."""
        return {"text": self.text.name, "text_digest": self.text.digest}

    def batch(self, step: int, fault: Fault | None = None) -> Pair:
        """The batch of a step. A text that a fault switches to is also the one that is validated on afterwards."""
        drawn_step = step
        if fault is not None:
            if fault.corpus is not None and step >= fault.onset_step:
                self._now = corpus(fault.corpus)
            if fault.repeats_batch and fault.active(step):
                drawn_step = fault.onset_step
        windows = training_windows(self._now, self._seed, drawn_step, self._batch, self._context + 1)
        if fault is not None and fault.random_labels and fault.active(step):
            # a label is the next input as well, as in the fleet: what is random is the text, but for its first byte
            windows[:, 1:] = random_labels(self._seed, step, self._batch, self._context)
        return self._pair(windows)

    def canary_batch(self) -> Pair:
        """The first batch that another seed would draw."""
        return self._pair(training_windows(self.text, CANARY_SEED + self._seed, 0, self._batch, self._context + 1))

    def validation(self) -> Iterator[Pair]:
        """Windows spread evenly over the part that training does not touch, the same for every run."""
        windows = validation_windows(self._now, VALIDATION_BATCHES * self._batch, self._context + 1)
        for part in np.split(windows, VALIDATION_BATCHES):
            yield self._pair(part)

    def _pair(self, windows: Codes) -> Pair:
        codes = torch.from_numpy(windows).to(self._device).long()
        return codes[:, :-1], codes[:, 1:]


class TextSession:
    """A model that gives the loss of a pair, and its text."""

    unit = "byte"

    def __init__(self, model: nn.Module, text: ByteText, tokens_per_step: int, facts: Provenance | None = None) -> None:
        self.model = model
        self.tokens_per_step = tokens_per_step
        self._text = text
        self.facts: Provenance = {**text.facts, **(facts or {})}

    def batch(self, step: int, fault: Fault | None = None) -> Pair:
        """See `Session`."""
        return self._text.batch(step, fault)

    def canary_batch(self) -> Pair:
        """See `Session`."""
        return self._text.canary_batch()

    def loss(self, batch: Pair) -> Tensor:
        """See `Session`."""
        loss: Tensor = self.model(batch)
        return loss

    def validation_loss(self) -> float:
        """See `Session`."""
        total, count = torch.zeros(()), 0
        with torch.no_grad():
            for pair in self._text.validation():
                total += self.loss(pair).float().cpu()
                count += 1
        return total.item() / count
