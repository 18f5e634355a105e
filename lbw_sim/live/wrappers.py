"""From what a training library hands out to the torch optimizer that does the update.

A hook on a wrapper never fires, or fires on micro-batches that update nothing. What steps where no hook of ours can
reach it (a DeepSpeed engine, updates inside `backward`) is refused: a guard that watches nothing is worse than none.
"""

from __future__ import annotations

import torch

from lbw_sim.errors import LiveError


def plain_optimizer(optimizer: object) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's or Lightning's wrapper; a plain one comes back as it is.

    Raises LiveError for DeepSpeed, for layer-wise optimizers that update inside `backward`, and for what is no torch
    optimizer.

    >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    >>> plain_optimizer(sgd) is sgd
    True
    """
    refuse_deepspeed(optimizer)
    libraries = {cls.__module__.partition(".")[0] for cls in type(optimizer).__mro__}
    inner = getattr(optimizer, "optimizer", None)
    if inner is not None and libraries & {"accelerate", "lightning", "pytorch_lightning", "lightning_fabric"}:
        return plain_optimizer(inner)
    if type(optimizer).__name__ == "LayerWiseDummyOptimizer":
        raise LiveError(
            "this optimizer updates layer by layer inside backward(), before the loss of the step is complete; a guard "
            "needs one optimizer.step() per update: choose the optimizer's variant that is not layer-wise"
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise LiveError(f"a guard attaches to a torch optimizer, and this is a {type(optimizer).__name__}")
    return optimizer


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
