"""Does the simulator rank guards as reality does? Guards really trained on tiny GPTs, and flown on calibrated plants.

    python analysis/sim_to_real.py [--work FOLDER] [--processes 2] [--part earlier|train|develop|judge]

Writes docs/results/sim_to_real.md and a figure beside it. Trained runs are kept in the work folder; it can be stopped
and goes on where it was. Settings were chosen before any plant was flown, to reach different things: early and late,
strong and weak, with feedback and without. Plants are calibrated on `calibration` runs and improved on `development`
ones and on the page of an earlier judgement (seeds 300 to 303). `judged` runs share no seed with any of these. Their
settings and rates are those of the earlier page, so that figures compare, and settings that had never been flown; they
are looked at once. `--part earlier` compares with that page alone, for which the calibration runs do.
"""

# ruff: noqa: E501  (the page is prose: its lines are as long as they are)

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.guard.analyzers import LOSS
from lbw_sim.guard.analyzers.above_start import AboveStart
from lbw_sim.guard.analyzers.composite import Composite
from lbw_sim.guard.analyzers.cusum import Cusum
from lbw_sim.guard.analyzers.debounce import Debounce
from lbw_sim.guard.analyzers.ema_outlier import EmaOutlier
from lbw_sim.guard.analyzers.ewma_ratio import EwmaRatio
from lbw_sim.guard.analyzers.limit import Limit
from lbw_sim.guard.analyzers.mean_ratio import MeanRatio
from lbw_sim.guard.analyzers.never import Never
from lbw_sim.guard.analyzers.no_improvement import NoImprovement
from lbw_sim.guard.analyzers.threshold import Threshold
from lbw_sim.guard.analyzers.window_outlier import WindowOutlier
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.policies.cut_for_good import CutForGood
from lbw_sim.guard.policies.damp_release import DampRelease
from lbw_sim.guard.policies.hold import Hold
from lbw_sim.guard.policies.planned import Planned
from lbw_sim.guard.policies.scale_by_evidence import ScaleByEvidence
from lbw_sim.guard.policies.skip_unsafe import SkipUnsafe
from lbw_sim.guard.policies.slow_start import SlowStart
from lbw_sim.guard.sensors.ewma import Ewma
from lbw_sim.guard.sensors.raw import Raw
from lbw_sim.guard.sensors.robust_loss import RobustLoss
from lbw_sim.replay import replay
from lbw_sim.simulate import Noise, PlantSpec, Record, calibrate, drawn_noise, recorded_noise, rollouts
from lbw_sim.stress import Excitation, RunPlan, train
from lbw_sim.stress.schedule import scheduled_lr
from lbw_sim.trace import Trace, read_trace
from lbw_sim.values import Posture

STEPS = 300
ARCHITECTURES = ("post_ln", "pre_ln")
LRS = {
    "calibration": (3e-3, 1e-2, 2.5e-2, 6e-2, 2e-1),
    "development": (4e-3, 1.2e-2, 3e-2, 8e-2, 2.5e-1),
    "judged": (5e-3, 1.5e-2, 4e-2, 1e-1, 3e-1),
}
SEEDS = {"calibration": (40, 41), "development": (60, 61), "judged": (710, 711, 712, 713)}
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


def planned(first: int, last: int, scale: float) -> Guard:
    """No feedback: one share of the learning rate between two steps, inclusive."""
    policy = Planned(first_step=first, last_step=last, scale=scale)
    return Guard(sensor=Raw(), analyzer=Never(), policy=policy, envelope=WIDE)


def raw(
    analyzer: EwmaRatio | EmaOutlier | NoImprovement | AboveStart | MeanRatio | WindowOutlier, policy: object
) -> Guard:
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
NEVER_FLOWN: dict[str, Guard] = {
    "planned 0-40 .1": planned(0, 40, 0.1),
    "planned 30-150 .2": planned(30, 150, 0.2),
    "ramp .05 x1.015": ramp(0.05, 1.015),
    "loss > 2.6 power 3": by_loss(2.6, 3),
    "loss > 3.2 power 6": by_loss(3.2, 6),
    "mean ratio .08 cut .3": raw(
        MeanRatio(window_steps=10, min_count=5, excess=0.08), DampRelease(cut=0.3, release=1.02)
    ),
    "window outlier 2 cut .3": raw(
        WindowOutlier(window_steps=30, min_count=10, limit_sd=2.0), DampRelease(cut=0.3, release=1.01)
    ),
    "zscore 1 twice cut .2": Guard(
        sensor=Ewma(),
        analyzer=Debounce(inner=Threshold(limit_sd=1.0, warmup_steps=5, hold_steps=1), steps=2),
        policy=DampRelease(cut=0.2, release=1.02),
        envelope=WIDE,
    ),
    "cusum 3 cut .4 for good": cusum(3.0, 5, CutForGood(cut=0.4), WIDE),
    "start share .7 cut .2 for good": raw(AboveStart(start_steps=10, factor=0.7), CutForGood(cut=0.2)),
    "start share .55, half of 10, cut .2": raw(
        AboveStart(start_steps=20, factor=0.55, window_steps=10, share=0.5), DampRelease(cut=0.2, release=1.03)
    ),
    "plateau 20 cut .5 for good": raw(NoImprovement(check_steps=20, patience=0), CutForGood(cut=0.5)),
}
"""Chosen before any plant was flown after the earlier judgement, which knew the others."""
SETTINGS["judged"] |= NEVER_FLOWN
EARLIER = {
    "ramp .1 x1.01": (2.499, 2.377),
    "ramp .02 x1.02": (2.531, 2.402),
    "scale .2": (2.517, 2.426),
    "scale .5": (2.611, 2.410),
    "loss > 2.2 power 4": (2.579, 2.462),
    "ramp .3 x1.01": (2.638, 2.423),
    "ramp .05 x1.05": (2.656, 2.434),
    "cusum 6 after a ramp": (2.656, 2.434),
    "loss > 2.5 power 2": (2.716, 2.419),
    "composite eager cut .1": (2.723, 2.452),
    "zscore 3 cut .5 for good": (2.725, 2.455),
    "zscore 3 cut .5": (2.735, 2.458),
    "cusum 4 cut .1 slow": (2.740, 2.457),
    "cusum 8 cut .3": (2.740, 2.457),
    "hold": (2.740, 2.457),
    "cusum 6 cut .2 for good": (2.740, 2.457),
    "default": (2.740, 2.457),
    "cusum 15 cut .3": (2.740, 2.457),
    "ewma ratio power 4": (2.742, 2.465),
    "scale .05": (2.582, 2.628),
    "ema outlier 2 cut .3": (2.749, 2.461),
    "loss > 3 power 8": (2.732, 2.486),
    "zscore 2 cut .3": (2.746, 2.475),
    "zscore 3 cut .1 early": (2.771, 2.470),
    "zscore 2 skip": (2.768, 2.484),
    "plateau cut .3 for good": (2.817, 2.515),
    "zscore 2 cut .1 slow": (2.875, 2.598),
    "start share .6 cut .3": (2.989, 2.665),
    "ewma ratio 1.05 cut .2": (3.051, 2.784),
}
"""Real loss on post-LN and pre-LN in the earlier judgement, mean over the judged rates and seeds 300 to 303."""
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


