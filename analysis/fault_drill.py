"""Faults and learning rates on the tiny GPT, flown for real through `attach`: what each guard saves and what it costs.

Writes docs/results/fault_drill.md and a figure beside it. Run from the repository root, it can be stopped and goes on
where it was: python analysis/fault_drill.py [--work FOLDER] [--processes 2]
Seeds below 10 chose the guards' parameters; the drill flies others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import torch

from lbw_sim.guard import GuardSpec
from lbw_sim.stress import faults
from lbw_sim.stress.corpus import VOCABULARY, corpus
from lbw_sim.stress.faults import Fault
from lbw_sim.stress.flown import fly
from lbw_sim.stress.plan import RunPlan
from lbw_sim.values import Posture
from lbw_sim.wording import counted

SEEDS = (820, 821, 822)
METHODS = (
    "adamw", "clip", "static_cap", "default", "canary_rollback", "paired_rollback", "adaptive_cap", "slow_start",
)  # fmt: skip
DRILLED = METHODS[:-1]
"""Methods of the fault part: after its first 30 steps `slow_start` is `paired_rollback`."""
GUARDS = METHODS[2:]
FEEDBACK = ("canary_rollback", "paired_rollback", "adaptive_cap", "slow_start")
"""Guards whose decisions on a learning rate that is too high depend on what the run shows."""
DRILLED_GUARDS = DRILLED[2:]
NAMES = {"adamw": "AdamW", "clip": "clip 1.0"}
LR, STEPS, ONSET = 5e-3, 400, 200
RATES, RATE_STEPS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), 300
SHOWN = {"post_ln": "post-LN", "pre_ln": "pre-LN"}
ARCHITECTURES = tuple(SHOWN)
FAULTS: dict[str, Callable[[], Fault | None]] = {
    "none": lambda: None,
    "lr × 10": lambda: faults.lr_bump(ONSET, 10.0),
    "lr × 30": lambda: faults.lr_bump(ONSET, 30.0),
    "8 bad batches": lambda: faults.bad_labels(ONSET),
    "nan loss": lambda: faults.nan_loss(ONSET),
    "nan gradient": lambda: faults.nan_gradient(ONSET),
    "repeated batch": lambda: faults.repeated_batch(ONSET),
    "gradient noise": lambda: faults.gradient_noise(ONSET),
    "data switch": lambda: faults.data_switch(ONSET),
    "warm restart": lambda: faults.warm_restart(ONSET),
}
BENIGN = ("none", "data switch", "warm restart")
LIMIT = 0.005
"""How far an active guard may be from AdamW in a run without a fault, as a share of the loss."""
WORST = math.log(VOCABULARY)
"""Loss of a run that knows nothing; stands for nan in the sensitivity."""
TARGET = Path("docs/results/fault_drill.md")


class Job(NamedTuple):
    """One run of the drill."""

    part: str
    """`faults` or `rates`."""
    architecture: str
    case: str
    """A key of FAULTS, or a learning rate."""
    method: str
    seed: int
    mode: str = "active"

    @property
    def key(self) -> str:
        return "|".join(map(str, self))


class Outcome(NamedTuple):
    """What is kept of a run."""

    loss: float
    rollbacks: int
    skips: int
    energy: float
    alarmed: int
    """Steps on which the guard damped, skipped or rolled back."""
    same_bits: int
    """Shadow only: 1 when the weights are those of the run without a guard, to the bit; -1: not asked."""
    seconds: float


def jobs() -> list[Job]:
    """Every run, the short part first."""
    made = [
        Job("rates", "post_ln", f"{rate:g}", method, seed) for rate in RATES for method in METHODS for seed in SEEDS
    ]
    for architecture in ARCHITECTURES:
        for case in FAULTS:
            made += [Job("faults", architecture, case, method, seed) for method in DRILLED for seed in SEEDS]
        made += [Job("faults", architecture, "none", m, SEEDS[0], "shadow") for m in DRILLED if m in GUARDS]
    return made


def plan_of(job: Job) -> RunPlan:
    """The run without its guard."""
    rates = job.part == "rates"
    return RunPlan(
        run_id=job.key,
        architecture=job.architecture,
        lr=float(job.case) if rates else LR,
        seed=job.seed,
        steps=RATE_STEPS if rates else STEPS,
        method="clip" if job.method == "clip" else "adamw",
        fault=None if rates else FAULTS[job.case](),
    )


def flown(job: Job) -> Outcome:
    """Fly one run; in a process of its own, on one thread."""
    torch.set_num_threads(1)
    started = time.process_time()
    plan = plan_of(job)
    guard = job.method if job.method in GUARDS else None
    run = fly(plan, guard, mode="shadow" if job.mode == "shadow" else "active")
    seconds = time.process_time() - started
    same = int(torch.equal(run.weights, fly(plan).weights)) if job.mode == "shadow" else -1
    postures = [decision.posture for decision in run.decisions]
    return Outcome(
        loss=run.validation_loss,
        rollbacks=len(run.rolled_back_to),
        skips=postures.count(Posture.SKIP),
        energy=run.decisions[-1].energy if run.decisions else 0.0,
        alarmed=sum(posture not in (Posture.HOLD, Posture.RELEASE) for posture in postures),
        same_bits=same,
        seconds=seconds,
    )


def fingerprints() -> dict[str, str]:
    """What the stored outcomes belong to: another guard or text makes them worthless."""
    guards = {name: GuardSpec.load(name).fingerprint for name in GUARDS}
    return guards | {"prose": corpus("prose").digest, "code": corpus("code").digest, "torch": torch.__version__}


def collect(work: Path, processes: int) -> dict[Job, Outcome]:
    """Fly what is not there yet; one line of JSON per run, written as it ends."""
    work.mkdir(parents=True, exist_ok=True)
    ledger = work / "outcomes.jsonl"
    stamp = fingerprints()
    done: dict[str, Outcome] = {}
    if ledger.exists():
        for line in ledger.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            method = entry["key"].split("|")[3]
            common = ("prose", "code", "torch")
            if all(entry["stamp"][name] == stamp[name] for name in (*common, *([method] if method in GUARDS else []))):
                done[entry["key"]] = Outcome(**entry["outcome"])
    waiting = [job for job in jobs() if job.key not in done]
    started = time.perf_counter()
    with ProcessPoolExecutor(processes) as pool, ledger.open("a", encoding="utf-8") as file:
        futures = {pool.submit(flown, job): job for job in waiting}
        for count, future in enumerate(as_completed(futures), start=1):
            outcome = future.result()
            done[futures[future].key] = outcome
            entry = {"key": futures[future].key, "stamp": stamp, "outcome": outcome._asdict()}
            file.write(json.dumps(entry) + "\n")
            file.flush()
            print(f"\r{count} of {len(waiting)}, {time.perf_counter() - started:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {job: done[job.key] for job in jobs()}


def name_of(method: str) -> str:
    return NAMES.get(method, f"`{method}`")


def spread(losses: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds."""
    broken = sum(map(math.isnan, losses))
    if broken:
        return "nan" if broken == len(losses) else f"nan in {broken} of {len(losses)}"
    return f"{statistics.mean(losses):.3f} ± {statistics.stdev(losses):.3f}"


