"""Does the simulator rank guards as reality does? Guards really trained on tiny GPTs, and flown on calibrated plants.

    python analysis/sim_to_real.py [--work FOLDER] [--processes 2] [--part train|develop|judge]

Writes docs/results/sim_to_real.md and a figure beside it. Trained runs are kept in the work folder; it can be stopped
and goes on where it was. Settings were chosen before any plant was flown, to reach different things: early and late,
strong and weak, with feedback and without. Plants are calibrated on `calibration` and improved on `development` runs;
`judged` runs share neither seed nor learning rate nor guard setting with them and are looked at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import torch

from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.guard.analyzers import LOSS
from lbw_sim.guard.analyzers.above_start import AboveStart
from lbw_sim.guard.analyzers.composite import Composite
from lbw_sim.guard.analyzers.cusum import Cusum
from lbw_sim.guard.analyzers.ema_outlier import EmaOutlier
from lbw_sim.guard.analyzers.ewma_ratio import EwmaRatio
from lbw_sim.guard.analyzers.limit import Limit
from lbw_sim.guard.analyzers.never import Never
from lbw_sim.guard.analyzers.no_improvement import NoImprovement
from lbw_sim.guard.analyzers.threshold import Threshold
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.policies.cut_for_good import CutForGood
from lbw_sim.guard.policies.damp_release import DampRelease
from lbw_sim.guard.policies.hold import Hold
from lbw_sim.guard.policies.scale_by_evidence import ScaleByEvidence
from lbw_sim.guard.policies.skip_unsafe import SkipUnsafe
from lbw_sim.guard.policies.slow_start import SlowStart
from lbw_sim.guard.sensors.ewma import Ewma
from lbw_sim.guard.sensors.raw import Raw
from lbw_sim.guard.sensors.robust_loss import RobustLoss
from lbw_sim.stress import Excitation, RunPlan, train

STEPS = 300
ARCHITECTURES = ("post_ln", "pre_ln")
LRS = {
    "calibration": (3e-3, 1e-2, 2.5e-2, 6e-2, 2e-1),
    "development": (4e-3, 1.2e-2, 3e-2, 8e-2, 2.5e-1),
    "judged": (5e-3, 1.5e-2, 4e-2, 1e-1, 3e-1),
}
SEEDS = {"calibration": (40, 41), "development": (60, 61), "judged": (300, 301, 302, 303)}
PARTS = tuple(LRS)

WIDE = Envelope(
    min_scale=0.01, max_drop=1.0, max_rise=1.0, max_damped_steps=100_000, rest_steps=0, energy_per_1000_steps=1000.0,
    max_skips_in_a_row=50, skips_per_1000_steps=500.0,
)  # fmt: skip
"""Hardly any limit: what a setting reaches is then its own doing."""


def ramp(start: float, growth: float) -> Guard:
    """No feedback: a share of the learning rate that grows step by step. With a growth of 1.001, all but constant."""
    return Guard(
        sensor=Raw(),
        analyzer=Never(),
        policy=SlowStart(inner=Hold(), start_scale=start, growth=growth),
        envelope=WIDE,
    )


def by_loss(limit: float, power: int) -> Guard:
    """Scale (limit / loss)^power wherever the loss is above the limit."""
    return Guard(
        sensor=Raw(),
        analyzer=Limit(channel=LOSS, limit=limit),
        policy=ScaleByEvidence(power=power),
        envelope=WIDE,
    )


def zscore(limit: float, warmup: int, policy: DampRelease | CutForGood | SkipUnsafe, envelope: Envelope) -> Guard:
    return Guard(
        sensor=Ewma(), analyzer=Threshold(limit_sd=limit, warmup_steps=warmup), policy=policy, envelope=envelope
    )


def cusum(limit: float, warmup: int, policy: DampRelease | CutForGood | SlowStart, envelope: Envelope) -> Guard:
    return Guard(
        sensor=RobustLoss(), analyzer=Cusum(limit_sd=limit, warmup_steps=warmup), policy=policy, envelope=envelope
    )


def raw(analyzer: EwmaRatio | EmaOutlier | NoImprovement | AboveStart, policy: object) -> Guard:
    return Guard(sensor=Raw(), analyzer=analyzer, policy=policy, envelope=WIDE)  # type: ignore[arg-type]


def composite(analyzer: Composite, policy: DampRelease, envelope: Envelope) -> Guard:
    return Guard(sensor=RobustLoss(), analyzer=analyzer, policy=policy, envelope=envelope)


HOLD = Guard(sensor=Raw(), analyzer=Never(), policy=Hold(), envelope=Envelope())
USUAL = Envelope()
SETTINGS: dict[str, dict[str, Guard]] = {
    "development": {
        "hold": HOLD,
        "ramp .1 x1.03": ramp(0.1, 1.03),
        "ramp .03 x1.015": ramp(0.03, 1.015),
        "scale .1": ramp(0.1, 1.001),
        "scale .4": ramp(0.4, 1.001),
        "loss > 2.8 power 4": by_loss(2.8, 4),
        "loss > 2.4 power 1": by_loss(2.4, 1),
        "zscore 2.5 cut .2": zscore(2.5, 5, DampRelease(cut=0.2, hold_steps=10, release=1.02), WIDE),
        "zscore 4 cut .3": zscore(4.0, 20, DampRelease(cut=0.3), USUAL),
        "cusum 6 cut .2": cusum(6.0, 5, DampRelease(cut=0.2, release=1.03), WIDE),
        "cusum 10 cut .5 for good": cusum(10.0, 10, CutForGood(cut=0.5), WIDE),
        "composite eager cut .3": composite(
            Composite(spike_sd=3.5, rise_sd=1.5, rebound_share=0.1), DampRelease(cut=0.3, release=1.02), WIDE
        ),
        "ewma ratio 1.03 cut .5": raw(EwmaRatio(limit=1.03), DampRelease(cut=0.5, hold_steps=5, release=1.02)),
        "start share .65 cut .2": raw(AboveStart(start_steps=15, factor=0.65), DampRelease(cut=0.2, release=1.05)),
    },
    "judged": {
        "hold": HOLD,
        "ramp .05 x1.05": ramp(0.05, 1.05),
        "ramp .02 x1.02": ramp(0.02, 1.02),
        "ramp .1 x1.01": ramp(0.1, 1.01),
        "ramp .3 x1.01": ramp(0.3, 1.01),
        "scale .05": ramp(0.05, 1.001),
        "scale .2": ramp(0.2, 1.001),
        "scale .5": ramp(0.5, 1.001),
        "loss > 2.2 power 4": by_loss(2.2, 4),
        "loss > 2.5 power 2": by_loss(2.5, 2),
        "loss > 3 power 8": by_loss(3.0, 8),
        "zscore 2 cut .3": zscore(2.0, 30, DampRelease(cut=0.3), USUAL),
        "zscore 2 cut .1 slow": zscore(2.0, 10, DampRelease(cut=0.1, hold_steps=5, release=1.01), WIDE),
        "zscore 3 cut .5": zscore(3.0, 30, DampRelease(cut=0.5), USUAL),
        "zscore 3 cut .1 early": zscore(3.0, 0, DampRelease(cut=0.1, release=1.005), WIDE),
        "zscore 3 cut .5 for good": zscore(3.0, 0, CutForGood(cut=0.5), WIDE),
        "zscore 2 skip": zscore(2.0, 10, SkipUnsafe(), WIDE),
        "cusum 8 cut .3": cusum(8.0, 10, DampRelease(cut=0.3), USUAL),
        "cusum 4 cut .1 slow": cusum(4.0, 0, DampRelease(cut=0.1, release=1.01), WIDE),
        "cusum 15 cut .3": cusum(15.0, 30, DampRelease(cut=0.3), USUAL),
        "cusum 6 cut .2 for good": cusum(6.0, 0, CutForGood(cut=0.2), WIDE),
        "cusum 6 after a ramp": cusum(
            6.0, 5, SlowStart(inner=DampRelease(cut=0.2, release=1.02), start_scale=0.05, growth=1.05), WIDE
        ),
        "default": GuardSpec.load("default").build(),
        "composite eager cut .1": composite(
            Composite(spike_sd=3.0, rise_sd=1.0, rebound_share=0.05), DampRelease(cut=0.1, release=1.01), WIDE
        ),
        "plateau cut .3 for good": raw(NoImprovement(check_steps=10, patience=1), CutForGood(cut=0.3)),
        "ewma ratio power 4": raw(EwmaRatio(), ScaleByEvidence(power=4)),
        "ewma ratio 1.05 cut .2": raw(EwmaRatio(limit=1.05), DampRelease(cut=0.2, release=1.01)),
        "ema outlier 2 cut .3": raw(
            EmaOutlier(channel=LOSS, limit_sd=2.0, warmup_steps=15), DampRelease(cut=0.3, release=1.02)
        ),
        "start share .6 cut .3": raw(AboveStart(start_steps=20, factor=0.6), DampRelease(cut=0.3)),
    },
}
PROGRAMS: dict[str, Excitation | tuple[float, ...] | None] = {
    "none": None,
    "bump": Excitation(kind="bump", onset_step=100, length_steps=20, factor=8.0),
    "ramp": Excitation(kind="ramp", onset_step=150, length_steps=60, factor=16.0),
    "early drop": Excitation(kind="drop", onset_step=30, factor=10.0),
    "late drop": Excitation(kind="drop", onset_step=120, factor=4.0),
    "dither": Excitation(kind="dither", length_steps=20, factor=9.0),
    "late start": tuple(0.1 if step < 60 else 1.0 for step in range(STEPS)),
}
"""What the calibration runs do to their learning rates: programs, or one factor per step."""


class Job(NamedTuple):
    """One really trained run."""

    part: str
    architecture: str
    lr: float
    seed: int
    setting: str
    """Of SETTINGS; in `calibration`, of PROGRAMS."""

    @property
    def run_id(self) -> str:
        words = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in self.setting)
        return f"{self.architecture}_lr{self.lr:g}_s{self.seed}_{words}"


class Outcome(NamedTuple):
    """What is kept of it."""

    loss: float
    """Validation loss of the last weights; nats per byte."""
    energy: float
    mean_scale: float
    cpu_s: float


def jobs(part: str) -> list[Job]:
    """Every run of a part, seed by seed."""
    settings = PROGRAMS if part == "calibration" else SETTINGS[part]
    return [
        Job(part, architecture, lr, seed, setting)
        for seed in SEEDS[part]
        for architecture in ARCHITECTURES
        for lr in LRS[part]
        for setting in settings
    ]


def plan_of(job: Job) -> RunPlan:
    common = {"run_id": job.run_id, "architecture": job.architecture, "lr": job.lr, "seed": job.seed, "steps": STEPS}
    if job.part != "calibration":
        guard = SETTINGS[job.part][job.setting]
        return RunPlan(**common, method="guard", spec=GuardSpec.of(guard, job.setting))  # type: ignore[arg-type]
    program = PROGRAMS[job.setting]
    if isinstance(program, tuple):
        return RunPlan(**common, method="playback", scales=program, spec=GuardSpec.load("never"))  # type: ignore[arg-type]
    return RunPlan(**common, excitation=program, spec=GuardSpec.load("never"))  # type: ignore[arg-type]


def stamp(job: Job) -> str:
    """What a stored outcome belongs to: another guard or program makes it worthless."""
    plan = plan_of(job)
    program = "" if job.part != "calibration" else repr(PROGRAMS[job.setting])
    return f"{plan.spec.fingerprint} {STEPS} {program}"


def trained(group: Sequence[Job], folder: Path) -> list[Outcome]:
    """Train one graph; in a process of its own, on one thread."""
    torch.set_num_threads(1)
    started = time.process_time()
    # a run that was cut off is no run: its trace makes way
    for job in group:
        half = folder / job.part / f"run_id={job.run_id}"
        for file in half.glob("*") if half.exists() else ():
            file.unlink()
        if half.exists():
            half.rmdir()
    results = train([plan_of(job) for job in group], folder / group[0].part)
    cpu_s = (time.process_time() - started) / len(group)
    return [Outcome(r.validation_loss, r.energy, sum(r.scales) / len(r.scales), cpu_s) for r in results]


def collect(work: Path, parts: Sequence[str], processes: int) -> dict[Job, Outcome]:
    """Every outcome; what is not in the work folder yet is trained."""
    work.mkdir(parents=True, exist_ok=True)
    ledger = work / "outcomes.jsonl"
    done: dict[tuple[str, str], Outcome] = {}
    if ledger.exists():
        for line in ledger.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            done[entry["key"], entry["stamp"]] = Outcome(**entry["outcome"])
    wanted = [job for part in parts for job in jobs(part)]
    keys = {job: (f"{job.part}/{job.run_id}", stamp(job)) for job in wanted}
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in wanted:
        if keys[job] not in done:
            groups.setdefault((job.part, job.architecture), []).append(job)
    graphs = [group[first : first + 8] for group in groups.values() for first in range(0, len(group), 8)]
    # seed by seed: what there is when time runs out is whole
    graphs.sort(key=lambda group: (PARTS.index(group[0].part), group[0].seed))
    if graphs:
        with ProcessPoolExecutor(processes) as pool, ledger.open("a", encoding="utf-8") as file:
            futures = {pool.submit(trained, group, work / "traces"): group for group in graphs}
            for count, future in enumerate(as_completed(futures), start=1):
                for job, outcome in zip(futures[future], future.result(), strict=True):
                    done[keys[job]] = outcome
                    key, mark = keys[job]
                    file.write(json.dumps({"key": key, "stamp": mark, "outcome": outcome._asdict()}) + "\n")
                file.flush()
                print(f"\r{count} of {len(graphs)} graphs", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    return {job: done[keys[job]] for job in wanted}


def main() -> None:
    """Train, develop, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/sim_to_real"), help="folder of finished runs")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", default="judge", choices=("train", "develop", "judge"))
    options = parser.parse_args()
    os.nice(10)
    if options.part == "train":
        outcomes = collect(options.work, PARTS, options.processes)
        print(len(outcomes), "runs,", sum(one.cpu_s for one in outcomes.values()) / 60, "CPU-minutes")


if __name__ == "__main__":
    main()
