"""The main job, end to end, on real training runs that take seconds each: record, replay, choose, verify, fly.

Every number comes from runs trained on the spot. The seeds that choose a guard are not the seeds that judge it. It
reports where the guard loses; it tunes nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lbw_sim.guard import GuardSpec
from lbw_sim.plots import comparison_figure, detection_figure, outcome_figure, run_figure, save
from lbw_sim.replay import replay, verify
from lbw_sim.score import (
    DETECTION_COLUMNS,
    FALSE_ALARM_BUDGET_PER_10K,
    Column,
    RunScore,
    detection_rows,
    markdown,
    pooled,
    score_regimes,
)
from lbw_sim.stress import FAULTS, METHODS, RunPlan, RunResult, fault, same_mean_lr, train
from lbw_sim.trace import Trace, read_traces
from lbw_sim.whole_file import write_whole

CANDIDATES = ("default", "zscore", "cusum", "never")
"""Guard presets that are replayed; `never` is the control."""
ARCHITECTURES = ("post_ln", "pre_ln")
HEALTHY_LR = 5e-3
RECORDED_LRS = (3e-3, 1e-2, 3e-2, 1e-1)
FLOWN_LRS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
RECORD_SEEDS = (0, 1)
FLIGHT_SEEDS = (100, 101, 102)
STEPS, FAULT_STEPS, ONSET = 300, 400, 200
FLOWN_FAULTS = ("none", "lr_bump", "bad_labels", "nan_loss")
FLOWN_METHODS = ("adamw", "clip", "static_cap", "guard")
CONTROL = "adamw at the guard's mean lr"

Progress = Callable[[str, int, int], None]


class Flight(NamedTuple):
    """One run on a fresh seed, and the place in the tables that it fills."""

    method: str
    case: str
    """Learning rate or fault, as the tables name it."""
    lr: float
    """Nominal learning rate; for the control that of the guarded run, not its own lower one."""
    seed: int
    loss: float
    """Final validation loss, nats per byte; nan when the weights are not finite."""
    acted: bool
    """Whether a guard scaled or skipped any step."""


class Demo(NamedTuple):
    """What the demo found."""

    chosen: GuardSpec
    detection: list[dict[str, object]]
    """Rows of the detection table, candidates on the recorded runs."""
    verified_rows: int
    grid: list[Flight]
    """Fresh seeds over learning rates: every method, and AdamW at the guard's own mean learning rate."""
    faults: list[Flight]
    """Fresh seeds under faults."""
    summary: str
    """Markdown."""


def run(out: Path, progress: Progress) -> Demo:
    """Do everything and write it below `out`, which must not exist or be empty.

    `progress(what, done, total)` is called often. Raises StressError or TraceError when `out` holds an earlier demo.
    """
    traces = out / "traces"
    recorded = train(recording_plans(), traces / "recorded", lambda done, all_: progress("recording", done, all_))
    runs = read_traces(traces / "recorded")
    scores = score_candidates(judged(runs, recorded), progress)
    chosen = GuardSpec.load(choose(scores))
    detection = detection_rows(scores, seed=0, families=False)

    flown = train(flight_plans(chosen), traces / "flown", lambda done, all_: progress("flying", done, all_))
    guarded = [result for result in flown if result.plan.method == "guard" and result.plan.steps == STEPS]
    controls = train(
        [same_mean_lr(result, f"{result.run_id}_same-mean-lr") for result in guarded],
        traces / "flown",
        lambda done, all_: progress("flying the control", done, all_),
    )
    flights = read_traces(traces / "flown")
    verified_rows = 0
    for done, trace in enumerate([*runs, *flights]):
        verified_rows += verify(trace).rows
        progress("verifying", done + 1, len(runs) + len(flights))

    grid = [flight(result) for result in flown if result.plan.steps == STEPS]
    grid += [
        flight(own)._replace(method=CONTROL, loss=control.validation_loss)
        for own, control in zip(guarded, controls, strict=True)
    ]
    faults = [flight(result) for result in flown if result.plan.steps == FAULT_STEPS]
    draw(out / "figures", runs, flights, scores, grid, progress)
    chosen.save(out / "guard.toml")
    summary = summarise(chosen, detection, len(runs), verified_rows, grid, faults)
    write_whole(out / "summary.md", summary)
    return Demo(chosen, detection, verified_rows, grid, faults, summary)


