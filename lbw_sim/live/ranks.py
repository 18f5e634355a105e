"""Many ranks, one guard: a step's numbers are combined in one all-reduce, so that all ranks decide alike.

Every rank flies its own copy of the guard on the same combined numbers. What could part them is sent along: a
checksum of the decisions so far, and whether anybody's guard is in trouble. It starts no process group and never waits
for a rank that the training itself would not wait for.
"""

from __future__ import annotations

import gc
import math
import struct
import sys
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import distributed

from lbw_sim.errors import LiveError
from lbw_sim.values import Decision

FAULTS = "faults"
"""Ranks whose guard is in trouble."""
DISAGREEMENT = "disagreement"
"""0.0 when the decisions of all ranks so far are equal."""

Group = distributed.ProcessGroup | Literal["default"] | None
"""Which ranks decide together; None: each alone."""
Number = float | torch.Tensor
"""A number that is here, or one of a single element on a device."""

_DECISION = struct.Struct("<IiidI")


def decide_together(group: Group) -> bool:
    """Whether several ranks decide together; otherwise this process decides alone."""
    if group is None or not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size(None if group == "default" else group) > 1


def refuse_together(
    group: Group,
    facts: Mapping[str, object] | None,
    refusal: Exception | None,
    *,
    outcome: str = "no rank is guarded",
    given: str = "guards",
) -> None:
    """Raise on every rank when one of them refuses, or when they were not given the same `facts`.

    `refusal`: why this rank cannot go on, None when it can; raised here as it is, on the others as a LiveError with
    this rank's words and the `outcome`. `facts`, of what was `given`: what must be alike on all ranks; None on a rank
    that refuses.
    """
    chosen = None if group == "default" else group
    told: list[Any] = [None] * distributed.get_world_size(chosen)
    # by everybody, whatever happened: a rank that raised before would leave the others waiting
    distributed.all_gather_object(told, (facts, refusal and f"{type(refusal).__name__}: {refusal}"), group=chosen)
    if refusal is not None:
        raise refusal
    if refused := [f"rank {rank} refuses: {words}" for rank, (_, words) in enumerate(told) if words]:
        raise LiveError(f"{outcome}, because {'; '.join(refused)}")
    of_each = [facts for facts, _ in told]
    if differing := sorted(name for name in of_each[0] if any(other[name] != of_each[0][name] for other in of_each)):
        apart = "; ".join(
            f"{name}: " + ", ".join(f"rank {rank} has {other[name]!r}" for rank, other in enumerate(of_each))
            for name in differing
        )
        raise LiveError(f"the ranks were given different {given}, so they would decide differently: {apart}")


