"""Snapshots for rollback: the last few states of a training run, in a ring of bounded size.

A snapshot holds the weights and the optimizer's state, bit for bit, and whatever else it was told to hold. It is taken
between steps, never of a run in an unsafe regime. It is no checkpoint: it lives in memory and dies with the process
unless asked to travel in one.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch

from lbw_sim.errors import LiveError
from lbw_sim.wording import counted

logger = logging.getLogger("lbw_sim")

_SCHEDULED = ("lr", "momentum", "betas")
"""What torch's schedulers set in a group; the next value is computed from the present one by most."""
_MEMORY_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
_MEMORY_2 = ("memory.max", "memory.current")
"""Files of a control group, version 1 and 2: limit and use."""


class Stateful(Protocol):
    """What can go back: a model, optimizer, scheduler, gradient scaler, sampler or data loader."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


class _Snapshot(NamedTuple):
    step: int
    """The step that was about to be taken."""
    weights: list[torch.Tensor]
    states: list[dict[str, Any]]
    """The optimizer's state of each parameter; empty before the first update."""
    others: list[dict[str, Any]]
    shared: list[dict[str, Any]]
    """What each optimizer keeps in its state under a name, and not for one parameter."""
    rates: list[list[dict[str, Any]]]
    """Of each optimizer, by group, what a scheduler of `also` sets there; empty where none does."""


