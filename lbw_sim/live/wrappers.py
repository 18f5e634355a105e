"""From what a training library hands out to the torch optimizer that does the update.

A hook on a wrapper never fires, or fires on micro-batches that update nothing. What steps where no hook of ours can
reach it (a DeepSpeed engine, updates inside `backward`) is refused: a guard that watches nothing is worse than none.
"""

from __future__ import annotations

from typing import Any

import torch

from lbw_sim.errors import LiveError


def plain_optimizers(given: object) -> list[torch.optim.Optimizer]:
    """The torch optimizers inside one optimizer, a sequence of them, or a library's wrapper (accelerate, Lightning,
    torchtitan), in order.

    Raises LiveError for DeepSpeed, LBFGS, layer-wise optimizers that update inside `backward`, for what is no torch
    optimizer, and when nothing is left or something comes twice.

    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> plain_optimizers(sgd) == plain_optimizers([sgd]) == [sgd]
    True
    """
    found: list[torch.optim.Optimizer] = []
    waiting = list(given) if isinstance(given, (list, tuple)) else [given]
    while waiting:
        candidate: Any = waiting.pop(0)
        refuse_deepspeed(candidate)
        inner = getattr(candidate, "optimizers", None) or getattr(candidate, "optimizer", None)
        if isinstance(inner, torch.optim.Optimizer):
            waiting.insert(0, inner)
        elif isinstance(inner, (list, tuple)) and inner and all(isinstance(o, torch.optim.Optimizer) for o in inner):
            waiting[:0] = inner
        elif type(candidate).__name__ == "LayerWiseDummyOptimizer":
            raise LiveError(
                "this optimizer updates layer by layer inside backward(), before the loss of the step is complete; a "
                "guard needs one optimizer.step() per update: choose the optimizer's variant that is not layer-wise"
            )
        elif isinstance(candidate, torch.optim.LBFGS):
            raise LiveError("LBFGS evaluates its closure several times a step; a guard needs one loss per update")
        elif not isinstance(candidate, torch.optim.Optimizer):
            raise LiveError(
                f"a guard goes on a torch.optim.Optimizer, or on several; this is {type(candidate).__name__}"
            )
        else:
            found.append(candidate)
    if not found or len({id(o) for o in found}) < len(found):
        raise LiveError(f"{len(found)} optimizers were given; a guard needs at least one, and each once")
    return found


def refuse_deepspeed(thing: object) -> None:
    """Raise LiveError when `thing` (an engine, an optimizer, a strategy, a plugin) is DeepSpeed's or wraps it."""
    for cls in type(thing).__mro__:
        # by name: DeepSpeed need not be installed to be recognised
        if "deepspeed" in cls.__module__.split(".") or cls.__name__.startswith("DeepSpeed"):
            raise LiveError(
                f"{cls.__name__} is DeepSpeed's: its engine scales, clips and steps inside itself, where this guard "
                "can neither see nor act. Guard a run on DDP or FSDP instead; a DeepSpeed run can still be judged "
                "afterwards from its logs: lbw import"
            )