def recording_plans() -> list[RunPlan]:
    """Runs to choose on: learning rates good and bad, and every fault at a healthy one; the default guard in shadow."""
    plans = []
    for seed in RECORD_SEEDS:
        for architecture in ARCHITECTURES:
            name = architecture.replace("_", "")
            for lr in RECORDED_LRS if seed == RECORD_SEEDS[0] else ():
                run_id = f"{name}_lr{lr:g}_s{seed}"
                plans.append(RunPlan(run_id=run_id, architecture=architecture, lr=lr, seed=seed, steps=STEPS))
            for kind in ("none", *FAULTS):
                injected = None if kind == "none" else fault(kind, ONSET)
                plans.append(
                    RunPlan(
                        run_id=f"{name}_{kind}_s{seed}",
                        architecture=architecture,
                        lr=HEALTHY_LR,
                        seed=seed,
                        steps=FAULT_STEPS,
                        fault=injected,
                    )
                )
    return plans


def judged(runs: Iterable[Trace], results: Sequence[RunResult]) -> list[Trace]:
    """The recorded runs on which detection can be judged: a healthy learning rate, so that only the fault is wrong.

    At a bad learning rate the whole run is an event without an onset that anybody injected; it is shown, not scored.
    """
    healthy = {result.run_id for result in results if result.plan.lr <= HEALTHY_LR}
    return [trace for trace in runs if trace.run_id in healthy]


def score_candidates(runs: Sequence[Trace], progress: Progress) -> dict[str, list[RunScore]]:
    """Replay every candidate over every run and judge its alarms by the injected labels."""
    scores: dict[str, list[RunScore]] = {}
    for place, name in enumerate(CANDIDATES):
        spec = GuardSpec.load(name)
        scores[name] = []
        for done, trace in enumerate(runs):
            decided = replay(trace, spec).columns
            scores[name].append(score_regimes(decided["regime"], trace.labels, decided["step"], trace.run_id))
            progress("replaying", place * len(runs) + done + 1, len(CANDIDATES) * len(runs))
    return scores


def choose(scores: Mapping[str, Sequence[RunScore]]) -> str:
    """Most events seen among the guards within the false-alarm budget; then fewer false alarms; then less delay.

    When none is within the budget, the one with the fewest false alarms that sees anything at all.
    """
    counts = {name: pooled(runs) for name, runs in scores.items()}
    seeing = [name for name, found in counts.items() if found.detected > 0] or list(counts)
    within = [name for name in seeing if counts[name].false_alarms_per_10k <= FALSE_ALARM_BUDGET_PER_10K]
    if not within:
        return min(seeing, key=lambda name: counts[name].false_alarms_per_10k)
    return min(
        within,
        key=lambda name: (-counts[name].detected, counts[name].false_alarms, counts[name].median_delay_rows),
    )


def flight_plans(spec: GuardSpec) -> list[RunPlan]:
    """Fresh seeds, guard active beside the baselines: over learning rates, and under faults."""
    plans = []
    for method in FLOWN_METHODS:
        for seed in FLIGHT_SEEDS:
            common: dict[str, Any] = {"seed": seed, "method": method, "spec": spec}
            plans += [
                RunPlan(run_id=f"postln_lr{lr:g}_{method}_s{seed}", lr=lr, steps=STEPS, **common) for lr in FLOWN_LRS
            ]
            for kind in FLOWN_FAULTS:
                injected = None if kind == "none" else fault(kind, ONSET)
                run_id = f"postln_{kind}_{method}_s{seed}"
                plans += [RunPlan(run_id=run_id, lr=HEALTHY_LR, steps=FAULT_STEPS, fault=injected, **common)]
    return plans


