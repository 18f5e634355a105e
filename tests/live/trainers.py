"""What the tests of the integrations of trainers have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lbw_sim.replay import verify
from lbw_sim.trace import read_trace

from .test_attach import EAGER, same_bits

ACTIVE: dict[str, Any] = {"mode": "active", "unproven": True}


def fails(*_: Any, **__: Any) -> None:
    """Put in the place of a part of ours."""
    raise ZeroDivisionError("a bug of ours")


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_parts_are_the_whole(folder: Path, rows: int) -> None:
    """The run `parts`, interrupted at step 9 while the guard was acting and resumed, decided as the run `whole`."""
    whole, parts = (read_trace(folder / f"run_id={name}") for name in ("whole", "parts"))
    assert len(parts.segments) == 2
    assert verify(parts).rows >= rows
    a, b = whole.to_numpy(), parts.to_numpy()
    for name in ("step", "loss", "lr", "effective_lr", "grad_norm", "regime", "posture", "scale", "energy", "reason"):
        assert a[name].tolist() == b[name].tolist(), name
    assert a["scale"][9] < 1.0, "interrupted while the guard was acting"


__all__ = ["ACTIVE", "EAGER", "assert_parts_are_the_whole", "fails", "same_bits", "weights"]