def trained(group: Sequence[Job], folder: Path | None) -> list[Outcome]:
    """Train one graph, and record it with a folder; in a process of its own, on one thread."""
    torch.set_num_threads(1)
    started = time.process_time()
    # a run that was cut off is no run: its trace makes way
    for job in group if folder else ():
        half = folder / job.part / f"run_id={job.run_id}"
        for file in half.glob("*") if half.exists() else ():
            file.unlink()
        if half.exists():
            half.rmdir()
    results = train([plan_of(job) for job in group], folder / group[0].part if folder else None)
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
    with ledger.open("a", encoding="utf-8") as file:

        def keep(job: Job, outcome: Outcome) -> None:
            done[keys[job]] = outcome
            key, mark = keys[job]
            file.write(json.dumps({"key": key, "stamp": mark, "outcome": outcome._asdict()}) + "\n")
            file.flush()

        def fly(missing: Sequence[Job], folder: Path | None) -> None:
            groups: dict[tuple[str, str], list[Job]] = {}
            for job in missing:
                groups.setdefault((job.part, job.architecture), []).append(job)
            graphs = [group[first : first + 8] for group in groups.values() for first in range(0, len(group), 8)]
            # seed by seed: what there is when time runs out is whole
            graphs.sort(key=lambda group: (PARTS.index(group[0].part), group[0].seed))
            with ProcessPoolExecutor(processes) as pool:
                futures = {pool.submit(trained, group, folder): group for group in graphs}
                for count, future in enumerate(as_completed(futures), start=1):
                    for job, outcome in zip(futures[future], future.result(), strict=True):
                        keep(job, outcome)
                    print(f"\r{count} of {len(graphs)} graphs", end="", file=sys.stderr, flush=True)

        recorded = [job for job in wanted if job.part == "calibration" or job.setting == "hold"]
        fly([job for job in recorded if keys[job] not in done], work / "traces")
        for job in wanted:
            if keys[job] not in done and never_acts(job, work / "traces"):
                keep(job, done[keys[job._replace(setting="hold")]]._replace(cpu_s=0.0))
        fly([job for job in wanted if keys[job] not in done], None)
    return {job: done[keys[job]] for job in wanted}


def never_acts(job: Job, folder: Path) -> bool:
    """Whether a guard leaves the run without a guard alone: then it trains as that does, to the bit, and need not."""
    trace = read_trace(folder / job.part / f"run_id={job._replace(setting='hold').run_id}")
    found = replay(trace, GuardSpec.of(SETTINGS[job.part][job.setting], job.setting)).columns
    return not ((found["scale"] < 1.0) | (found["posture"] == int(Posture.SKIP))).any()


Matrix = np.ndarray[Any, np.dtype[np.float64]]

HIGHEST_LR = 0.6
"""Calibration runs that went higher are left out of the fit: no judged run can, and they would bend it."""
PLANTS = {
    "`growing_weights`": "growing_weights",
    "`lasting_damage`": "lasting_damage",
    "`functional_scaling` (reversible)": "functional_scaling",
    "`tissue_law` (naive)": "tissue_law",
    "`noisy_quadratic` (naive, reversible)": "noisy_quadratic",
}
HEADLINE = "`growing_weights`"
"""Chosen on the development runs, before any judged run was looked at."""
NOISES = 16
HARM = 0.15
"""Nats above the best unguarded rate, from which on a run counts as harmed; for the open-loop rows."""
WORST = 6.0
"""Nats; stands for a rollout that diverged."""
DRAWS = 2000
BAR_DRAWS = 500
SHOWN = {"post_ln": "post-LN", "pre_ln": "pre-LN"}
TARGET = Path("docs/results/sim_to_real.md")
FIGURE = Path("docs/figures/sim_to_real.svg")