def flight(result: RunResult) -> Flight:
    """Where a run stands in the tables."""
    plan = result.plan
    fault_name = "none" if plan.fault is None else plan.fault.name
    case = f"{plan.lr:g}" if plan.steps == STEPS else fault_name
    acted = result.energy > 0.0 or result.skipped_steps > 0
    return Flight(plan.method, case, plan.lr, plan.seed, result.validation_loss, acted)


def draw(
    folder: Path,
    runs: Sequence[Trace],
    flights: Sequence[Trace],
    scores: Mapping[str, Sequence[RunScore]],
    grid: Sequence[Flight],
    progress: Progress,
) -> None:
    """The figures that the summary names."""
    fresh = f"s{FLIGHT_SEEDS[0]}"
    wanted = [trace for trace in runs if trace.run_id.startswith("postln_") and trace.run_id.endswith("_s0")]
    wanted += [trace for trace in flights if trace.run_id.endswith(f"_guard_{fresh}")]
    for done, trace in enumerate(wanted):
        figure = run_figure(trace.to_numpy(), trace.labels, trace.run_id, mode=trace.meta.mode)
        save(figure, folder / "runs" / f"{trace.run_id}.svg")
        progress("drawing", done + 1, len(wanted))
    save(detection_figure(scores, "Candidates on recorded faults", seed=0), folder / "detection.svg")
    save(
        outcome_figure(
            [f.method for f in grid],
            [f.lr for f in grid],
            [f.seed for f in grid],
            [f.loss for f in grid],
            "Post-LN byte GPT, fresh seeds",
        ),
        folder / "outcome.svg",
    )
    compared = {}
    for method in FLOWN_METHODS:
        (found,) = (trace for trace in flights if trace.run_id == f"postln_lr_bump_{method}_{fresh}")
        compared[method] = found.to_numpy()
        if found.meta.mode == "shadow":
            # its guard only watched: nothing was scaled
            compared[method]["scale"] = np.ones_like(compared[method]["scale"])
    title = f"Learning rate x 30 for 20 steps, seed {FLIGHT_SEEDS[0]}"
    save(comparison_figure(compared, title), folder / "comparison.svg")


def summarise(
    chosen: GuardSpec,
    detection: Sequence[Mapping[str, object]],
    recorded_runs: int,
    verified_rows: int,
    grid: Sequence[Flight],
    faults: Sequence[Flight],
) -> str:
    """The report, in Markdown; every sentence with a number in it is made from the numbers."""
    pooled_rows = [row for row in detection if row["group"] == "all"]
    seeds = ", ".join(map(str, FLIGHT_SEEDS))
    methods_flown = len({f.method for f in grid})
    methods = "\n".join(f"- `{name}`: {METHODS[name]}" for name in FLOWN_METHODS)
    return f"""# lbw demo

Byte-level GPT, 34k parameters, trained for real on the text of Python's own help pages. Losses in nats per byte.

## Recorded and replayed

{recorded_runs} runs, seeds {", ".join(map(str, RECORD_SEEDS))}, a guard in shadow: it decides, records, and changes
nothing. Detection is judged on the runs at healthy learning rates (at most {HEALTHY_LR:g}), by the faults injected
there. Replay scores detection, never benefit.

{markdown(pooled_rows, [c for c in DETECTION_COLUMNS if c.key != "group"])}

**Chosen: `{chosen.name}`** (fingerprint {chosen.fingerprint}): of the guards with at most
{FALSE_ALARM_BUDGET_PER_10K:g} false alarm per 10,000 clean rows, the one that saw most events. `guard.toml` holds it,
`figures/detection.svg` shows them all.

## Verified

Every run, recorded and flown, replayed through the guard in its own metadata: {verified_rows:,} rows, every decision
equal to the last bit.

## Flown on fresh seeds

Seeds {seeds}; `guard` is active, the others carry it in shadow. Final validation loss, mean over seeds (lowest to
highest); nan: the weights are no longer finite.

{methods}
- `{CONTROL}`: the whole schedule lowered to what the guard left of it, without looking at anything

{outcome_table(grid)}

{verdicts(grid, "Learning rate")}

`figures/outcome.svg` shows this table.

## Flown through faults

The same at learning rate {HEALTHY_LR:g}, a fault at step {ONSET} of {FAULT_STEPS}.

{outcome_table(faults)}

{verdicts(faults, "Fault")}

`figures/comparison.svg` shows one of these, `figures/runs/` each guarded one.

## How far to trust this

One model of 34k parameters, {len(FLIGHT_SEEDS)} seeds, {methods_flown} methods, {STEPS} to {FAULT_STEPS} steps.
The guard sees the loss and the gradient norm, and acts only after it has seen something go wrong. A short run flatters
any cut of the learning rate: that is what the control is for. Nothing here says how a guard does on your runs: record
some in shadow mode and replay them.
"""