class Ranks:
    """The process group as the guard sees it: who records, what is sent, what comes back."""

    def __init__(self, group: Group, channels: Sequence[str]) -> None:
        """`channels`: everything that any rank may measure besides loss and tokens, in one order on all ranks."""
        self._group = group = None if group == "default" else group
        self._channels = tuple(channels)
        self.size = distributed.get_world_size(group)
        self.records = distributed.get_rank(group) == 0
        """Whether this rank writes the trace: the first one does."""
        self.trouble = False
        """Set when this rank's guard cannot go on; all ranks hear of it with the next step's numbers."""
        self._agreed = 0
        self._joinables: list[weakref.ref[Any]] | None = None
        """Models and optimizers with a `join()`; None: not looked for yet."""
        backend = distributed.get_backend(group)
        # gloo takes numbers from the host; nccl and its kind from the device
        self._device = torch.device("cpu") if "gloo" in backend or "mpi" in backend else _current_device()

    def joining(self) -> bool:
        """Whether a `join()` is under way, of DDP or a sharded optimizer, for ranks with unequally many batches: one
        that has run out answers the all-reduces of that model there, and would take one of ours for one of them.
        """
        if self._joinables is None:
            # nobody keeps a list of them; once, so that a step costs no such search
            found = getattr(sys.modules.get("torch.distributed.algorithms.join"), "Joinable", None)
            self._joinables = [weakref.ref(thing) for thing in gc.get_objects() if found in type(thing).__mro__]
        there = (joinable() for joinable in self._joinables)
        return any(thing is not None and thing._join_config.enable for thing in there)

    def agree(self, decision: Decision) -> None:
        """Take this rank's decision into the checksum that goes along with the next step's numbers."""
        regime, posture, scale, _, reason, back = decision
        self._agreed = zlib.crc32(_DECISION.pack(self._agreed, regime, posture, scale, reason + (back << 8)))

    def send(
        self,
        losses: Sequence[tuple[Number, Number]],
        tokens: Number | None,
        values: Mapping[str, Number],
    ) -> Callable[[], dict[str, float]]:
        """Start the all-reduce of one step; the returned function waits for it and gives the combined numbers.

        The loss is weighted by tokens, `update_norm` is the root of the sum of squares, every other channel is the mean
        over the ranks that measured it. A nan on one rank is a nan on all.
        """
        # 16 bits of checksum: n·Σh² = (Σh)² exactly when all are equal, and both sides are exact in float64
        checksum = float(self._agreed & 0xFFFF)
        terms: list[Number] = [
            weighted_sum(losses), weighted_sum((1.0, weight) for _, weight in losses),
            0.0 if tokens is None else tokens, 0.0 if tokens is None else 1.0,
            1.0 if self.trouble else 0.0, checksum, checksum * checksum,
        ]  # fmt: skip
        for channel in self._channels:
            value = values.get(channel)
            terms += [0.0, 0.0] if value is None else [value * value if channel == "update_norm" else value, 1.0]
        vector = _vector(terms, self._device)
        work = distributed.all_reduce(vector, group=self._group, async_op=True)
        if self._device.type == "cpu":
            return lambda: self._received(work, vector, lambda: None)
        # the current stream waits, not the host
        work.wait()
        buffer, arrived = copy_to_host(vector)
        return lambda: self._received(None, buffer, arrived)

    def _received(
        self, work: distributed.Work | None, vector: torch.Tensor, arrived: Callable[[], object]
    ) -> dict[str, float]:
        if work is not None:
            work.wait()
        arrived()
        loss, weight, tokens, counted, faults, checksums, squares, *rest = vector.tolist()
        numbers = {FAULTS: faults, DISAGREEMENT: abs(self.size * squares - checksums * checksums)}
        if weight > 0.0:
            numbers["loss"] = loss / weight
        if counted > 0.0:
            numbers["tokens"] = tokens
        for channel, total, count in zip(self._channels, rest[::2], rest[1::2], strict=True):
            if count > 0.0:
                numbers[channel] = math.sqrt(total) if channel == "update_norm" and total >= 0.0 else total / count
        return numbers


def weighted_sum(terms: Iterable[tuple[Number, Number]]) -> Number:
    """The sum of value × weight; on the device when any of them is."""
    total: Number = 0.0
    for value, weight in terms:
        total = total + value * weight
    return total


def _vector(terms: Sequence[Number], device: torch.device) -> torch.Tensor:
    """One float64 vector on the device that the process group works on; nobody waits for it."""
    if device.type == "cpu":
        return torch.tensor([float(term) for term in terms], dtype=torch.float64)
    here = [0.0 if isinstance(term, torch.Tensor) else float(term) for term in terms]
    vector = torch.tensor(here, dtype=torch.float64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    for place, term in enumerate(terms):
        if isinstance(term, torch.Tensor):
            vector[place].copy_(term)
    return vector


def _current_device() -> torch.device:
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        raise LiveError("the process group works on an accelerator, and this process has none")
    return torch.device(kind.type, torch.accelerator.current_device_index())


def copy_to_host(vector: torch.Tensor) -> tuple[torch.Tensor, Callable[[], object]]:
    """A copy under way into pinned memory, and a function that waits for it."""
    if vector.device.type == "cpu":
        return vector, lambda: None
    buffer = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=vector.device.type == "cuda")
    buffer.copy_(vector, non_blocking=True)
    device = torch.get_device_module(vector.device)
    arrived = device.Event()
    arrived.record()
    return buffer, arrived.synchronize