class Snapshots:
    """A ring of at most `keep` snapshots, one every `every_steps`; what a guard's rollback needs.

    `device`: where they lie: `"cpu"` (pinned memory when the weights are on a GPU, copied without waiting) or `"same"`
    as the weights. `also`: further objects with `state_dict` and `load_state_dict` that go back with the weights: a
    scheduler, a gradient scaler, a sampler; what is not named stays where it is, so that by default the run goes on
    with the next batch and the next learning rate. With a scheduler its optimizer's learning rate goes back: most
    compute the next one from it. So does what an optimizer keeps in its `param_groups` (Prodigy's
    `d`, schedule-free's `k`), unless it is named itself, learning rate included. `model`: when given, its buffers
    (running statistics) go back too. Of `also` all go back or, when one of them fails, none, and the guard is grounded.
    `on_rollback(step)` is called after each rollback with the step that the run is at again; if it raises, that is
    logged. With `in_checkpoints` the guard's `state_dict` holds the whole ring (rollbacks then survive a resumption);
    without, only which steps it held.

    Raises LiveError when a value makes no sense.

    >>> ring = Snapshots(every_steps=20, keep=4)
    >>> model = torch.nn.Linear(8, 8)
    >>> print(ring.plan([torch.optim.AdamW(model.parameters())]))  # doctest: +ELLIPSIS
    4 snapshots of 864 B each, one every 20 steps: 3.4 KiB in all, in CPU memory; taking one about ... ms
    """

    def __init__(
        self,
        *,
        every_steps: int = 10,
        keep: int = 8,
        device: Literal["cpu", "same"] = "cpu",
        also: Sequence[Stateful] = (),
        model: torch.nn.Module | None = None,
        on_rollback: Callable[[int], object] | None = None,
        in_checkpoints: bool = False,
    ) -> None:
        problems = [f"{name}={n!r} is below 1" for name, n in (("every_steps", every_steps), ("keep", keep)) if n < 1]
        if device not in ("cpu", "same"):
            problems.append(f"device={device!r} is not 'cpu' or 'same'")
        problems += [
            f"also: a {type(other).__name__} has no state_dict and load_state_dict"
            for other in also
            if not (hasattr(other, "state_dict") and hasattr(other, "load_state_dict"))
        ]
        if not isinstance(in_checkpoints, bool):
            problems.append(f"in_checkpoints={in_checkpoints!r} is neither True nor False")
        if problems:
            raise LiveError(f"Snapshots: {'; '.join(problems)}")
        self.every_steps, self.keep, self.in_checkpoints = every_steps, keep, in_checkpoints
        self._same_device = device == "same"
        self._also, self._model, self._on_rollback = tuple(also), model, on_rollback
        self._ring: list[_Snapshot] = []
        self._from: set[torch.device] = set()
        """Devices from which copies may be under way."""
        self.seconds = 0.0
        """Time spent taking snapshots, on the training thread."""
        self.taken = 0
        """Snapshots taken so far."""
        self.failure: LiveError | None = None
        """Why an object of `also` could not go back; None: all could."""

    @property
    def steps(self) -> list[int]:
        """Steps of the snapshots that are held, oldest first."""
        return [snapshot.step for snapshot in self._ring]

    def plan(self, optimizers: Sequence[torch.optim.Optimizer]) -> str:
        """What the ring will cost in memory and time, before it costs it, on this rank.

        An optimizer that has not stepped yet is taken to keep two numbers for each weight, as AdamW does. Raises
        LiveError when that is more than the memory that is free now, within the limits of a container or job; all ranks
        of this machine, as many as `LOCAL_WORLD_SIZE` says, share its CPU memory.
        """
        parameters = list(_parameters(optimizers))
        weights = sum(_bytes(local(p)) for p in parameters)
        if self._model is not None:
            weights += sum(_bytes(local(b)) for b in self._model.buffers())
        state = sum(_bytes(local(v)) for o in optimizers for s in o.state.values() for v in s.values() if is_tensor(v))
        one = weights + (state or 2 * weights)
        where = "the weights' own memory" if self._same_device else "CPU memory"
        took_ms = 1e3 * self._copy_s(parameters, one)
        told = (
            f"{counted(self.keep, 'snapshot')} of {_size(one)} each, one every {counted(self.every_steps, 'step')}: "
            f"{_size(one * self.keep)} in all, in {where}; taking one about {took_ms:.2g} ms"
        )
        device = local(parameters[0]).device if self._same_device else torch.device("cpu")
        if device.type == "cpu" and (ranks := _ranks_here()) > 1:
            told += f"; {ranks} ranks share this memory"
            one *= ranks
        free = _free_bytes(device)
        if free is not None and one * self.keep > 0.9 * free:
            raise LiveError(f"{told}; only {_size(free)} are free. Lower keep")
        return told

    def _copy_s(self, parameters: Sequence[torch.Tensor], size: int) -> float:
        """Seconds that a snapshot of `size` bytes takes, from copying the largest parameter once."""
        largest = max((local(parameter).detach() for parameter in parameters), key=_bytes)
        self._copied(largest, iter(()))  # the first copy also touches new memory
        started = time.perf_counter()
        self._copied(largest, iter(()))
        return (time.perf_counter() - started) * size / max(1, _bytes(largest))

    def take(self, step: int, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Copy the present state; the oldest copy of a full ring is overwritten."""
        started = time.perf_counter()
        spare = self._ring.pop(0) if len(self._ring) >= self.keep else None
        old = iter(_tensors(spare)) if spare is not None else iter(())
        with torch.no_grad():
            weights = [self._copied(local(weight), old) for weight in self._weights(optimizers)]
            states = []
            for optimizer, parameter in _parameters_of(optimizers):
                held = optimizer.state.get(parameter, {})
                states.append(
                    {
                        name: self._copied(local(value), old) if is_tensor(value) else copy.deepcopy(value)
                        for name, value in held.items()
                    }
                )
        others = [copy.deepcopy(other.state_dict()) for other in self._also]
        shared = [copy.deepcopy(_shared(optimizer)) for optimizer in optimizers]
        self._ring.append(_Snapshot(step, weights, states, others, shared, self._rates(optimizers)))
        self.seconds += time.perf_counter() - started
        self.taken += 1

    def roll_back(self, now: int, steps: int, optimizers: Sequence[torch.optim.Optimizer]) -> int | None:
        """Restore the newest snapshot that is at least `steps` older than `now`, else the oldest; forget newer ones.

        Returns the step that the run is at again; None when there is no snapshot that fits these parameters.
        """
        if not self._ring:
            return None
        old_enough = [index for index, snapshot in enumerate(self._ring) if snapshot.step <= now - steps]
        index = old_enough[-1] if old_enough else 0
        snapshot = self._ring[index]
        current = list(self._weights(optimizers))
        if [local(w).shape for w in current] != [w.shape for w in snapshot.weights]:
            # parameters were added since: there is no state of theirs to go back to
            self._ring.clear()
            return None
        with torch.no_grad():
            for weight, kept in zip(current, snapshot.weights, strict=True):
                local(weight).copy_(kept)
            for (optimizer, parameter), kept_state in zip(_parameters_of(optimizers), snapshot.states, strict=True):
                _put_back(optimizer, parameter, kept_state)
        for optimizer, kept_shared in zip(optimizers, snapshot.shared, strict=True):
            state: dict[Any, Any] = optimizer.state
            for name in _shared(optimizer):
                del state[name]
            state.update(copy.deepcopy(kept_shared))
        self._load_companions(snapshot)
        if self.failure is None:
            for optimizer, kept_rates in zip(optimizers, snapshot.rates, strict=True):
                for group, kept_rate in zip(optimizer.param_groups, kept_rates, strict=False):
                    _put_rate_back(group, kept_rate)
        del self._ring[index + 1 :]
        if self._on_rollback is not None:
            try:
                self._on_rollback(snapshot.step)
            except Exception as error:
                # the weights are back already: to give up here would leave this rank's step unlike the others'
                logger.warning("lbw-sim: on_rollback failed at step %d: %r", snapshot.step, error)
        return snapshot.step

    def _load_companions(self, snapshot: _Snapshot) -> None:
        """All of them or none: one that cannot go back would leave a schedule, say, unlike its data loader."""
        present: list[tuple[Stateful, dict[str, Any]]] = []
        try:
            for other, kept in zip(self._also, snapshot.others, strict=True):
                present.append((other, copy.deepcopy(other.state_dict())))
                other.load_state_dict(copy.deepcopy(kept))
        except Exception as error:
            self.failure = LiveError(
                f"a {type(present[-1][0]).__name__} of also= could not go back to step {snapshot.step}: {error!r}; "
                "weights and optimizer are back, as on every rank, and everything in also= stays where it was"
            )
            for other, now in reversed(present):
                try:
                    other.load_state_dict(now)
                except Exception as worse:
                    logger.warning("lbw-sim: a %s could not be put back either: %r", type(other).__name__, worse)

    def _rates(self, optimizers: Sequence[torch.optim.Optimizer]) -> list[list[dict[str, Any]]]:
        """Learning rates and momenta, of optimizers that a scheduler of `also` steers."""
        steered = {id(found) for other in self._also if (found := _steered(other)) is not None}
        return [
            [
                {name: copy.deepcopy(group[name]) for name in _SCHEDULED if name in group}
                for group in (optimizer.param_groups if id(optimizer) in steered else ())
            ]
            for optimizer in optimizers
        ]

    def state_dict(self) -> dict[str, Any]:
        """The steps that are held and, with `in_checkpoints`, what they hold."""
        packed = io.BytesIO()
        if self.in_checkpoints:
            # one value whatever it holds: a distributed checkpoint loads only what a fresh run's state has room for
            torch.save(self.held(), packed)
        return {"steps": self.steps, "ring": packed.getvalue()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a ring that travelled in a checkpoint; without one the ring starts empty."""
        ring = state.get("ring", b"")
        self.take_over(torch.load(io.BytesIO(ring), weights_only=True) if ring else [])

    def held(self) -> list[tuple[Any, ...]]:
        """All that the ring holds, for `take_over` of another one; not a copy. Waits for copies under way."""
        for device in self._from:
            torch.get_device_module(device).synchronize(device)
        return [tuple(snapshot) for snapshot in self._ring]

    def take_over(self, held: Sequence[tuple[Any, ...]], without: Collection[int] = ()) -> None:
        """Hold these snapshots, from another ring's `held`, instead of one's own; `without` those of these steps."""
        snapshots = [_Snapshot(*one) for one in held]
        self._ring = [snapshot for snapshot in snapshots if snapshot.step not in without][-self.keep :]

    def _weights(self, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[torch.Tensor]:
        yield from _parameters(optimizers)
        if self._model is not None:
            yield from self._model.buffers()

    def _copied(self, tensor: torch.Tensor, spare: Iterator[torch.Tensor]) -> torch.Tensor:
        buffer = next(spare, None)
        device = tensor.device if self._same_device else torch.device("cpu")
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype or buffer.device != device:
            pinned = tensor.device.type == "cuda" and not self._same_device
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device=device, pin_memory=pinned)
        buffer.copy_(tensor.detach(), non_blocking=True)
        if tensor.device != device and tensor.device not in self._from:
            self._from.add(tensor.device)
        return buffer


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a DTensor, sharing its memory; any other tensor as it is."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def is_tensor(value: object) -> bool:
    """Whether a value of an optimizer's state is a tensor."""
    return isinstance(value, torch.Tensor)


def _put_back(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, kept: dict[str, Any]) -> None:
    if not kept:
        optimizer.state.pop(parameter, None)
        return
    state = optimizer.state[parameter]
    for name in [name for name in state if name not in kept]:
        del state[name]
    for name, value in kept.items():
        there = state.get(name)
        if not is_tensor(value):
            state[name] = copy.deepcopy(value)
        elif is_tensor(there) and local(there).shape == value.shape:
            # in place: a captured graph or a compiled step holds this very tensor
            local(there).copy_(value)
        else:
            state[name] = value.to(local(parameter).device, copy=True)


def _shared(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What it keeps in its state for all parameters, by name."""
    state: dict[Any, Any] = optimizer.state
    return {name: value for name, value in state.items() if isinstance(name, str)}


def _steered(other: Any) -> torch.optim.Optimizer | None:
    """The optimizer of a scheduler, also of one that a library has wrapped, as accelerate does."""
    scheduler = getattr(other, "scheduler", other)
    optimizer = getattr(scheduler, "optimizer", None) if hasattr(scheduler, "get_last_lr") else None
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else None


def _put_rate_back(group: dict[str, Any], kept: dict[str, Any]) -> None:
    for name, value in kept.items():
        if is_tensor(there := group[name]) and is_tensor(value):
            # in place: a compiled step reads this very tensor
            there.copy_(value)
        else:
            group[name] = copy.deepcopy(value)


def _parameters_of(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[tuple[torch.optim.Optimizer, torch.Tensor]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield optimizer, parameter


def _parameters(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[torch.Tensor]:
    for _, parameter in _parameters_of(optimizers):
        yield parameter


def _tensors(snapshot: _Snapshot) -> Iterator[torch.Tensor]:
    yield from snapshot.weights
    for state in snapshot.states:
        yield from (value for value in state.values() if is_tensor(value))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _ranks_here() -> int:
    """Processes of this run on this machine, as torchrun tells them; 1 where nobody does."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(told) if told.isdecimal() else 1


def _free_bytes(device: torch.device) -> int | None:
    """Memory that could be had now; None when nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [
        _available_bytes(Path("/proc/meminfo")),
        _group_free_bytes(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")),
    ]
    return min((free for free in found if free is not None), default=None)


def _available_bytes(meminfo: Path) -> int | None:
    """Of the whole machine."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _group_free_bytes(membership: Path, mount: Path) -> int | None:
    """What the limits of a container or a batch job leave this process; None where there are none. Going beyond them
    ends the process, however much the machine has.

    `membership`: of this process in control groups; `mount`: where their files are.
    """
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top, files = (mount / "memory", _MEMORY_1) if controllers else (mount, _MEMORY_2)
            here = top / path.lstrip("/")
            # a container may see its own group at the top, whatever the path says
            for group in {here, *(parent for parent in here.parents if top in (parent, *parent.parents)), top}:
                with contextlib.suppress(OSError, ValueError):  # `max`: no limit
                    limit, used = (int((group / name).read_text(encoding="ascii")) for name in files)
                    found.append(limit - used + _reclaimable(group / "memory.stat"))
    return min(found, default=None)


def _reclaimable(stat: Path) -> int:
    """File cache counts as used, and is given up before anything else is."""
    words = stat.read_text(encoding="ascii").split()
    return int(dict(zip(words[::2], words[1::2], strict=True)).get("inactive_file", "0"))