class Study:
    """All outcomes, and what the page says about them."""

    def __init__(self, outcomes: dict[Job, Outcome]) -> None:
        self._outcomes = outcomes

    def of(self, part: str, architecture: str, case: str, method: str) -> list[Outcome]:
        """One outcome per seed."""
        return [self._outcomes[Job(part, architecture, case, method, seed)] for seed in SEEDS]

    def losses(self, part: str, architecture: str, case: str, method: str) -> list[float]:
        return [outcome.loss for outcome in self.of(part, architecture, case, method)]

    def change(self, architecture: str, case: str, method: str) -> list[float]:
        """Loss against AdamW's under the same fault and seed, as a share of it; nan when AdamW's is."""
        pairs = zip(
            self.losses("faults", architecture, case, method),
            self.losses("faults", architecture, case, "adamw"),
            strict=True,
        )
        return [mine / plain - 1.0 for mine, plain in pairs]

    def sensitivity(self, method: str) -> float:
        """Mean over learning rates of the loss, at most WORST, above the best mean of AdamW."""

        def mean(rate: float, which: str) -> float:
            losses = self.losses("rates", "post_ln", f"{rate:g}", which)
            return statistics.mean(WORST if math.isnan(loss) else min(loss, WORST) for loss in losses)

        best = min(mean(rate, "adamw") for rate in RATES)
        return statistics.mean(mean(rate, method) - best for rate in RATES)

    def shadows(self) -> list[tuple[Job, Outcome]]:
        return [(job, outcome) for job, outcome in self._outcomes.items() if job.mode == "shadow"]

    def seconds(self) -> float:
        return sum(outcome.seconds for outcome in self._outcomes.values())


def fault_table(study: Study, architecture: str) -> list[str]:
    lines = [
        f"| {SHOWN[architecture]} | " + " | ".join(FAULTS) + " |",
        "|---|" + "---|" * len(FAULTS),
    ]
    for method in DRILLED:
        cells = [spread(study.losses("faults", architecture, case, method)) for case in FAULTS]
        lines.append(f"| {name_of(method)} | " + " | ".join(cells) + " |")
    return lines


