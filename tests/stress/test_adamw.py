import math

import torch

from lbw_sim.stress.adamw import BETAS, EPSILON, WEIGHT_DECAY, BatchedAdamW

RATES = [1e-3, 1e-2, 0.3]
SKIPPED = {(1, 10), (1, 11), (2, 0)}
"""(run, step) pairs."""


def test_each_run_equals_torch_adamw_alone_whatever_the_others_skip():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 64, generator=generator)
    weights = start.clone()
    batched = BatchedAdamW(weights)
    alone = [torch.nn.Parameter(row.clone()) for row in start]
    optimizers = [
        torch.optim.AdamW([w], lr=lr, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
        for w, lr in zip(alone, RATES, strict=True)
    ]
    for step in range(50):
        gradient = torch.randn(3, 64, generator=generator)
        factor = 1.0 - step / 100.0
        skip = torch.tensor([(run, step) in SKIPPED for run in range(3)])
        gradient[skip] = math.nan
        for run, optimizer in enumerate(optimizers):
            if not skip[run]:
                optimizer.param_groups[0]["lr"] = RATES[run] * factor
                alone[run].grad = gradient[run].clone()
                optimizer.step()
        batched.step(gradient, torch.tensor(RATES).view(-1, 1) * factor, skip)
    assert batched.counts.view(-1).tolist() == [50.0, 48.0, 49.0]
    torch.testing.assert_close(weights, torch.stack([w.detach() for w in alone]), rtol=1e-5, atol=1e-5)


def test_a_skip_leaves_weights_moments_and_count_alone_to_the_bit_even_when_the_gradient_is_nan():
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(2, 64, generator=generator)
    optimizer = BatchedAdamW(weights)
    rate, none = torch.full((2, 1), 0.01), torch.zeros(2, dtype=torch.bool)
    optimizer.step(torch.randn(2, 64, generator=generator), rate, none)
    state = [weights, optimizer.mean, optimizer.square, optimizer.counts]
    before = [tensor.clone() for tensor in state]
    norms = optimizer.step(torch.full((2, 64), math.nan), rate, torch.tensor([True, False]))
    assert all(torch.equal(now[0], then[0]) for now, then in zip(state, before, strict=True))
    assert norms[0] == 0.0
    assert weights[1].isnan().all()


def test_the_update_norm_is_the_distance_that_the_weights_moved():
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(2, 64, generator=generator)
    before = weights.clone()
    rates = torch.rand(2, 64, generator=generator)
    norms = BatchedAdamW(weights).step(torch.randn(2, 64, generator=generator), rates, torch.tensor([False, False]))
    torch.testing.assert_close(norms, (weights - before).norm(dim=1))
