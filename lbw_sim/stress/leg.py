"""One leg of a forked run: what a training loop asks for its first step, its starting weights and its guard.

The loop stays its owner's. A leg restores what it was given to keep and nothing else: data order and random numbers
that do not come from seed and step have to be among it, or the legs of a fork differ in more than their guard.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from lbw_sim.errors import StressError
from lbw_sim.guard import GuardSpec
from lbw_sim.live import LiveGuard, Snapshots, attach
from lbw_sim.live.snapshots import Stateful
from lbw_sim.trace.ancestry import Ancestry


class Leg:
    """The trunk of a fork or one of its branches, as its training loop sees it."""

    def __init__(
        self,
        *,
        seed: int,
        run_id: str,
        spec: GuardSpec,
        mode: Literal["active", "shadow"],
        folder: Path,
        checkpoints: Path,
        keep_steps: Collection[int] = (),
        guards: Collection[GuardSpec] = (),
        channels: Collection[str] = (),
        first_step: int = 0,
        memory: Mapping[str, Any] | None = None,
        unsafe_steps: Collection[int] = (),
        origin: Ancestry | None = None,
    ) -> None:
        """Made by `fork`."""
        self.seed = seed
        """For weights and data order: the same on all legs of a fork."""
        self.first_step = first_step
        """Step to begin at; 0 on the trunk."""
        self.run_id = run_id
        self.spec = spec
        self.guards = tuple(guards)
        """Every guard of the fork, `spec` among them on a branch: legs that choose their snapshots by these can share
        them."""
        self.channels = frozenset(channels)
        """Extra telemetry channels that some guard of the fork reads: make the probes that deliver them."""
        self.mode = mode
        self._folder, self._checkpoints = folder, checkpoints
        self._keep_steps = frozenset(keep_steps)
        self._memory = memory
        self._unsafe_steps = frozenset(unsafe_steps)
        self._ring: Snapshots | None = None
        """The trunk's, kept with its checkpoints."""
        self._held: list[tuple[Any, ...]] = []
        """What the trunk's ring held at the fork."""
        self._origin = origin
        self.live: LiveGuard | None = None
        """Its guard, once the loop has attached it."""
        self.kept: set[int] = set()

    @property
    def trunk(self) -> bool:
        """Whether this leg is the run that the branches leave."""
        return self._origin is None

    def keep(self, step: int, **what: Stateful) -> None:
        """Call at the top of every step: makes the checkpoint where a fork is to be, and does nothing elsewhere.

        Torch's random numbers, on the CPU and on every CUDA device in use, are kept too.
        """
        if step not in self._keep_steps:
            return
        state: dict[str, Any] = {name: one.state_dict() for name, one in what.items()}
        ring = [] if self._ring is None else self._ring.held()
        torch.save({"state": state, "random": _random_state(), "ring": ring}, self._file(step))
        self.kept.add(step)

    def restore(self, **what: Stateful) -> None:
        """Put what was kept into these; call once they are built. On the trunk it does nothing.

        Make probes before it where they measure the initial weights. Raises StressError when the names are not those
        that were kept.
        """
        if self._origin is None:
            return
        # written by this very process a moment ago, whatever the loop's objects hold
        found = torch.load(self._file(self.first_step), weights_only=False)
        if set(found["state"]) != set(what):
            raise StressError(
                f"{self.run_id}: keep() was given {', '.join(sorted(found['state'])) or 'nothing'} and restore() "
                f"{', '.join(sorted(what)) or 'nothing'}; give both the same names"
            )
        for name, one in what.items():
            one.load_state_dict(found["state"][name])
        self._held = found["ring"]
        torch.set_rng_state(found["random"][0])
        if found["random"][1]:
            torch.cuda.set_rng_state_all(found["random"][1])

    def attach(self, optimizer: Any, **options: Any) -> LiveGuard:
        """`lbw_sim.live.attach` with this leg's guard, which has watched the trunk so far, mode, trace and origin.

        `options` go to `attach`: probes, snapshots, scaler, provenance. Given snapshots on the trunk too, a guard that
        acts on a branch has from the start those that it would have taken on the trunk, as far back as the ring goes:
        none of a step that it called unsafe. Raises what `attach` raises.
        """
        origin = {} if self._origin is None else self._origin.provenance()
        options["provenance"] = {"seed": self.seed, **(options.get("provenance") or {}), **origin}
        live = attach(
            optimizer, self.spec, trace=self._folder, run_id=self.run_id, mode=self.mode, unproven=True, **options
        )
        if self._memory is not None:
            live.load_state_dict(self._memory)
        ring: Snapshots | None = options.get("snapshots")
        if ring is not None and self._origin is None:
            ring.take_over([])
            live.hold(ring)
            self._ring = ring
        elif ring is not None and self.mode == "active":
            ring.take_over(self._held, without=self._unsafe_steps)
        self._held = []
        self.live = live
        return live

    def _file(self, step: int) -> Path:
        return self._checkpoints / f"step-{step}.pt"


def refuse_grounded(live: LiveGuard | None, run_id: str) -> None:
    """Raises StressError when a run's guard was grounded: what followed is not its run."""
    if live is not None and live.grounded is not None:
        raise StressError(f"{run_id} is not its guard's run, which was grounded: {live.grounded}")


def _random_state() -> tuple[Any, list[Any]]:
    # a device that the loop does not use is not woken for this
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if used else []