def real_losses(outcomes: dict[Job, Outcome], part: str, architecture: str) -> Matrix:
    """[settings, rates, seeds]."""
    return np.array(
        [
            [[outcomes[Job(part, architecture, lr, seed, setting)].loss for seed in SEEDS[part]] for lr in LRS[part]]
            for setting in SETTINGS[part]
        ]
    )


def schedule(lr: float) -> Matrix:
    return np.array([scheduled_lr(step, STEPS, lr) for step in range(STEPS)])


def calibration_traces(work: Path, architecture: str) -> dict[Job, Trace]:
    return {
        job: read_trace(work / "traces" / "calibration" / f"run_id={job.run_id}")
        for job in jobs("calibration")
        if job.architecture == architecture
    }


def fitted(law: str, records: Sequence[Record], architecture: str, work: Path) -> PlantSpec:
    """From the work folder, where it was fitted before by this very plant's version."""
    digest = hashlib.sha256(
        repr([(r.run_id, len(r.loss)) for r in records]).encode() + PlantSpec.load(law).fingerprint.encode()
    ).hexdigest()[:12]
    path = work / f"plant_{architecture}_{law}_{digest}.toml"
    if not path.exists():
        calibrate(records, PlantSpec.load(law), draws=0, held_out=[], name=f"{law}_{architecture}").save(path)
    return PlantSpec.load(path)


def simulated(spec: PlantSpec, records: Sequence[Record], part: str, work: Path) -> tuple[Matrix, float]:
    """Mean final loss of every setting at every rate, [settings, rates]; share of rollouts that left the range.

    From the work folder, where the same was flown before.
    """
    guards = [GuardSpec.of(guard, name) for name, guard in SETTINGS[part].items()]
    key = repr([spec.fingerprint, [guard.fingerprint for guard in guards], LRS[part], NOISES])
    path = work / f"flown_{part}_{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"
    if path.exists():
        with np.load(path) as kept:
            return kept["finals"], float(kept["left"])
    quiet = [record for record in records if record.run_id.endswith("_none") and record.effective_lr.max() <= 1e-2]
    noise = recorded_noise(spec, quiet, STEPS)
    drawn = drawn_noise(NOISES, STEPS)
    flown = rollouts(
        [spec],
        guards,
        {f"{lr:g}": schedule(lr) for lr in LRS[part]},
        Noise(np.ascontiguousarray(noise[np.arange(NOISES) % len(noise)]), drawn.walk),
        threads=1,
    )
    finals = np.minimum(np.nan_to_num(flown.final_loss[0], nan=WORST, posinf=WORST), WORST)
    np.savez(path, finals=finals.mean(axis=2), left=flown.left_range.mean())
    return finals.mean(axis=2), float(flown.left_range.mean())


def open_loop(
    traces: dict[Job, Trace], outcomes: dict[Job, Outcome], part: str
) -> tuple[dict[str, Matrix], dict[str, Matrix]]:
    """Scores without a closed loop, lower is better: name -> [settings, rates], and [settings] over all rates.

    Every guard is replayed on the unguarded calibration runs. A run is harmed when it ends `HARM` above the best rate.
    Delay: share of a harmed run that has passed before the guard first acts; false alarms: share of steps of an
    unharmed run on which it acts. Energy: what it asks for in unharmed runs less what it asks for in harmed ones.
    """
    plain = [job for job in traces if job.setting == "none"]
    mean = {lr: np.mean([outcomes[job].loss for job in plain if job.lr == lr]) for lr in LRS["calibration"]}
    harmed = {job: outcomes[job].loss > min(mean.values()) + HARM for job in plain}
    acted, energy = {}, {}
    for job in plain:
        for name, guard in SETTINGS[part].items():
            found = replay(traces[job], GuardSpec.of(guard, name)).columns
            acts = (found["scale"] < 1.0) | (found["posture"] == int(Posture.SKIP))
            if harmed[job]:
                acted[job, name] = float(np.argmax(acts)) / STEPS if acts.any() else 1.0
            else:
                acted[job, name] = float(acts.mean())
            energy[job, name] = float(found["energy"][-1]) / STEPS * (-1.0 if harmed[job] else 1.0)
    # what is known without any guard: the loss of unguarded runs at the neighbouring rates
    known = np.interp(np.log(LRS[part]), np.log(LRS["calibration"]), [mean[lr] for lr in LRS["calibration"]])
    names = list(SETTINGS[part])
    by_rate, overall = {}, {}
    for title, table in {"delay and false alarms": acted, "energy where it matters": energy}.items():
        rows = np.empty((len(names), len(LRS[part])))
        for column, lr in enumerate(LRS[part]):
            near = min(LRS["calibration"], key=lambda other: abs(np.log(other / lr)))
            rows[:, column] = [np.mean([table[job, name] for job in plain if job.lr == near]) for name in names]
        # over rates the unguarded loss ranks, within one the guard's score
        by_rate[title] = known + 1e-3 * rows
        kinds = [[job for job in plain if harmed[job] == kind] for kind in (False, True)]
        overall[title] = np.array(
            [sum(np.mean([table[job, name] for job in kind]) for kind in kinds if kind) for name in names]
        )
    by_rate["unguarded runs at neighbouring rates, no guard at all"] = np.tile(known, (len(names), 1))
    return by_rate, overall


FIELDS = ("pooled", "per_rate", "choice")
"""The correlations among the scores, first."""


class Scores(NamedTuple):
    """How one ranking does against really trained runs."""

    pooled: float
    """Spearman over all settings and rates."""
    per_rate: float
    """Mean over rates of Spearman over settings."""
    choice: float
    """Spearman over settings of the mean over rates: what somebody who chooses one guard for all rates goes by."""
    regret: float
    """Mean loss over rates of the setting that it puts first, above the best setting's; nats."""
    regret_per_rate: float
    """The same where every rate has a choice of its own; mean over rates."""


