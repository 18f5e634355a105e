import math

import pytest
import torch
from torch.nn import functional

from lbw_sim.stress.tiny_gpt import (
    ARCHITECTURES,
    CONTEXT,
    HEADS,
    PARAMETERS,
    SHAPES,
    SIZES,
    WIDTH,
    initial_weights,
    losses,
)


def batch(runs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 128, (2, runs, 3, CONTEXT), generator=generator)


def plain_loss(flat, inputs, labels, architecture):
    """The same model for one run, written without the run axis and without fused attention."""
    w = {name: part.view(shape) for (name, shape), part in zip(SHAPES.items(), flat.split(SIZES), strict=True)}

    def layer_norm(x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def attention(x, layer):
        q, k, v = (x @ w[f"attention_in_{layer}"]).chunk(3, dim=-1)
        heads = []
        for part in zip(*(t.chunk(HEADS, dim=-1) for t in (q, k, v)), strict=True):
            q_head, k_head, v_head = part
            if architecture == "pre_ln_qk_norm":
                q_head, k_head = layer_norm(q_head), layer_norm(k_head)
            score = q_head @ k_head.transpose(1, 2) / math.sqrt(WIDTH // HEADS)
            future = torch.ones(CONTEXT, CONTEXT).triu(1).bool()
            heads.append(score.masked_fill(future, -math.inf).softmax(-1) @ v_head)
        return torch.cat(heads, dim=-1) @ w[f"attention_out_{layer}"]

    def mlp(x, layer):
        return (x @ w[f"mlp_in_{layer}"]).relu() @ w[f"mlp_out_{layer}"]

    x = w["tokens"][inputs] + w["positions"]
    for layer in range(2):
        if architecture == "post_ln":
            x = layer_norm(x + attention(x, layer))
            x = layer_norm(x + mlp(x, layer))
        else:
            x = x + attention(layer_norm(x), layer)
            x = x + mlp(layer_norm(x), layer)
    if architecture != "post_ln":
        x = layer_norm(x)
    return functional.cross_entropy((x @ w["head"]).view(-1, 128), labels.reshape(-1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradient_of_each_run_equal_the_plain_model(architecture):
    # in float64, so that rounding does not put a ReLU on its other side
    weights = torch.stack([initial_weights(seed) for seed in (0, 1)]).double().requires_grad_()
    inputs, labels = batch(2)
    loss = losses(weights, inputs, labels, architecture)
    loss.sum().backward()
    for run in range(2):
        flat = weights[run].detach().clone().requires_grad_()
        expected = plain_loss(flat, inputs[run], labels[run], architecture)
        expected.backward()
        torch.testing.assert_close(loss[run], expected)
        torch.testing.assert_close(weights.grad[run], flat.grad)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_computes_the_same_bits_alone_and_beside_a_run_of_nan(architecture):
    inputs, labels = batch(3)

    def gradient(rows, part):
        leaf = rows.clone().requires_grad_()
        loss = losses(leaf, inputs[part], labels[part], architecture)
        loss.sum().backward()
        return loss.detach()[0], leaf.grad[0]

    rows = torch.stack([initial_weights(0), torch.full((PARAMETERS,), math.nan), initial_weights(2)])
    together, alone = gradient(rows, slice(0, 3)), gradient(rows[:1], slice(0, 1))
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])


def test_the_model_has_34_thousand_parameters_and_starts_near_uniform_loss():
    assert PARAMETERS == 33_792
    inputs, labels = batch(1)
    loss = losses(initial_weights(0).view(1, -1), inputs, labels, "post_ln")
    assert math.log(128) - 0.2 < loss.item() < math.log(128) + 1.0


def test_initial_weights_follow_from_the_seed_alone():
    assert torch.equal(initial_weights(5), initial_weights(5))
    assert not torch.equal(initial_weights(5), initial_weights(6))
