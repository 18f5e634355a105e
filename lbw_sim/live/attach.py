"""Puts a guard on torch optimizers, when everything about it is in order.

Whatever can be refused is refused here, before training starts; from then on the guard never raises into the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed

from lbw_sim.errors import LiveError
from lbw_sim.guard import GuardSpec
from lbw_sim.live.flight import LiveGuard, Mode, attached
from lbw_sim.live.probing import Probe, Probes
from lbw_sim.live.snapshots import Snapshots

logger = logging.getLogger("lbw_sim")


def attach(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    guard: GuardSpec | str | Path = "default",
    *,
    trace: str | Path | None = None,
    run_id: str | None = None,
    mode: Mode = "shadow",
    unproven: bool = False,
    probes: Sequence[Probe] = (),
    snapshots: Snapshots | None = None,
    scaler: torch.amp.GradScaler | None = None,
    process_group: distributed.ProcessGroup | Literal["default"] | None = "default",
    provenance: Mapping[str, str | int | float | None] | None = None,
) -> LiveGuard:
    """Put a guard on an optimizer and, when `trace` names a folder, record every step there.

    `optimizer`: one, or several that make one step of one model between them (Muon and AdamW, say); a wrapper
    (accelerate's, torchtitan's) is opened. `guard` is a spec, a preset name or the path of a TOML file.

    In `shadow` mode (the default) the guard decides and records and never acts: training is bit for bit what it would
    be without it. In `active` mode it scales the learning rate, skips updates and, with `snapshots`, rolls back; as no
    back-test report can be attached yet, that takes `unproven=True`, which is recorded.

    `probes` measure more than the loss. `scaler`: the `GradScaler` of the run, so that a step which it drops is
    recorded as dropped. `process_group`: the ranks that decide together, by default all of them where
    `torch.distributed` is initialised; None: this process alone. The first rank records. `provenance` adds facts about
    the run (a seed, say) to the trace; `{"host": None}` leaves the host name out.

    Raises LiveError when the optimizer is guarded already or steps more than once per call, when the guard asks for
    what cannot be done here, or when ranks were given different guards; SpecError for a bad spec; TraceError when
    `trace` cannot be written.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> with attach(optimizer, "default") as live:
    ...     loss = model(torch.ones(4, 2)).square().mean()
    ...     loss.backward()
    ...     live.observe(loss)
    ...     optimizer.step()
    >>> live.step, live.decision.scale
    (1, 1.0)
    """
    spec = guard if isinstance(guard, GuardSpec) else GuardSpec.load(guard)
    if mode not in ("shadow", "active"):
        raise LiveError(f"mode={mode!r} is not 'shadow' or 'active'")
    optimizers = _opened(optimizer)
    if mode == "active":
        _require_permission(spec, unproven)
        rollbacks = spec.tables["envelope"]["max_rollbacks"]
        if rollbacks > 0 and snapshots is None:
            raise LiveError(
                f"guard {spec.name!r} may roll back {rollbacks} times, and there is nothing to go back to: pass "
                f"snapshots=Snapshots(...), or set envelope.max_rollbacks = 0"
            )
        if snapshots is not None:
            logger.info("lbw-sim: %s", snapshots.plan(optimizers))
    return LiveGuard(
        optimizers,
        spec,
        trace=trace,
        run_id=run_id,
        mode=mode,
        probes=Probes(probes),
        snapshots=snapshots if mode == "active" else None,
        scaler=scaler,
        process_group=process_group,
        provenance=provenance,
    )


def _opened(optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """The torch optimizers that really step. Raises LiveError for what a guard cannot hold."""
    given = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    found: list[torch.optim.Optimizer] = []
    waiting = list(given) if isinstance(given, (list, tuple)) else [given]
    while waiting:
        candidate: Any = waiting.pop(0)
        if type(candidate).__module__.partition(".")[0] == "deepspeed":
            raise LiveError(
                f"{type(candidate).__name__} steps inside its engine, past every hook of torch: a guard on DeepSpeed "
                f"is not supported. Record the run's loss and import it, or train with DDP or FSDP2"
            )
        inner = getattr(candidate, "optimizers", None) or getattr(candidate, "optimizer", None)
        if isinstance(inner, torch.optim.Optimizer):
            waiting.insert(0, inner)
        elif isinstance(inner, (list, tuple)) and inner and all(isinstance(o, torch.optim.Optimizer) for o in inner):
            waiting[:0] = inner
        elif isinstance(candidate, torch.optim.LBFGS):
            raise LiveError("LBFGS evaluates its closure several times a step; a guard needs one loss per update")
        elif not isinstance(candidate, torch.optim.Optimizer):
            raise LiveError(
                f"a guard goes on a torch.optim.Optimizer, or on several; this is {type(candidate).__name__}"
            )
        elif candidate in attached:
            raise LiveError(f"this {type(candidate).__name__} has a guard already; detach that one first")
        else:
            found.append(candidate)
    if not found or len({id(o) for o in found}) < len(found):
        raise LiveError(f"{len(found)} optimizers were given; a guard needs at least one, and each once")
    return found


def _require_permission(spec: GuardSpec, unproven: bool) -> None:
    if not unproven:
        raise LiveError(
            f"guard {spec.name!r} ({spec.fingerprint}) would act on this run, and nothing here shows that it should: "
            "watch it in shadow mode first, or say unproven=True, which the trace will record"
        )