def scores(predicted: Matrix, overall: Matrix, really: Matrix) -> Scores:
    """`predicted` and `really` [settings, rates], `overall` [settings]."""
    from scipy.stats import rankdata  # takes seconds to import

    def correlation(x: Matrix, y: Matrix) -> float:
        # everything alike: no ranking at all
        return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")

    rates = range(really.shape[1])
    mean = really.mean(axis=1)
    return Scores(
        correlation(predicted.ravel(), really.ravel()),
        float(np.mean([correlation(predicted[:, r], really[:, r]) for r in rates])),
        correlation(overall, mean),
        float(mean[overall.argmin()] - mean.min()),
        float(np.mean([really[predicted[:, r].argmin(), r] - really[:, r].min() for r in rates])),
    )


def halves(drawn: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Every way to cut seeds into two parts as equal as can be, each once from either side.

    A seed that was drawn twice stays on one side: on both it would agree with itself.
    """
    distinct = sorted(set(drawn))
    cuts = [
        ([seed for seed in drawn if seed in part], [seed for seed in drawn if seed not in part])
        for size in range(1, len(distinct))
        for part in itertools.combinations(distinct, size)
    ]
    fewest = min(abs(len(one) - len(other)) for one, other in cuts)
    return [(one, other) for one, other in cuts if abs(len(one) - len(other)) == fewest]


class Row(NamedTuple):
    """One ranking in the table."""

    name: str
    scores: Scores
    """Against the mean over all seeds."""
    against_halves: Scores
    """Against the mean over half of them, mean over halves: what the ceiling can be compared with."""
    low: Scores
    """2.5 % over seeds drawn again, and `high` 97.5 %."""
    high: Scores


def judged_rows(rankings: dict[str, tuple[Matrix, Matrix]], real: Matrix) -> list[Row]:
    """Every ranking against reality."""
    rng = np.random.default_rng(0)
    seeds = real.shape[2]
    weights = Counter(tuple(sorted(rng.integers(0, seeds, seeds).tolist())) for _ in range(DRAWS))
    means = [real[:, :, list(drawn)].mean(axis=2) for drawn in weights]
    rows = []
    for name, (predicted, overall) in rankings.items():
        resampled = np.repeat([scores(predicted, overall, mean) for mean in means], list(weights.values()), axis=0)
        rows.append(
            Row(
                name,
                scores(predicted, overall, real.mean(axis=2)),
                against_halves(predicted, overall, real, range(seeds)),
                Scores(*np.quantile(resampled, 0.025, axis=0)),
                Scores(*np.quantile(resampled, 0.975, axis=0)),
            )
        )
    return rows


def against_halves(predicted: Matrix, overall: Matrix, real: Matrix, drawn: Sequence[int]) -> Scores:
    """A ranking against the mean over half of the seeds; mean over halves."""
    found = [scores(predicted, overall, real[:, :, half].mean(axis=2)) for half, _ in halves(drawn)]
    return Scores(*np.mean(found, axis=0))


def ceilings(real: Matrix, drawn: Sequence[int]) -> list[Scores]:
    """One half of the seeds against the other, for each way to halve them; mean over both directions."""
    found: dict[frozenset[tuple[int, ...]], list[Scores]] = {}
    for one, other in halves(drawn):
        predicted = real[:, :, one].mean(axis=2)
        found.setdefault(frozenset((tuple(one), tuple(other))), []).append(
            scores(predicted, predicted.mean(axis=1), real[:, :, other].mean(axis=2))
        )
    return [Scores(*np.mean(both, axis=0)) for both in found.values()]


class Bar(NamedTuple):
    """A group of settings: the headline beside the ceiling. Both against means over half of the seeds."""

    title: str
    settings: list[int]
    ours: Scores
    regret: float
    """Against the mean over all seeds."""
    ceilings: list[Scores]
    """One for each way to halve the seeds; the ceiling is their mean."""
    ceiling_drawn: Matrix
    """[2.5 % and 97.5 %, fields], over seeds drawn again."""
    ratio_drawn: Matrix
    """The same of ours / ceiling, of `FIELDS` alone, over seeds and settings drawn again."""

    @property
    def ceiling(self) -> Scores:
        return Scores(*np.mean(self.ceilings, axis=0))


def bar(title: str, settings: Sequence[int], predicted: Matrix, real: Matrix) -> Bar:
    """The headline, [settings, rates], and reality, [settings, rates, seeds], on some of the settings."""
    rng = np.random.default_rng(1)
    predicted, real = predicted[list(settings)], real[list(settings)]
    overall = predicted.mean(axis=1)
    seeds = real.shape[2]
    alone, ratios = [], []
    while len(ratios) < BAR_DRAWS:
        drawn, places = rng.integers(0, seeds, seeds).tolist(), rng.integers(0, len(real), len(real))
        if len(set(drawn)) < 2:
            continue
        alone.append(np.mean(ceilings(real, drawn), axis=0))
        ours = against_halves(predicted[places], overall[places], real[places], drawn)
        top = np.mean(ceilings(real[places], drawn), axis=0)
        correlations = slice(len(FIELDS))
        # no share of a ceiling that is none
        ratios.append(np.divide(ours, top, out=np.full(len(top), np.nan), where=top > 0)[correlations])
    everyone = range(seeds)
    return Bar(
        title, list(settings), against_halves(predicted, overall, real, everyone),
        scores(predicted, overall, real.mean(axis=2)).regret, ceilings(real, everyone),
        np.quantile(alone, (0.025, 0.975), axis=0), np.nanquantile(ratios, (0.025, 0.975), axis=0),
    )  # fmt: skip


class Study(NamedTuple):
    """One architecture's answers."""

    architecture: str
    plants: dict[str, PlantSpec]
    simulated: dict[str, Matrix]
    real: Matrix
    rows: list[Row]
    bars: list[Bar]
    """All settings first."""
    left_range: dict[str, float]


def study(work: Path, outcomes: dict[Job, Outcome], part: str, architecture: str) -> Study:
    """Calibrate, fly, judge."""
    traces = calibration_traces(work, architecture)
    everything = [Record.of(trace) for trace in traces.values()]
    records = [record for record in everything if record.effective_lr.max() <= HIGHEST_LR]
    plants = {name: fitted(law, records, architecture, work) for name, law in PLANTS.items()}
    flown = {name: simulated(spec, records, part, work) for name, spec in plants.items()}
    rankings = {name: (finals, finals.mean(axis=1)) for name, (finals, _) in flown.items()}
    by_rate, overall = open_loop(traces, outcomes, part)
    for name, rows in by_rate.items():
        title = f"open loop: {name}" if name in overall else name
        rankings[title] = (rows, overall.get(name, rows.mean(axis=1)))
    real = real_losses(outcomes, part, architecture)
    groups = groups_of(part, real)
    bars = [bar(title, settings, flown[HEADLINE][0], real) for title, settings in groups.items()]
    return Study(
        architecture, plants, {name: finals for name, (finals, _) in flown.items()}, real,
        judged_rows(rankings, real), bars, {name: left for name, (_, left) in flown.items()},
    )  # fmt: skip


def groups_of(part: str, real: Matrix) -> dict[str, list[int]]:
    """Settings, by their places, that are judged together."""
    names = list(SETTINGS[part])
    # settings that trained otherwise than every one before them, in some run
    distinct = sorted(np.unique(real.reshape(len(real), -1), axis=0, return_index=True)[1].tolist())
    groups = {f"all {len(names)}": list(range(len(names))), f"the {len(distinct)} that differ": distinct}
    if part == "judged":
        seen = [place for place, name in enumerate(names) if name not in NEVER_FLOWN]
        new = [place for place, name in enumerate(names) if name in NEVER_FLOWN]
        groups |= {f"the {len(seen)} of before": seen, f"the {len(new)} never flown": new}
    return groups


def table(study: Study) -> list[str]:
    """As Markdown."""

    def cell(row: Row, field: str) -> str:
        value, half = getattr(row.scores, field), getattr(row.against_halves, field)
        if np.isnan(value):
            return "–"
        low, high = getattr(row.low, field), getattr(row.high, field)
        return f"{value:.2f} ({low:.2f} to {high:.2f}); {half:.2f}"

    ceiling = study.bars[0].ceiling
    lines = [
        "| ranked by | Spearman, all | per rate | of the choice | regret, nats | regret per rate |",
        "|---|---|---|---|---|---|",
        f"| half of the seeds, against the other half (ceiling) | {ceiling.pooled:.2f} | {ceiling.per_rate:.2f} | "
        f"{ceiling.choice:.2f} | {ceiling.regret:.3f} | {ceiling.regret_per_rate:.3f} |",
    ]
    for row in study.rows:
        alike = np.isnan(row.scores.choice)
        lines.append(
            f"| {row.name} | {cell(row, 'pooled')} | {cell(row, 'per_rate')} | {cell(row, 'choice')} | "
            + (
                "– | – |"
                if alike
                else f"{row.scores.regret:.3f} ({row.low.regret:.3f} to {row.high.regret:.3f}) | "
                f"{row.scores.regret_per_rate:.3f} |"
            )
        )
    return lines


def draw(found: Sequence[Study], path: Path) -> None:
    """Simulated against real final loss, means over seeds: a dot per setting and rate, and a dot per setting."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    from lbw_sim.plots import save

    new = np.array([name in NEVER_FLOWN for name in SETTINGS["judged"]])
    figure, panels = pyplot.subplots(2, len(found), figsize=(9.0, 8.2), layout="constrained")
    for column, one in enumerate(found):
        finals = one.simulated[HEADLINE]
        # training and validation text differ in difficulty: one number for all
        finals = finals + float(np.mean(one.real) - np.mean(finals))
        choice = int(finals.mean(axis=1).argmin())
        above, below = panels[:, column]
        real, sd = one.real.mean(axis=2), one.real.mean(axis=1).std(axis=1, ddof=1)
        for kind, marker in ((~new, "o"), (new, "D")):
            for place, lr in enumerate(LRS["judged"]):
                color = pyplot.get_cmap("viridis")(place / (len(LRS["judged"]) - 0.5))
                above.plot(
                    finals[kind, place], real[kind, place], marker, color=color, markersize=4, alpha=0.8,
                    markeredgewidth=0, label=f"{lr:g}" if marker == "o" else None,
                )  # fmt: skip
            below.errorbar(
                finals[kind].mean(axis=1), real[kind].mean(axis=1), sd[kind], fmt=marker, color="0.25", ecolor="0.75",
                markersize=4, elinewidth=1, label="never flown before" if marker == "D" else "flown before",
            )  # fmt: skip
        below.plot(
            finals[choice].mean(), real[choice].mean(), "o", color="none", markeredgecolor="crimson", markersize=11,
            label="the simulator's choice",
        )  # fmt: skip
        for axes in (above, below):
            ends = np.array(axes.get_xlim())
            axes.plot(ends, ends, "-", color="0.7", linewidth=1, zorder=0)
            axes.set_xlim(*ends)
            axes.set_xlabel("simulated final loss, shifted, nats per byte")
        above.set_title(f"{SHOWN[one.architecture]}: {len(finals)} guards at {len(LRS['judged'])} peak rates")
        below.set_title(f"{SHOWN[one.architecture]}: mean over rates")
    for axes in panels[:, 0]:
        axes.set_ylabel("real validation loss, nats per byte")
    panels[0, 0].legend(title="peak rate", fontsize=8, loc="lower right")
    panels[1, 0].legend(fontsize=8, loc="upper left")
    save(figure, path)
    pyplot.close(figure)


def group_table(found: Sequence[Study], head: str, cells: Callable[[Bar], list[str]]) -> list[str]:
    """A line for every group of settings."""
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for one in found:
        lines += [f"| {SHOWN[one.architecture]}, {group.title} | {' | '.join(cells(group))} |" for group in one.bars]
    return lines


def bar_cells(group: Bar) -> list[str]:
    """The two bars: the correlations as shares of their ceilings, and the regret."""
    cells = []
    for place in range(len(FIELDS)):
        ours, top = group.ours[place], group.ceiling[place]
        low, high = group.ratio_drawn[:, place]
        missed = "" if ours / top >= 0.9 else ", missed"
        cells.append(f"{ours:.2f} / {top:.2f} = {ours / top:.3f} ({low:.2f} to {high:.2f}){missed}")
    return [*cells, f"{group.regret:.3f}{'' if group.regret <= 0.05 else ', missed'}"]


def ceiling_cells(group: Bar) -> list[str]:
    """How wide the ceiling itself is."""
    cells = []
    for place in range(len(FIELDS)):
        low, high = group.ceiling_drawn[:, place]
        cut = ", ".join(f"{value:.2f}" for value in sorted(top[place] for top in group.ceilings))
        cells.append(f"{cut} ({low:.2f} to {high:.2f})")
    return cells


def choices(found: Sequence[Study]) -> list[str]:
    """Which setting the simulator puts first, and which one is."""
    names, told = list(SETTINGS["judged"]), []
    for one in found:
        mean = one.real.mean(axis=(1, 2))
        choice, best = int(one.simulated[HEADLINE].mean(axis=1).argmin()), int(mean.argmin())
        told.append(
            f"{SHOWN[one.architecture]}: it chooses `{names[choice]}`, really {mean[choice]:.3f}; the best is "
            f"`{names[best]}`, {mean[best]:.3f}; `hold` (AdamW as it is, and `never`) {mean[names.index('hold')]:.3f}; the "
            f"median setting {np.median(mean):.3f}."
        )
    return [" ".join(told)]


def settings_table(found: Sequence[Study]) -> list[str]:
    """Every setting, really and simulated."""
    heads = [f"{SHOWN[one.architecture]}, {kind}" for one in found for kind in ("real", "simulated")]
    lines = ["| setting | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    order = np.argsort(np.mean([one.real.mean(axis=(1, 2)) for one in found], axis=0))
    for place in order:
        cells = []
        for one in found:
            by_seed, finals = one.real[place].mean(axis=0), one.simulated[HEADLINE]
            shift = float(np.mean(one.real) - np.mean(finals))
            cells += [f"{by_seed.mean():.3f} ± {by_seed.std(ddof=1):.3f}", f"{finals[place].mean() + shift:.3f}"]
        lines.append(f"| {list(SETTINGS['judged'])[place]} | " + " | ".join(cells) + " |")
    return lines


def earlier_names() -> list[str]:
    return [name for name in SETTINGS["judged"] if name in EARLIER]


def earlier(work: Path, architecture: str) -> tuple[Scores, Scores, Matrix, Matrix]:
    """The headline against what the earlier judgement's settings really reached, mean over rates.

    All of them and those that differ, the choice alone; then simulated and real, [settings] as `earlier_names`.
    """
    everything = [Record.of(trace) for trace in calibration_traces(work, architecture).values()]
    records = [record for record in everything if record.effective_lr.max() <= HIGHEST_LR]
    finals, _ = simulated(fitted(PLANTS[HEADLINE], records, architecture, work), records, "judged", work)
    # in the order of the settings: of those that trained alike, the first stands for all, `hold` before the rest
    names = earlier_names()
    places = [list(SETTINGS["judged"]).index(name) for name in names]
    real = np.array([EARLIER[name][ARCHITECTURES.index(architecture)] for name in names])
    mean = finals[places].mean(axis=1)
    differ = np.unique(real, return_index=True)[1]
    everyone = scores(mean[:, None], mean, real[:, None])
    return everyone, scores(mean[differ, None], mean[differ], real[differ, None]), mean, real


def earlier_table(work: Path) -> list[str]:
    """As Markdown: the correlations, and the settings that are missed most."""
    lines = ["| of the choice, against four seeds | all 29 | those that differ | regret, nats |", "|---|---|---|---|"]
    missed = []
    for architecture in ARCHITECTURES:
        everyone, differ, mean, real = earlier(work, architecture)
        lines.append(f"| {SHOWN[architecture]} | {everyone.choice:.2f} | {differ.choice:.2f} | {everyone.regret:.3f} |")
        off = mean - mean.mean() - (real - real.mean())
        worst = np.argsort(-np.abs(off))[:4]
        told = ", ".join(f"`{earlier_names()[place]}` {off[place]:+.2f}" for place in worst)
        missed.append(f"Missed most on {SHOWN[architecture]}, simulated less real after one shift: {told}.")
    return [*lines, "", *missed]


JUDGEMENT = """Over all settings and rates the bar is met on both architectures, by every group of settings, those never flown included, and the regret is at most 0.003; every open-loop row and every naive or reversible plant is beaten in every column. Of the two stricter rankings, post-LN meets both; pre-LN misses them with all settings, the choice among the settings never flown by most (0.75). The intervals of these ratios are wide and reach above 0.9 everywhere. The twelve settings never flown were fixed before any plant was flown along them, after the error below had been found; one limit was changed because it never acted on a replay of other runs. Nothing was changed after the judged runs had been looked at. What the earlier judgement taught, and these runs do not gainsay:"""
"""Said of the runs of seeds 710 to 713; another flight needs another."""
BEFORE = """The runs judged before (seeds 300 to 303, with `robust_loss` 1 and recorded noise that was wrong at the start) are development by now. Their 29 settings were flown again in the plant, against the real means over rates of that page (`--part earlier`):"""
LEFT = """
**Found: recorded noise took the fall of the first losses for hard batches.** A batch's difficulty is its loss less a running median; at the start the median looked only ahead, at losses already lower. Real and expected first loss are both 5.5; the simulated one came out near 6.7, because the noise was then up to 10 standard deviations. A guard that compares with the start, like `start share .6`, therefore waited for 4.0 instead of 3.3 and never acted, and every rule that learns its own standard deviation learned one that was too large. The window is now centred, and shrinks towards the ends.

| Spearman of the choice, against the mean over four seeds | post-LN, all 29 | the 23 that differ | pre-LN, all 29 | the 23 that differ |
|---|---|---|---|---|
| the fit of this page, noise as it was | 0.72 | 0.77 | 0.79 | 0.81 |
| the fit of this page, noise mended | 0.79 | 0.85 | 0.82 | 0.83 |

The second row is what `--part earlier` prints; the first was measured once with the noise put back. Of settings that really trained alike the first one stands for all, `hold` before the others; the simulator does not hold them alike, and with another one the last figure is 0.86. Regret 0.000 in all four. How much of this is the choice of these 29 settings is unknown: the mend was found on them. On pre-LN the earlier fit was another one (0.84 with all 29): the one that is found now has other damage with a nearly equal error, so that column mixes the two, and no run on pre-LN says which is right.

**Left: a run that was cut early learns too well in the plant.** Real losses fall within 20 steps to 3.3, what the frequencies of bytes give, and stay there until about step 60 at rates of 0.005 and 0.01 alike, longer at 0.03. The plant has one smooth law, which passes 3.3 without a halt. Along the really applied rates of post-LN runs whose guard cut them at step 20 and for long (`start share .6`, `ewma ratio 1.05`), at peak rates of 0.015 to 0.1, it ends 0.2 to 0.5 below what was real (at 0.04: 2.8, really 3.24); on pre-LN up to 0.15. So guards that cut early and deep still look better in simulation than they are: `start share .6` and `ewma ratio 1.05` by about 0.25 on post-LN, `zscore 2 cut .1 slow` by about 0.1. The number of alarms is no longer what is wrong there.

Tried and dropped, all on these development figures:

- A start of its own for what is learned first, with progress that sets in late (T² / (T + onset), and the sharper T³ / (T² + onset²)): three more parameters. On post-LN the calibration runs hardly use them (error 0.132 instead of 0.133 nats) and the ranking of the choice stays (the sharper form: 0.79 and 0.84); on pre-LN the error falls from 0.128 to 0.121 and the ranking rises to 0.84 and 0.90. One architecture of two, on settings that had been looked at: not enough for three parameters, and the first thing to try again. The fit to 40 of the 70 post-LN runs did use them and got 0.81 and 0.88.
- More damage before that onset: fitted at 0.
- Recorded noise shifted in time, so that sixteen rollouts meet sixteen data orders instead of four: worse (post-LN 0.72 and 0.77), because noise in the first steps is really small.
- Not tried: noise that grows with the rate. In shipped post-LN runs the part that is no batch's difficulty has a standard deviation of about 0.04 at a rate of 0.005, 0.08 at 0.03 and 0.14 at 0.1 over the first 50 steps; batches' difficulty has 0.13.
"""


def page(
    found: Sequence[Study],
    developed: Sequence[Study],
    earlier_lines: Sequence[str],
    trained_min: float,
    really: int,
) -> list[str]:
    """The whole document."""
    counts = {part: len(jobs(part)) for part in PARTS}
    lines = [
        "# Does the simulator rank guards as reality does?",
        "",
        f"Made by `analysis/sim_to_real.py`: {sum(counts.values()):,} runs of tiny GPTs, {STEPS} steps each, {really:,} of "
        "them really trained: a guard that never acts along the unguarded run trains as that, to the bit, and is not "
        "trained again. Judged: "
        f"{len(SETTINGS['judged'])} guard settings × {len(LRS['judged'])} peak rates "
        f"({', '.join(f'{lr:g}' for lr in LRS['judged'])}) × seeds {', '.join(map(str, SEEDS['judged']))}, post-LN and "
        f"pre-LN: {counts['judged']:,} runs. Calibration: {counts['calibration']} runs without a guard, other seeds and "
        f"rates, undisturbed and with the rate moved on purpose ({', '.join(PROGRAMS)}); those that went above {HIGHEST_LR} "
        f"are left out. The plant was chosen and mended on {counts['development']} development runs of "
        f"{len(SETTINGS['development'])} other settings at other rates and seeds; settings were chosen before anything was "
        f"simulated; the judged runs were looked at once. `hold` is both in the judged and the development list, and "
        f"equal to `never` to the bit. Loss: validation loss of the last weights, nats per byte.",
        "",
        "Three rankings: of all settings at all rates; of settings at one rate, mean over rates; and of settings by their "
        "mean over rates, which is how somebody chooses one guard for rates that he does not know (*the choice*). "
        "Regret: how much worse the setting that is put first really is than the best one.",
        "",
        "## The bars",
        "",
        f"Spearman of {HEADLINE}, and of one half of the seeds against the other: at least 0.9 of it was wanted. Both "
        "against means over two seeds. Regret at most 0.05, on the mean over all seeds. Some settings never act at any of these "
        "rates and train like `hold` or like the ramp that they wrap, to the bit; the second line of each leaves all but one "
        "of such a group out.",
        "",
        *group_table(found, "| | Spearman, all | per rate | of the choice | regret, nats |", bar_cells),
        "",
        *choices(found),
        "",
        JUDGEMENT,
        "",
        "- What ranks is damage that stays. Reversible plants and replay choose little better than chance (0.23 at most): to them a "
        "guard that acts late is as good as one that acts early.",
        "- Most of the Spearman over all settings and rates is cheap: see the row of unguarded runs at neighbouring rates, "
        "with no word about any guard. The other two columns are the ones that ask about guards.",
        "- `lasting_damage` ranks nearly as well over all and worse within a rate: it knows dead and "
        "alive. On pre-LN no run dies, and what a high rate costs comes by degrees and is not given back; weights that "
        "grow with every step explain both.",
        "- Leaving the calibration runs above a rate of 0.6 out of the fit mattered as much as the plant.",
        "- The best settings look at nothing: slow ramps and fixed shares. Guards that wait for an alarm end where `hold` "
        "does, or worse: the fault drill found the same of [caps](fault_drill.md).",
        "",
        "The ceiling is itself uncertain: each of the three ways to halve four seeds, and in brackets 95 % over seeds drawn "
        "again, a seed that is drawn twice on one side only. The interval of a ratio above is over seeds and settings drawn "
        "again.",
        "",
        *group_table(found, "| ceiling | Spearman, all | per rate | of the choice |", ceiling_cells),
        "",
        "Limits: one small model, one text, runs of 300 steps, four judged seeds; rates within those of the calibration but "
        "for the highest (0.3 is reached there only by programs); no guard with probes or rollback, which plants cannot fly; "
        "calibration had a held-back start (a tenth of the rate for 60 steps) among its programs.",
        "",
        "![Simulated against real loss](../figures/sim_to_real.svg)",
        "",
        "The line has slope 1: training and validation text differ in difficulty. Ringed: the setting that the simulator "
        "chooses.",
        "",
        "## What was wrong before, and what is left",
        "",
        BEFORE,
        "",
        *earlier_lines,
        "",
        *LEFT.strip().splitlines(),
        "",
        "## Judged, against everything else",
        "",
        "Against the mean over all four seeds (95 % over seeds drawn again); after the semicolon, against the mean over two "
        "of them, as the ceiling has it. Open loop: the guards replayed on unguarded calibration runs of the nearest rate, "
        f"early action on runs that end {HARM} above the best rate, little on others. Over rates those rows are given the "
        "unguarded loss for nothing; the last row is that alone.",
        "",
    ]
    for one in found:
        left = 100 * one.left_range[HEADLINE]
        lines += [
            f"**{SHOWN[one.architecture]}** ({left:.0f} % of rollouts left the calibrated range)",
            "",
            *table(one),
            "",
        ]
    lines += [
        "## Every setting",
        "",
        "Mean over rates ± standard deviation over seeds; simulated: shifted by one number, "
        "so that the means over all agree.",
        "",
        *settings_table(found),
        "",
    ]
    for one in found:
        parts = [f"{k} {v:.3g}" for k, v in one.plants[HEADLINE].plant.items() if k not in ("name", "version")]
        lines += [f"Fitted on {SHOWN[one.architecture]}: {', '.join(parts)}.", ""]
    lines += [
        "## On the development runs",
        "",
        "What the plant was built on: two seeds, so the ceiling is one seed against the other.",
        "",
    ]
    for one in developed:
        lines += [f"**{SHOWN[one.architecture]}**", "", *table(one), ""]
    lines.append(
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}: {trained_min:.0f} minutes of CPU "
        f"time for training, about five for fits and rollouts."
    )
    return lines


def main() -> None:
    """Train, develop, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/sim_to_real"), help="folder of finished runs")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", default="judge", choices=("earlier", "train", "develop", "judge"))
    options = parser.parse_args()
    if options.part == "earlier":
        collect(options.work, ("calibration",), options.processes)
        print(*earlier_table(options.work), sep="\n")
        return
    outcomes = collect(options.work, PARTS, options.processes)
    trained_min = sum(one.cpu_s for one in outcomes.values()) / 60
    really = sum(one.cpu_s > 0.0 for one in outcomes.values())
    print(f"{len(outcomes)} runs, {trained_min:.0f} CPU-minutes")
    if options.part == "train":
        return
    part = "development" if options.part == "develop" else "judged"
    found = [study(options.work, outcomes, part, architecture) for architecture in ARCHITECTURES]
    for one in found:
        print(one.architecture, f"range left: {one.left_range}", *table(one), sep="\n")
    if part == "development":
        return
    draw(found, FIGURE)
    developed = [study(options.work, outcomes, "development", architecture) for architecture in ARCHITECTURES]
    TARGET.write_text(
        "\n".join(page(found, developed, earlier_table(options.work), trained_min, really)) + "\n", encoding="utf-8"
    )
    print(TARGET)


if __name__ == "__main__":
    main()