def action_table(study: Study) -> list[str]:
    """Rollbacks and skips, both architectures together."""
    lines = ["| guard | " + " | ".join(FAULTS) + " |", "|---|" + "---|" * len(FAULTS)]
    for method in ("default", "canary_rollback", "paired_rollback"):
        cells = []
        for case in FAULTS:
            found = [outcome for arch in ARCHITECTURES for outcome in study.of("faults", arch, case, method)]
            cells.append(
                f"{statistics.mean(o.rollbacks for o in found):.1f} / {statistics.mean(o.skips for o in found):.1f}"
            )
        lines.append(f"| {name_of(method)} | " + " | ".join(cells) + " |")
    return lines


def rate_table(study: Study) -> list[str]:
    lines = [
        "| method | " + " | ".join(f"{rate:g}" for rate in RATES) + " | sensitivity | rollbacks |",
        "|---|" + "---|" * (len(RATES) + 2),
    ]
    for method in METHODS:
        cells = [spread(study.losses("rates", "post_ln", f"{rate:g}", method)) for rate in RATES]
        found = [outcome for rate in RATES for outcome in study.of("rates", "post_ln", f"{rate:g}", method)]
        rollbacks = statistics.mean(outcome.rollbacks for outcome in found)
        lines.append(
            f"| {name_of(method)} | " + " | ".join(cells) + f" | {study.sensitivity(method):+.3f} | {rollbacks:.1f} |"
        )
    return lines


def percent(share: float) -> str:
    return f"{100 * share:+.2f} %"


def bars(study: Study) -> list[str]:
    """The two bars: a shadow guard changes no bit, an active one stays near AdamW where nothing is wrong."""
    shadows = study.shadows()
    different = [job for job, outcome in shadows if outcome.same_bits != 1]
    lines = [
        f"**Shadow changes no bit:** {len(shadows) - len(different)} of {len(shadows)} shadow runs end with the very "
        f"weights of the run without a guard"
        + (f"; not {', '.join(f'{job.method} ({job.architecture})' for job in different)}." if different else "."),
        "",
        f"**No fault, active, within {100 * LIMIT:g} % of AdamW's final loss** (same seed; mean over {len(SEEDS)} "
        f"seeds, the worst seed in brackets):",
        "",
        "| guard | " + " | ".join(f"{SHOWN[a]}, {case}" for a in ARCHITECTURES for case in BENIGN) + " |",
        "|---|" + "---|" * (len(ARCHITECTURES) * len(BENIGN)),
    ]
    missed = []
    for method in DRILLED_GUARDS:
        cells = []
        for architecture in ARCHITECTURES:
            for case in BENIGN:
                changes = study.change(architecture, case, method)
                cells.append(f"{percent(statistics.mean(changes))} ({percent(max(changes))})")
                if case == "none" and not max(map(abs, changes)) <= LIMIT:
                    missed.append(f"{name_of(method)} on {SHOWN[architecture]} ({cells[-1]})")
        lines.append(f"| {name_of(method)} | " + " | ".join(cells) + " |")
    lines += ["", f"Not met without a fault: {'; '.join(missed)}." if missed else "Met by every guard without a fault."]
    ramp = []
    for rate in RATES[:2]:
        slow = study.losses("rates", "post_ln", f"{rate:g}", "slow_start")
        plain = study.losses("rates", "post_ln", f"{rate:g}", "adamw")
        ramp.append(f"{percent(statistics.mean(slow) / statistics.mean(plain) - 1.0)} at {rate:g}")
    lines += [
        "",
        "`slow_start` is `paired_rollback` once its ramp is over and was flown over learning rates only. What the ramp "
        f"costs there at rates that were right, post-LN, {RATE_STEPS} steps: {', '.join(ramp)}.",
    ]
    return lines


