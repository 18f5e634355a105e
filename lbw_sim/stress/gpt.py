"""A plain GPT of any size, of the tiny GPT's design: no biases, norms without weights, ReLU, an untied head.

One run at a time; the tiny GPT, many runs in one graph, has arithmetic of its own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lbw_sim.stress.corpus import VOCABULARY


class GptSize(NamedTuple):
    """How large it is, and where it normalises."""

    width: int
    layers: int
    heads: int
    context: int
    norm: Literal["post", "pre"] = "pre"
    vocabulary: int = VOCABULARY

    @property
    def parameters(self) -> int:
        """Weights in all.

        >>> GptSize(width=32, layers=2, heads=2, context=32).parameters
        33792
        """
        return self.width * (2 * self.vocabulary + self.context + 12 * self.width * self.layers)


class _Block(nn.Module):
    def __init__(self, size: GptSize) -> None:
        super().__init__()
        width = size.width
        self.heads, self.post = size.heads, size.norm == "post"
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = _norm(x + self._attention(x))
            return _norm(x + self._mlp(x))
        x = x + self._attention(_norm(x))
        return x + self._mlp(_norm(x))

    def _attention(self, x: Tensor) -> Tensor:
        batch, context, width = x.shape
        parts = self.attention_in(x).view(batch, context, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: Tensor = self.attention_out(mixed.transpose(1, 2).reshape(batch, context, width))
        return out

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp_out(self.mlp_in(x).relu())
        return out


class Gpt(nn.Module):
    """Gives the mean cross-entropy of (inputs, labels), [batch, context] of int64 each; nats per token.

    Weights are normal with standard deviation 1/√(inputs), embeddings 1/√width, from the seed alone.
    """

    def __init__(self, size: GptSize, seed: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(_Block(size) for _ in range(size.layers))
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        self.post = size.norm == "post"
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """See the class."""
        inputs, labels = batch
        x = self.tokens(inputs) + self.positions.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(x if self.post else _norm(x))
        return functional.cross_entropy(logits.float().flatten(0, 1), labels.reshape(-1))


def _norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])
