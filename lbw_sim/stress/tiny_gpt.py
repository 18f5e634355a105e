"""A byte-level GPT of 34k parameters, many runs in one graph: every weight has a leading run axis.

Runs never mix: each operation works within a run, so one run's nan stays its own, and a run computes the same bits
alone and among others. It is a stress case, not a language model: post-LN breaks at ten times its best learning rate.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from lbw_sim.stress.corpus import VOCABULARY

Architecture = Literal["post_ln", "pre_ln", "pre_ln_qk_norm"]
ARCHITECTURES: tuple[str, ...] = get_args(Architecture)

LAYERS = 2
WIDTH = 32
HEADS = 2
CONTEXT = 32
BATCH = 12
"""Windows per step and run."""

_BLOCK = {
    "attention_in": (WIDTH, 3 * WIDTH),
    "attention_out": (WIDTH, WIDTH),
    "mlp_in": (WIDTH, 4 * WIDTH),
    "mlp_out": (4 * WIDTH, WIDTH),
}
SHAPES: dict[str, tuple[int, int]] = {
    "tokens": (VOCABULARY, WIDTH),
    "positions": (CONTEXT, WIDTH),
    **{f"{name}_{layer}": shape for layer in range(LAYERS) for name, shape in _BLOCK.items()},
    "head": (WIDTH, VOCABULARY),
}
"""Name and shape of every weight matrix, in the order in which they lie in a run's row of weights."""

SIZES = [rows * columns for rows, columns in SHAPES.values()]
PARAMETERS = sum(SIZES)


def initial_weights(seed: int) -> Tensor:
    """A run's weights before its first step, from its seed alone; [PARAMETERS].

    Normal with standard deviation 1/√(inputs), embeddings 1/√WIDTH; equal for all architectures.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(PARAMETERS, generator=generator)
    for name, part in zip(SHAPES, torch.split_with_sizes(flat, SIZES), strict=True):
        part.mul_(1.0 / math.sqrt(SHAPES[name][0] if name not in ("tokens", "positions") else WIDTH))
    return flat


def losses(weights: Tensor, inputs: Tensor, labels: Tensor, architecture: str) -> Tensor:
    """Mean cross-entropy of each run in nats per byte; [runs].

    `weights` [runs, PARAMETERS], `inputs` and `labels` [runs, batch, CONTEXT] of int64. The gradient of the sum is
    each run's own gradient.
    """
    runs, batch, _ = inputs.shape
    # one split, not one slice per weight: its backward joins the gradients once
    parts = torch.split_with_sizes(weights, SIZES, dim=1)
    weight = {name: part.reshape(runs, *shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}
    row = inputs + VOCABULARY * torch.arange(runs).view(runs, 1, 1)
    x = functional.embedding(row, weight["tokens"].reshape(runs * VOCABULARY, WIDTH))
    x = (x + weight["positions"].unsqueeze(1)).view(runs, batch * CONTEXT, WIDTH)
    before, after = (_same, _norm) if architecture == "post_ln" else (_norm, _same)
    for layer in range(LAYERS):
        into, out = weight[f"attention_in_{layer}"], weight[f"attention_out_{layer}"]
        up, down = weight[f"mlp_in_{layer}"], weight[f"mlp_out_{layer}"]
        x = after(x + _attention(before(x), into, out, batch, architecture))
        x = after(x + torch.bmm(torch.bmm(before(x), up).relu_(), down))
    # the residual stream of pre-LN has never been normalised; that of post-LN has just been
    x = before(x)
    logits = torch.bmm(x, weight["head"]).view(-1, VOCABULARY)
    return functional.cross_entropy(logits, labels.reshape(-1), reduction="none").view(runs, -1).mean(dim=1)


def _same(x: Tensor) -> Tensor:
    return x


def _norm(x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:])


def _attention(x: Tensor, into: Tensor, out: Tensor, batch: int, architecture: str) -> Tensor:
    runs, _, _ = x.shape
    query, key, value = torch.bmm(x, into).view(runs * batch, CONTEXT, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    if architecture == "pre_ln_qk_norm":
        query, key = _norm(query), _norm(key)
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return torch.bmm(mixed.transpose(1, 2).reshape(runs, batch * CONTEXT, WIDTH), out)


class TinyGpt(nn.Module):
    """One run's tiny GPT as a module: one parameter for each weight matrix; gives the loss of one batch."""

    def __init__(self, seed: int, architecture: str) -> None:
        super().__init__()
        self.architecture = architecture
        parts = torch.split_with_sizes(initial_weights(seed), SIZES)
        self.matrices = nn.ParameterList(
            nn.Parameter(part.clone().view(shape)) for part, shape in zip(parts, SHAPES.values(), strict=True)
        )

    @property
    def weights(self) -> Tensor:
        """All weights in one row; [1, PARAMETERS]."""
        return torch.cat([matrix.reshape(-1) for matrix in self.matrices]).unsqueeze(0)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy of inputs and labels, [batch, CONTEXT] or [1, batch, CONTEXT] each; nats per byte."""
        inputs, labels = (part if part.dim() == 3 else part.unsqueeze(0) for part in batch)
        return losses(self.weights, inputs, labels, self.architecture)[0]