def findings(study: Study) -> list[str]:
    """What stands out, said by the figures."""
    lines = []
    for method in DRILLED_GUARDS:
        better, worse, saved = [], [], []
        for architecture in ARCHITECTURES:
            for case in FAULTS:
                changes = study.change(architecture, case, method)
                where = f"{case} ({SHOWN[architecture]})"
                mine = study.losses("faults", architecture, case, method)
                if any(math.isnan(change) for change in changes):
                    if not any(math.isnan(loss) for loss in mine):
                        saved.append(where)
                elif min(changes) > LIMIT:
                    worse.append(f"{where} {percent(statistics.mean(changes))}")
                elif max(changes) < -LIMIT:
                    better.append(f"{where} {percent(statistics.mean(changes))}")
        lines.append(
            f"- {name_of(method)}. Better than AdamW by more than {100 * LIMIT:g} % on every seed: "
            f"{', '.join(better) or 'nowhere'}. Survives where AdamW ends in nan: {', '.join(saved) or 'nowhere'}. "
            f"Worse by more than {100 * LIMIT:g} % on every seed: {', '.join(worse) or 'nowhere'}."
        )
    ranked = sorted(METHODS, key=study.sensitivity)
    lines.append(
        "- Over learning rates, from the least sensitive: "
        + ", ".join(f"{name_of(method)} {study.sensitivity(method):+.3f}" for method in ranked)
        + "."
    )
    feedback = [method for method in ranked if method in FEEDBACK]
    best = feedback[0]
    verdict = "beats" if study.sensitivity(best) < study.sensitivity("static_cap") else "does not beat"
    lines.append(
        f"- The best guard with feedback, {name_of(best)}, {verdict} the static cap over learning rates "
        f"({study.sensitivity(best):+.3f} against {study.sensitivity('static_cap'):+.3f}); the cap's share of 0.1 was "
        f"chosen on this very model in earlier work."
    )
    worst = max(
        (
            (change, method, case, architecture)
            for method in DRILLED_GUARDS
            for architecture in ARCHITECTURES
            for case in FAULTS
            for change in study.change(architecture, case, method)
            if not math.isnan(change)
        ),
    )
    lines.append(
        f"- The worst single run against AdamW with the same fault and seed: {name_of(worst[1])}, {worst[2]}, "
        f"{SHOWN[worst[3]]}: {percent(worst[0])}."
    )
    return lines


def draw(study: Study, path: Path) -> None:
    """Validation loss over learning rates, one line per method, every seed a dot."""
    import matplotlib

    matplotlib.use("agg")
    from cycler import cycler
    from matplotlib import pyplot

    from lbw_sim.plots import save
    from lbw_sim.plots.canvas import LINE_COLOURS

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    axes.set_prop_cycle(cycler(linestyle=("-", "--")) * cycler(color=LINE_COLOURS))
    for method in METHODS:
        means = [statistics.mean(study.losses("rates", "post_ln", f"{rate:g}", method)) for rate in RATES]
        (line,) = axes.plot(RATES, means, label=NAMES.get(method, method), linewidth=1.6)
        for rate in RATES:
            values = study.losses("rates", "post_ln", f"{rate:g}", method)
            axes.plot([rate] * len(values), values, ".", color=line.get_color(), markersize=4, alpha=0.6)
    axes.set_xscale("log")
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel("validation loss, nats per byte")
    axes.set_title("post-LN tiny GPT, no fault")
    axes.legend(fontsize=8)
    save(figure, path)
    pyplot.close(figure)


def page(study: Study, processes: int) -> str:
    """The whole document."""
    count = len(jobs())
    lines = [
        "# Fault drill: guards on the tiny GPT, flown through `attach`",
        "",
        f"Made by `analysis/fault_drill.py`: {count} real runs, seeds {', '.join(map(str, SEEDS))} (seeds below 10 "
        f"chose the guards' parameters), validation loss in nats per byte, mean ± standard deviation over seeds. "
        f"Faults: {STEPS} steps at peak learning rate {LR:g}, the fault at step {ONSET}. Every guard is active. "
        f"Canary and paired probe measure every 5 steps, snapshots are taken every 10. Python "
        f"{platform.python_version()} (corpus `{corpus('prose').digest}`), torch {torch.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} cores, {counted(processes, 'process', 'processes')}: "
        f"{study.seconds() / 60:.0f} minutes of CPU time.",
        "",
        "One small model, one text, three seeds, runs of a few hundred steps: this says which guard does harm and "
        "which can do good, not what it will gain elsewhere. A short run flatters a lower learning rate.",
        "",
        "## What stands out",
        "",
        *findings(study),
        "",
        "## Nothing wrong: what a guard costs",
        "",
        *bars(study),
        "",
        "## Faults",
        "",
        *fault_table(study, "post_ln"),
        "",
        *fault_table(study, "pre_ln"),
        "",
        "Rollbacks / skipped steps per run, mean over both architectures and all seeds:",
        "",
        *action_table(study),
        "",
        "## A learning rate that is too high from the start",
        "",
        f"Post-LN, {RATE_STEPS} steps, no fault. Sensitivity: mean over the learning rates of min(loss, ln "
        f"{VOCABULARY}) − the best mean loss of AdamW.",
        "",
        *rate_table(study),
        "",
        "![Validation loss over learning rates](../figures/fault_drill_rates.svg)",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fly, and write page and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/fault_drill"), help="folder of finished runs")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    study = Study(collect(arguments.work, arguments.processes))
    draw(study, Path("docs/figures/fault_drill_rates.svg"))
    TARGET.write_text(page(study, arguments.processes), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
