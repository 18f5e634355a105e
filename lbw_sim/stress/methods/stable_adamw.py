"""StableAdamW (Wortsman et al., arXiv 2304.13013): each tensor's learning rate is divided by max(1, RMS).

RMS = √mean(g² / max(v, ε²)), v being Adam's second moment with g in it and without its bias: how much larger the
gradient is than what it is divided by. Weight decay is scaled with the learning rate, as in the source.
"""

from __future__ import annotations

import torch

from lbw_sim.stress.method import Ask, Fitting, Method, Workplace


class _StableAdamW:
    def __init__(self, place: Workplace) -> None:
        self._place = place

    def act(self, step: int, loss: float) -> list[float]:
        optimizer = self._place.optimizer
        beta, epsilon = optimizer.defaults["betas"][1], optimizer.defaults["eps"]
        found = []
        for parameter in self._place.parameters:
            if parameter.grad is None:
                found.append(torch.ones(()))
                continue
            square = parameter.grad.float().square()
            state = optimizer.state[parameter]
            steps = float(state["step"]) + 1.0 if state else 1.0
            memory = torch.lerp(state["exp_avg_sq"].float(), square, 1.0 - beta) if state else square * (1.0 - beta)
            memory = memory.div_(1.0 - beta**steps).clamp_(min=epsilon * epsilon)
            found.append((square / memory).mean().sqrt())
        # a nan asks for nothing here: it is the gradient's, and AdamW gets it either way
        return (1.0 / torch.stack([one.to(found[0].device) for one in found]).clamp(min=1.0)).nan_to_num(1.0).tolist()


def _fit(ask: Ask) -> Fitting:
    return Fitting(hand=_StableAdamW, per_tensor=True)


METHOD = Method(
    name="stable_adamw", about="each tensor's learning rate divided by its RMS(g² / v), where above 1", fit=_fit
)
