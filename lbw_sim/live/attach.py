"""Puts a guard on torch optimizers, when everything about it is in order.

Whatever can be refused is refused here, before training starts; from then on the guard never raises into the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lbw_sim.errors import LiveError
from lbw_sim.guard import GuardSpec
from lbw_sim.guard.evidence import BacktestReport, require_backtest
from lbw_sim.live.actuator import Actuator
from lbw_sim.live.flags import flag
from lbw_sim.live.live_guard import LiveGuard, Mode, attached
from lbw_sim.live.probing import Probe, Probes
from lbw_sim.live.ranks import Group, decide_together, refuse_together
from lbw_sim.live.sinks import Sink
from lbw_sim.live.snapshots import Snapshots
from lbw_sim.live.wrappers import plain_optimizers
from lbw_sim.trace.provenance import Fact, Provenance

logger = logging.getLogger("lbw_sim")


def attach(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    guard: GuardSpec | str | Path = "default",
    *,
    trace: str | Path | None = None,
    run_id: str | None = None,
    mode: Mode = "shadow",
    backtest: BacktestReport | str | Path | None = None,
    unproven: bool = False,
    probes: Sequence[Probe] = (),
    snapshots: Snapshots | None = None,
    scaler: torch.amp.GradScaler | None = None,
    process_group: Group = "default",
    mirror: Sequence[Sink] = (),
    provenance: Mapping[str, Fact] | None = None,
) -> LiveGuard:
    """Put a guard on an optimizer and, when `trace` names a folder, record every step there.

    `optimizer`: one, or several that make one step of one model between them (Muon and AdamW, say); a wrapper
    (accelerate's, torchtitan's) is opened. `guard` is a spec, a preset name or the path of a TOML file.

    In `shadow` mode (the default) the guard decides and records and never acts: training is bit for bit what it would
    be without it. In `active` mode it scales the learning rate, skips updates and, with `snapshots`, rolls back. That
    takes `backtest`, the report that `lbw backtest` wrote for this very guard, or `unproven=True` said aloud; the trace
    records which.

    `probes` measure more than the loss. `scaler`: the `GradScaler` of the run, so that a step which it drops is
    recorded as dropped. `process_group`: the ranks that decide together, by default all of them where
    `torch.distributed` is initialised; None: this process alone. The first rank records. `mirror`: sinks of
    `lbw_sim.live.sinks`, which show regime, scale and energy on dashboards. `provenance` adds facts about the run (a
    seed, say) to the trace; `{"host": None}` leaves the host name out.

    Raises LiveError when the optimizer is guarded already or steps more than once per call, when the guard asks for
    what cannot be done here, or when ranks were given different guards; EvidenceError when the report is damaged or of
    another guard; SpecError for a bad spec; TraceError when `trace` cannot be written. What one rank refuses, all
    refuse: the others raise LiveError with that rank's words.

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
    live: LiveGuard | None = None
    refusal: Exception | None = None
    try:
        live = _prepared(
            optimizer, guard, trace=trace, run_id=run_id, mode=mode, backtest=backtest, unproven=unproven,
            probes=probes, snapshots=snapshots, scaler=scaler, process_group=process_group, mirror=mirror,
            provenance=provenance,
        )  # fmt: skip
    except Exception as error:
        refusal = error
    if decide_together(process_group):
        facts = {"guard": live.spec.fingerprint, "mode": mode, "run_id": run_id} if live is not None else None
        refuse_together(process_group, facts, refusal)
    if refusal is not None:
        raise refusal
    assert live is not None
    live.take_off()
    return live


def _prepared(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    guard: GuardSpec | str | Path,
    *,
    mode: Mode,
    backtest: BacktestReport | str | Path | None,
    unproven: bool,
    probes: Sequence[Probe],
    snapshots: Snapshots | None,
    provenance: Mapping[str, Fact] | None,
    **more: Any,
) -> LiveGuard:
    """The guard, all but on its optimizers. Raises whatever this rank refuses."""
    spec = guard if isinstance(guard, GuardSpec) else GuardSpec.load(guard)
    if mode not in ("shadow", "active"):
        raise LiveError(f"mode={mode!r} is not 'shadow' or 'active'")
    flag(unproven, "unproven")
    optimizers = plain_optimizers(optimizer)
    for one in optimizers:
        if one in attached:
            raise LiveError(f"this {type(one).__name__} has a guard already; detach that one first")
    permission = _permission(spec, mode, backtest, unproven)
    if mode == "active":
        if driven := [type(one).__name__ for one in optimizers if not Actuator(one).can_scale]:
            raise LiveError(
                f"{', '.join(driven)} has no 'lr' in its param_groups that a guard could scale (a relative step, say): "
                "give it a learning rate, or record it in shadow mode"
            )
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
        mode=mode,
        probes=Probes(probes),
        snapshots=snapshots if mode == "active" else None,
        provenance={**permission, **(provenance or {})},
        **more,
    )


def _permission(
    spec: GuardSpec, mode: Mode, backtest: BacktestReport | str | Path | None, unproven: bool
) -> Provenance:
    """What the trace will say about why this guard may act. Raises LiveError when nothing says that it may."""
    # checked in shadow mode too: whoever names a report means it, and would rather hear of a slip now
    report = None if backtest is None else require_backtest(spec, backtest)
    if mode == "shadow":
        return {}
    if report is not None:
        return {"backtest": report.fingerprint, "backtest_runs": len(report.runs)}
    if not unproven:
        raise LiveError(
            f"guard {spec.name!r} ({spec.fingerprint}) would act on this run, and nothing here shows what it does: "
            "back-test it (lbw backtest GUARD TRACES -o guard.backtest.json) and pass backtest=, watch it in shadow "
            "mode first, or say unproven=True, which the trace will record"
        )
    return {"unproven": 1}
