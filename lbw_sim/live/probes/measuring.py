"""What several probes need: to look at a model without leaving a trace on it, and at tensors that ranks share.

It decides neither what is measured nor when.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lbw_sim.errors import LiveError
from lbw_sim.live.snapshots import local


def every(every_steps: int, who: str) -> int:
    """The distance between measurements, checked. Raises LiveError."""
    if every_steps < 1 or every_steps != int(every_steps):
        raise LiveError(f"{who}: every_steps={every_steps!r} is not a whole number of at least 1")
    return int(every_steps)


_LARGE_BYTES = 2**20
_versions: weakref.WeakKeyDictionary[nn.Module, dict[str, int]] = weakref.WeakKeyDictionary()
"""Of the large buffers of a module, when they were first met; -1: something writes it."""


class _Buffer(NamedTuple):
    module: nn.Module
    name: str
    there: Tensor
    version: int
    kept: Tensor | None
    """None: a copy would be too large for something that nothing was seen to write."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate `model` inside: no gradients, evaluation mode; afterwards modes, buffers, random numbers are as before.

    In evaluation mode BatchNorm reads its running statistics and leaves them alone; a model that counts or averages in
    every forward pass gets its buffers back, those of more than a megabyte from the second time on that something has
    written them in place. Neither what it keeps in plain attributes nor Python's and NumPy's own random numbers are
    restored. A model compiled by `torch.compile` is compiled once more, for evaluation. Where a whole training step
    stands under `torch.autocast`, its cache of cast weights is neither read nor filled: it would give the weights as
    they were before a probe moved them, or give training weights that have no gradient.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        _Buffer(module, name, there, there._version, _copied(module, name, there))
        for module, _ in modes
        for name, there in module._buffers.items()
        if there is not None and not there.is_inference()
    ]
    # the states of the generators live on the host: reading them does not wait for the device
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    cached = torch.is_autocast_cache_enabled()
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            torch.set_autocast_cache_enabled(False)
            for module, _ in modes:
                module.training = False
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
            for module, training in modes:
                module.training = training
            for module, name, there, version, kept in buffers:
                module._buffers[name] = there
                # only where it was written to: a graph that waits for its backward may hold the others
                if kept is not None and there._version != version:
                    there.copy_(kept)


def _copied(module: nn.Module, name: str, buffer: Tensor) -> Tensor | None:
    """Packed weights are as large as a model, and nothing writes them."""
    if buffer.nbytes > _LARGE_BYTES:
        met = _versions.setdefault(module, {})
        if met.setdefault(name, buffer._version) != buffer._version:
            met[name] = -1
        if met[name] != -1:
            return None
    return buffer.detach().clone()


def numbers_in(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: the shard of a DTensor, the stored values of a sparse one, else all of it."""
    tensor = tensor.detach()
    return tensor.coalesce().values() if tensor.is_sparse else local(tensor)


def median_size(
    model: nn.Module, size: Callable[[Tensor], Tensor], given: float | None, *, who: str, argument: str
) -> Tensor:
    """The median over weight matrices of their size, those left out whose size is 0; or the number that was `given`.

    Matrices are the trained parameters of two dimensions and more, of sharded ones this rank's part. `who`, `argument`:
    the probe, and what it calls the given number. Raises LiveError when no matrix is trained, or when that number is
    not positive.
    """
    if given is not None:
        if not (0.0 < given < math.inf):
            raise LiveError(f"{who}: {argument}={given} is not a positive number")
        return torch.tensor(given, dtype=torch.float64)
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2 and local(p).numel() > 0]
    if not matrices:
        raise LiveError(f"{who}: the model trains no weight matrix; give {argument}=... yourself")
    sizes = torch.stack([size(matrix.detach()).to(matrices[0].device) for matrix in matrices])
    # zeros become nan, which the median leaves out
    return torch.where(sizes > 0.0, sizes, torch.nan).nanmedian()


def root_mean_square(tensor: Tensor) -> Tensor:
    """Root mean square of the elements that this rank holds."""
    return local(tensor).double().square().mean().sqrt()


def copies(tensor: Tensor) -> int:
    """How many ranks hold the same part of this tensor: 1 for one process or a fully sharded DTensor.

    A plain tensor counts as replicated on every rank, as data parallelism keeps it.
    """
    placements = getattr(tensor, "placements", None)
    if placements is not None:
        mesh = tensor.device_mesh  # type: ignore[attr-defined]
        return math.prod(mesh.size(axis) for axis, placed in enumerate(placements) if placed.is_replicate())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def norm_share(parts: Sequence[Tensor], copied: Sequence[int]) -> Tensor:
    """This rank's share of the Euclidean norm of everything that `parts` are parts of; a tensor of one element.

    `copied[i]`: on how many ranks part i lies. The root of the shares' summed squares over all ranks is the whole norm:
    a part that n ranks hold is divided by √n. No parts give 0. Waits for nothing.
    """
    by_device: dict[torch.device, list[tuple[Tensor, float]]] = {}
    for tensor, ranks in zip(parts, copied, strict=True):
        by_device.setdefault(tensor.device, []).append((tensor, ranks**-0.5))
    totals: list[Tensor] = []
    for group in by_device.values():
        norms = torch._foreach_norm([tensor for tensor, _ in group])
        # multiplied by numbers that the host knows: a tensor of them would have to be sent
        torch._foreach_mul_(norms, [weight for _, weight in group])
        totals.append(torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms])))
    if not totals:
        return torch.zeros((), dtype=torch.float64)
    first = totals[0].device
    whole: Tensor = torch.linalg.vector_norm(torch.stack([total.to(first, non_blocking=True) for total in totals]))
    return whole


def gradient_scale(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """What a gradient scaler has multiplied the gradients by, where the optimizer is to divide them itself, in its
    fused step; None: they are as they are."""
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    return scale


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The optimizer's parameters as they now are: groups may be added in mid-run."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