def outcome_table(flights: Sequence[Flight]) -> str:
    """Methods by cases: mean final loss and range over seeds."""
    cases = list(dict.fromkeys(f.case for f in flights))
    rows: list[dict[str, object]] = []
    for method in dict.fromkeys(f.method for f in flights):
        row: dict[str, object] = {"method": method}
        for case in cases:
            losses = [f.loss for f in flights if f.method == method and f.case == case]
            spread = f" ({min(losses):.3f}–{max(losses):.3f})" if all(map(math.isfinite, losses)) else ""
            row[case] = f"{statistics.fmean(losses):.3f}{spread}"
        rows.append(row)
    return markdown(rows, [Column("method", "method"), *(Column(case, case) for case in cases)])


def verdicts(flights: Sequence[Flight], what: str) -> str:
    """One line per case: the guard against every other method, seed by seed."""
    lines = []
    for case in dict.fromkeys(f.case for f in flights):
        here = {(f.method, f.seed): f.loss for f in flights if f.case == case}
        against = []
        for method in dict.fromkeys(f.method for f in flights if f.method != "guard"):
            pairs = [(here["guard", seed], here[method, seed]) for seed in FLIGHT_SEEDS]
            against.append(f"`{method}`: {comparison(pairs)}")
        idle = not any(f.acted for f in flights if f.case == case and f.method == "guard")
        note = " It never acted here: nothing in loss and gradient norm told it to." if idle else ""
        lines.append(f"- {what} {case}, the guard against {'; '.join(against)}.{note}")
    return "\n".join(lines)


def comparison(pairs: Sequence[tuple[float, float]]) -> str:
    """How much lower (better) the first of each pair is, in words; a loss that is not finite loses to any that is.

    >>> comparison([(2.0, 2.5), (2.2, 2.4), (2.4, 2.3)])
    '8.3 % better (on 2 of 3 seeds)'
    >>> comparison([(2.0, 2.0), (2.1, 2.1)])
    'equal to the last bit'
    >>> comparison([(2.0, math.nan), (2.1, math.nan)])
    'alive, 2 of 2 seeds, and so better'
    """
    ours, theirs = ([loss if math.isfinite(loss) else math.inf for loss in side] for side in zip(*pairs, strict=True))
    if ours == theirs:
        return "equal to the last bit"
    better = sum(a < b for a, b in zip(ours, theirs, strict=True))
    if math.inf in theirs and math.inf not in ours:
        return f"alive, {theirs.count(math.inf)} of {len(theirs)} seeds, and so better"
    if math.inf in ours:
        return f"dead on {ours.count(math.inf)} of {len(ours)} seeds, and so worse"
    change = statistics.fmean(ours) / statistics.fmean(theirs) - 1.0
    if change <= 0.0:
        return f"{-100 * change:.1f} % better (on {better} of {len(ours)} seeds)"
    return f"{100 * change:.1f} % worse (on {len(ours) - better} of {len(ours)} seeds)"
