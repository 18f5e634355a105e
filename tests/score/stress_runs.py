"""Made-up suites with known answers, for the tests of judgement, page and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lbw_sim.score.stress_results import CONTROLS, Suite, SuiteFacts, SuiteRun, WorkloadFacts

GUARD = "guard:x"
RATES = (0.01, 0.1, 1.0)
SEEDS = (400, 401, 402)
INITIAL = 5.0
nan = math.nan


def run(
    method: str, lr: float, seed: int, loss: float, *, workload: str = "tiny", scale: float = 1.0, control_of: str = "",
    to_target: float = math.inf, retrained: int = 0,
) -> SuiteRun:  # fmt: skip
    """One run of 100 steps and 1,000 tokens."""
    return SuiteRun(
        workload=workload, method=method, control_of=control_of, lr=lr, seed=seed,
        run_id=f"{workload}-{method}-{control_of}-{lr}-{seed}", steps=100, tokens=1000, initial_loss=INITIAL,
        final_loss=loss, train_loss=loss, tokens_to_target=to_target, seconds=2.0, cpu_seconds=1.5, mean_lr=lr / 2.0,
        mean_effective_lr=scale * lr / 2.0, control_energy=100.0 * (1.0 - scale) ** 2,
        control_active_steps=100 * (scale < 1.0), regime_switches=2, stress_mode_steps=3, mean_scale=scale,
        min_scale=scale, skipped_steps=0, rollbacks=0, retrained_steps=retrained,
    )  # fmt: skip


def suite(runs: Iterable[SuiteRun], *, fine_tuning: bool = False, planned: int | None = None) -> Suite:
    """A suite of these runs."""
    rows = tuple(runs)
    names = sorted({row.workload for row in rows})
    methods = {row.method: f"about {row.method}" for row in rows if not row.control_of}
    facts = SuiteFacts(
        preset="made up", about="Runs that never happened.",
        workloads=tuple(
            WorkloadFacts(name=name, about=f"{name} & <odd>", reference_lr=0.01, unit="byte", parameters=1000,
                          fine_tuning=fine_tuning) for name in names
        ),
        methods=methods, controlled=tuple(name for name in methods if name.startswith("guard")), machine="a machine",
        processes=1, planned_runs=len(rows) if planned is None else planned, finished_runs=len(rows),
    )  # fmt: skip
    return Suite(facts, rows)


def grid(
    *, guard: tuple[float, ...] = (2.0, 2.01, 2.02), adamw: tuple[float, ...] = (2.0, 3.0, 4.0),
    control: tuple[float, ...] = (2.0, 3.0, 4.0), playback: tuple[float, ...] = (2.0, 3.0, 4.0),
    seeds: tuple[int, ...] = SEEDS, workload: str = "tiny",
) -> list[SuiteRun]:  # fmt: skip
    """AdamW, clipping, a guard and its controls; the losses over `RATES`, a hundredth apart from seed to seed."""
    rows = []
    for place, seed in enumerate(seeds):
        for at, lr in enumerate(RATES):
            more = 0.01 * place
            scale = (1.0, 0.5, 0.1)[at]
            target = {"to_target": 900.0} if at == 0 else {}
            rows.append(run("adamw", lr, seed, adamw[at] + more, workload=workload, **target))
            rows.append(run("clip:1.0", lr, seed, adamw[at] + more, workload=workload, **target))
            rows.append(run(GUARD, lr, seed, guard[at] + more, workload=workload, scale=scale, to_target=450.0))
            for name in CONTROLS:
                loss = (playback if name == "playback" else control)[at] + more
                rows.append(run(name, lr, seed, loss, workload=workload, scale=scale, control_of=GUARD))
    return rows
