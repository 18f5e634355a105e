"""Runs probes beside the training: what each delivers, what each costs, and what happens when one fails.

A probe that raises has nothing more to say: its channels are "no evidence" from there on. It never decides, and it is
never a reason to stop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, SupportsFloat

logger = logging.getLogger("lbw_sim")


class Probe(Protocol):
    """Measures something beside the loss. It must leave weights, gradients, modes and random numbers as they were."""

    channels: tuple[str, ...]
    """Names of what it delivers: `update_norm`, or extra channels of the trace."""

    def before_step(self, step: int, batch: object | None) -> Mapping[str, SupportsFloat]:
        """What can be known just before the decision of `step`; {} when there is nothing.

        `batch` is what the training loop handed to `observe`. A value may be a tensor of one element on any device:
        nobody waits for it here.
        """
        ...

    def after_step(self, step: int) -> Mapping[str, SupportsFloat]:
        """What can be known just after the update of `step`: `update_norm` only, of this rank's parameters."""
        ...


class Probes:
    """All probes of a run."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._probes = list(probes)
        self._seconds = dict.fromkeys(map(_name, probes), 0.0)
        self._steps = 0
        self.channels = tuple(dict.fromkeys(channel for probe in probes for channel in probe.channels))

    def __len__(self) -> int:
        return len(self._probes)

    @property
    def cost_us(self) -> dict[str, float]:
        """Mean time on the training thread, µs a step, by probe. Work that a GPU does meanwhile is not in it."""
        return {name: 1e6 * seconds / max(1, self._steps) for name, seconds in self._seconds.items()}

    def before_step(self, step: int, batch: object | None) -> dict[str, SupportsFloat]:
        """Everything measured before the decision of a step."""
        self._steps += 1
        return self._ask("before_step", step, batch)

    def after_step(self, step: int) -> dict[str, SupportsFloat]:
        """Everything measured after the update of a step."""
        return self._ask("after_step", step)

    def _ask(self, when: str, step: int, *more: object) -> dict[str, SupportsFloat]:
        values: dict[str, SupportsFloat] = {}
        if not self._probes:
            return values
        for probe in list(self._probes):
            started = time.perf_counter()
            try:
                values.update(getattr(probe, when)(step, *more))
            except Exception as error:
                self._probes.remove(probe)
                logger.warning(
                    "lbw-sim: probe %s failed at step %d and is no evidence from here on: %s: %s",
                    _name(probe), step, type(error).__name__, error,
                )  # fmt: skip
            self._seconds[_name(probe)] += time.perf_counter() - started
        return values


def _name(probe: Probe) -> str:
    return type(probe).__name__
