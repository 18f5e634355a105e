"""Does `adaptive_cap` do the same in half precision? Tiny GPTs in float32, under autocast and with bfloat16 weights.

Writes docs/results/half_precision.md. Run from the repository root, twenty minutes of CPU time on one core; stopped, it
goes on where it was: python analysis/half_precision.py [--work FILE] [--seeds 830 831 832]
Seeds below 10 are for development; the page's had been flown by nobody and chose nothing. On a CPU, tiny models, no
float16, no GPU: what kernels of a GPU round otherwise, this does not say.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lbw_sim.guard import GuardSpec
from lbw_sim.live import Snapshots, attach
from lbw_sim.live.probes import FullStepLr, GradientReach, HalfStep, PairedProbe
from lbw_sim.score.significance import Estimate, mean_estimate
from lbw_sim.stress.corpus import corpus
from lbw_sim.stress.flown import MEASURE_EVERY, SPAN, fly
from lbw_sim.stress.plan import FlightPlan
from lbw_sim.stress.workload import Session
from lbw_sim.stress.workloads import workload
from lbw_sim.trace import read_trace
from lbw_sim.wording import counted

SEEDS = (830, 831, 832)
RATES = (1e-3, 1e-2, 1e-1, 1.0)
GUARD = "adaptive_cap"
SHOWN = {"post_ln": "post-LN", "pre_ln": "pre-LN"}
PRECISIONS = {
    "float32": "float32",
    "autocast": "autocast to bfloat16",
    "bf16_weights": "bfloat16 weights",
    "bf16_loss": "bfloat16 weights and loss",
    "nudged": "float32, first weights rounded",
}
"""In this order in every table; the last one is float32, begun from weights that were rounded to bfloat16 once."""
EVERYWHERE = ("float32", "autocast", "bf16_weights")
HALF = ("autocast", "bf16_weights", "bf16_loss")
LOSS_RATES = (1e-2, 1e-1)
NUDGED_RATES = (1e-1, 1.0)
NATIVE = (("post_ln", "autocast", 1e-1), ("pre_ln", "bf16_weights", 1e-1))
"""Guarded runs of the first seed that are flown again with torch's own bfloat16 products."""
DENSE_STEPS = 64
PARTED = 0.01
"""Two runs have parted at the first step at which their scales differ by more than this share."""
TARGET = Path("docs/results/half_precision.md")


class Job(NamedTuple):
    """One run."""

    architecture: str
    precision: str
    rate: float
    method: str
    """`adamw` or the guard's name."""
    seed: int
    native: bool = False
    """With torch's own bfloat16 products."""

    @property
    def key(self) -> str:
        return "|".join(map(str, self))


class Outcome(NamedTuple):
    """What is kept of a run."""

    loss: float
    """Validation loss of the last weights, computed in float32 whatever they were trained in; nats per byte."""
    full_step_lr: float
    top_lr: float
    """Largest learning rate that was applied; 0 without a guard."""
    scales: tuple[float, ...]
    """Applied, by step; a step that went back or was skipped has 0. Empty without a guard."""
    rollbacks: int
    skips: int
    measured: int
    """Half steps measured."""
    blind: int
    """Of these, measurements in which whole and half step changed the loss by the same number, 0 included."""
    dense: int
    """The same two of the first DENSE_STEPS steps, in which the cap is learned."""
    dense_blind: int
    warnings: tuple[str, ...]
    seconds: float

    @property
    def lowest(self) -> float:
        """The lowest scale of a step that was taken."""
        return min(scale for scale in self.scales if scale > 0.0)


def jobs(seeds: tuple[int, ...]) -> list[Job]:
    """Every run: float32 first."""
    where = [(precision, rate) for precision in EVERYWHERE for rate in RATES]
    where += [("bf16_loss", rate) for rate in LOSS_RATES]
    made = [
        Job(architecture, precision, rate, method, seed)
        for precision, rate in where
        for architecture in SHOWN
        for method in ("adamw", GUARD)
        for seed in seeds
    ]
    made += [Job(a, "nudged", rate, GUARD, seed) for rate in NUDGED_RATES for a in SHOWN for seed in seeds]
    return made + [Job(a, precision, rate, GUARD, seeds[0], True) for a, precision, rate in NATIVE]


@contextlib.contextmanager
def quick_products(on: bool) -> Iterator[None]:
    """Inside, products of bfloat16 matrices are summed up in float32 and rounded once, as a GPU does it, by torch's
    float32 kernel: its bfloat16 one takes three times as long as all the rest on a processor without such a unit."""
    own = torch.bmm

    def bmm(one: Tensor, other: Tensor) -> Tensor:
        if not (torch.is_autocast_enabled("cpu") or one.dtype == torch.bfloat16):
            return own(one, other)
        with torch.autocast("cpu", enabled=False):
            return own(one.bfloat16().float(), other.bfloat16().float()).bfloat16()

    torch.bmm = bmm if on else own
    try:
        yield
    finally:
        torch.bmm = own


def loss_in(precision: str, session: Session) -> Callable[[Any], Tensor]:
    """Put the model into a precision; returns its loss there."""
    if precision == "nudged":
        with torch.no_grad():
            for parameter in session.model.parameters():
                parameter.copy_(parameter.bfloat16())
    if precision in ("bf16_weights", "bf16_loss"):
        session.model.to(torch.bfloat16)
    # autocast takes the cross-entropy in float32, as most trainers do; without it that is bfloat16 as well
    autocast = precision in ("autocast", "bf16_weights")

    def loss(batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return session.loss(batch)

    return loss


class _Warnings(logging.Handler):
    """What lbw-sim warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


def flown(job: Job) -> Outcome:
    """Fly one run."""
    started = time.process_time()
    heard = _Warnings()
    logger = logging.getLogger("lbw_sim")
    logger.addHandler(heard)
    try:
        with quick_products(not job.native), tempfile.TemporaryDirectory() as folder:
            session, columns, back = _trained(job, folder)
    finally:
        logger.removeHandler(heard)
    session.model.float()
    whole, half = columns.get("step_gain", []), columns.get("half_step_gain", [])
    steps = columns.get("step", [])
    pairs = [(s, w == h) for s, w, h in zip(steps, whole, half, strict=True) if w == w and h == h]
    dense = [blind for step, blind in pairs if step <= DENSE_STEPS]
    skipped = columns.get("skipped", [])
    return Outcome(
        loss=session.validation_loss(),
        full_step_lr=columns["full_step_lr"][0] if columns else math.nan,
        top_lr=max(columns["effective_lr"]) if columns else 0.0,
        scales=tuple(columns.get("applied", ())),
        rollbacks=back,
        skips=int(sum(skipped)) - back,
        measured=len(pairs),
        blind=sum(blind for _, blind in pairs),
        dense=len(dense),
        dense_blind=sum(dense),
        warnings=tuple(heard.told),
        seconds=time.process_time() - started,
    )


def _trained(job: Job, folder: str) -> tuple[Session, dict[str, list[float]], int]:
    """The session after its run, what the trace holds by channel, and the number of rollbacks."""
    load = workload(job.architecture)
    plan = FlightPlan(workload=job.architecture, lr=job.rate, seed=job.seed)
    session = load.session(job.seed)
    loss_of = loss_in(job.precision, session)
    optimizer = torch.optim.AdamW(session.model.parameters(), lr=job.rate)
    live = None
    if job.method != "adamw":
        probes = [
            FullStepLr(session.model),
            HalfStep(session.model, loss_of, optimizer, dense_steps=DENSE_STEPS),
            GradientReach(optimizer),
            PairedProbe(session.model, loss_of, every_steps=MEASURE_EVERY, span_steps=SPAN),
        ]
        ring = Snapshots(every_steps=load.snapshots_every, keep=load.snapshots_kept)
        live = attach(
            optimizer, job.method, mode="active", unproven=True, trace=folder, run_id="run", probes=probes,
            snapshots=ring,
        )  # fmt: skip
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.lr_at(step)
        batch = session.batch(step)
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        if live is not None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in session.model.parameters() if p.grad is not None])
            live.observe(loss, tokens=session.tokens_per_step, grad_norm=norm, batch=batch)
        optimizer.step()
    if live is None:
        return session, {}, 0
    live.close()
    rows = read_trace(folder, "run").to_numpy("all")
    kept = {name: rows[name].tolist() for name in ("step_gain", "half_step_gain", "full_step_lr", "effective_lr")}
    kept["step"] = rows["step"].tolist()
    kept["skipped"] = rows["skipped"].tolist()
    kept["applied"] = (rows["effective_lr"] / rows["lr"]).tolist()
    return session, kept, int((rows["rolled_back_to"] >= 0).sum())


def stamp() -> dict[str, str]:
    """What the stored outcomes belong to: another guard, text or torch makes them worthless."""
    fingerprint = GuardSpec.load(GUARD).fingerprint
    return {"guard": fingerprint, "prose": corpus("prose").digest, "torch": torch.__version__}


def collect(ledger: Path, seeds: tuple[int, ...]) -> dict[Job, Outcome]:
    """Fly what is not there yet; one line of JSON per run, written as it ends."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
    entries = [entry for entry in map(json.loads, lines) if entry["stamp"] == stamp()]
    done = {entry["key"]: Outcome(**entry["outcome"]) for entry in entries}
    wanted = jobs(seeds)
    with ledger.open("a", encoding="utf-8") as file:
        for count, job in enumerate(wanted, start=1):
            if job.key not in done:
                done[job.key] = flown(job)
                entry = {"key": job.key, "stamp": stamp(), "outcome": done[job.key]._asdict()}
                file.write(json.dumps(entry) + "\n")
                file.flush()
                print(f"{count} of {len(wanted)}", job.key, f"{done[job.key].loss:.3f}", flush=True)
    return {job: done[job.key] for job in wanted}


class Study:
    """All outcomes, and what the page says about them. Differences are paired over seeds."""

    def __init__(self, outcomes: dict[Job, Outcome], seeds: tuple[int, ...]) -> None:
        self.outcomes = outcomes
        self.seeds = seeds

    def rates(self, precision: str, method: str = GUARD) -> list[float]:
        """Rates that were flown."""
        return sorted({job.rate for job in self.outcomes if (job.precision, job.method) == (precision, method)})

    def of(self, architecture: str, precision: str, rate: float, method: str = GUARD) -> list[Outcome]:
        """One outcome per seed."""
        return [self.outcomes[Job(architecture, precision, rate, method, seed)] for seed in self.seeds]

    def losses(self, architecture: str, precision: str, rate: float, method: str = GUARD) -> list[float]:
        return [outcome.loss for outcome in self.of(architecture, precision, rate, method)]

    def best(self, architecture: str, precision: str) -> float:
        """AdamW's best rate of those flown; a run that ended in nan is the worst."""

        def mean(rate: float) -> float:
            losses = self.losses(architecture, precision, rate, "adamw")
            return math.inf if any(map(math.isnan, losses)) else statistics.mean(losses)

        return min(self.rates(precision, "adamw"), key=mean)

    def over(self, mine: list[float], other: list[float]) -> Estimate:
        """How far mine lie above the other losses, in percent of them."""
        return mean_estimate([100.0 * (one / two - 1.0) for one, two in zip(mine, other, strict=True)])

    def above_best(self, architecture: str, precision: str, rate: float) -> Estimate:
        """The guarded loss over AdamW's at its best rate in the same precision, percent."""
        best = self.losses(architecture, precision, self.best(architecture, precision), "adamw")
        return self.over(self.losses(architecture, precision, rate), best)

    def harms(self, architecture: str, precision: str) -> dict[float, list[float]]:
        """At AdamW's best rate and below: the guarded loss over AdamW's at the same rate, percent, by seed."""
        best = self.best(architecture, precision)
        return {
            rate: [
                100.0 * (mine / other - 1.0)
                for mine, other in zip(
                    self.losses(architecture, precision, rate),
                    self.losses(architecture, precision, rate, "adamw"),
                    strict=True,
                )
            ]
            for rate in self.rates(precision, "adamw")
            if rate <= best
        }

    def against_float32(self, architecture: str, precision: str, rate: float, method: str = GUARD) -> Estimate:
        """The loss over that of the same seed, rate and method in float32, percent."""
        mine = self.losses(architecture, precision, rate, method)
        return self.over(mine, self.losses(architecture, "float32", rate, method))

    def changed_help(self, architecture: str, precision: str, rate: float) -> Estimate:
        """What the guard ends above AdamW's best, less the same in float32; percentage points."""
        above = []
        for kind in (precision, "float32"):
            best = self.losses(architecture, kind, self.best(architecture, kind), "adamw")
            mine = self.losses(architecture, kind, rate)
            above.append([100.0 * (one / two - 1.0) for one, two in zip(mine, best, strict=True)])
        return mean_estimate([half - whole for half, whole in zip(*above, strict=True)])

    def let_through(self, precision: str) -> Estimate:
        """The highest rate applied over float32's, percent: by seed the mean over models and rates above the best."""
        pairs = [
            (self.of(a, precision, rate), self.of(a, "float32", rate))
            for a in SHOWN
            for rate in self.rates(precision)
            if rate > self.best(a, "float32")
        ]
        return mean_estimate(
            [
                statistics.mean(100.0 * (mine[i].top_lr / other[i].top_lr - 1.0) for mine, other in pairs)
                for i in range(len(self.seeds))
            ]
        )

    def parted(self, architecture: str, precision: str, rate: float) -> list[int | None]:
        """By seed the first step whose scale is another than in float32; None: there is none."""
        pairs = zip(self.of(architecture, precision, rate), self.of(architecture, "float32", rate), strict=True)
        return [
            next((s for s, (a, b) in enumerate(zip(m.scales, o.scales, strict=True)) if abs(a - b) > PARTED * b), None)
            for m, o in pairs
        ]


def said(estimate: Estimate, form: str = "+.2f") -> str:
    """Mean and interval; nan stays nan."""
    if math.isnan(estimate.mean):
        return "nan"
    return f"{estimate.mean:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def apart(estimate: Estimate) -> bool:
    """The interval leaves 0 out."""
    return not (estimate.low <= 0.0 <= estimate.high)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---|" * (len(head) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def by_rate(study: Study, precision: str, method: str, cell: Callable[[float], str]) -> list[str]:
    """One cell per rate of the study; a dash where none was flown."""
    flown_rates = study.rates(precision, method)
    return [cell(rate) if rate in flown_rates else "–" for rate in RATES]


def rates_head(first: str) -> list[str]:
    return [first, *(f"{rate:g}" for rate in RATES)]


def cap_rows(study: Study, architecture: str) -> list[list[str]]:
    share = GuardSpec.load(GUARD).build().analyzer.first_share  # type: ignore[attr-defined]
    rows = []
    for precision in PRECISIONS:

        def cell(rate: float, precision: str = precision) -> str:
            found = study.of(architecture, precision, rate)
            low, top = [o.lowest for o in found], [o.top_lr for o in found]
            return f"{statistics.mean(low):.4f} ({min(low):.4f}–{max(low):.4f}), {statistics.mean(top):.4f}"

        firsts = [
            share * o.full_step_lr for rate in study.rates(precision) for o in study.of(architecture, precision, rate)
        ]
        rows.append([PRECISIONS[precision], f"{statistics.mean(firsts):.5f}", *by_rate(study, precision, GUARD, cell)])
    return rows


def loss_rows(study: Study, architecture: str) -> list[list[str]]:
    rows = []
    for precision, method in itertools.product(PRECISIONS, ("adamw", GUARD)):
        if not study.rates(precision, method):
            continue

        def cell(rate: float, precision: str = precision, method: str = method) -> str:
            estimate = mean_estimate(study.losses(architecture, precision, rate, method))
            best = method == "adamw" and rate == study.best(architecture, precision)
            text = "nan" if math.isnan(estimate.mean) else f"{estimate.mean:.3f} ± {estimate.half:.3f}"
            return f"**{text}**" if best else text

        name = f"{PRECISIONS[precision]}, {'AdamW' if method == 'adamw' else f'`{method}`'}"
        rows.append([name, *by_rate(study, precision, method, cell)])
    return rows


def estimate_rows(
    study: Study, architecture: str, precisions: tuple[str, ...], method: str, of: Callable[[str, float], Estimate]
) -> list[list[str]]:
    return [
        [PRECISIONS[p], *by_rate(study, p, method, lambda rate, p=p: said(of(p, rate)))]
        for p in precisions  # type: ignore[misc]
    ]


def findings(study: Study) -> list[str]:
    """What stands out, said by the figures."""
    chance = distances(study, "nudged")
    lines = [
        "- Chance: float32 begun from weights that were rounded to bfloat16 once ends, under the guard at "
        f"{' and '.join(f'{rate:g}' for rate in NUDGED_RATES)}, {statistics.mean(chance):.2f} % of the loss from "
        f"float32 in the mean of {counted(len(chance), 'run')}, at most {max(chance):.2f} %."
    ]
    for precision in HALF:
        found = {
            (a, rate): study.changed_help(a, precision, rate)
            for a in SHOWN
            for rate in study.rates(precision)
            if rate > study.best(a, "float32")
        }
        (a, rate), largest = max(found.items(), key=lambda item: abs(item[1].mean))
        told = [f"{SHOWN[a]} at {rate:g}, {said(one)}" for (a, rate), one in found.items() if apart(one)]
        far = distances(study, precision)
        verdict = f"parts ({'; '.join(told)})" if told else "is not told apart"
        lines.append(
            f"- **{PRECISIONS[precision].capitalize()}**, at rates above the best, {verdict} from float32 by how far "
            f"the guard ends above AdamW at the best rate of the same precision. The largest difference is "
            f"{largest.mean:+.2f} percentage points, {SHOWN[a]} at {rate:g}; {len(told)} of "
            f"{counted(len(found), 'interval')} leave 0 out, as one in twenty does by chance alone. Its runs at the "
            f"rates of the line above end {statistics.mean(far):.2f} % from float32 in the mean, at most "
            f"{max(far):.2f} %."
        )
    caps = {p: said(study.let_through(p), "+.0f") for p in (*HALF, "nudged")}
    lines.append(
        "- The highest learning rate that the guard let through at rates above the best, percent above float32's, mean "
        f"over models and rates: {'; '.join(f'{PRECISIONS[p]} {one}' for p, one in caps.items())}."
    )
    alone = [
        f"{PRECISIONS[p]} {said(study.against_float32(a, p, rate, 'adamw'))} at {rate:g} ({SHOWN[a]})"
        for p in HALF
        for a in SHOWN
        for rate in study.rates(p, "adamw")
        if rate <= study.best(a, "float32") and apart(study.against_float32(a, p, rate, "adamw"))
    ]
    lines.append(
        "- What precision costs AdamW alone at its best rate and below, percent of its loss in float32, where the "
        f"interval leaves 0 out: {'; '.join(alone) or 'nothing'}."
    )
    for precision in ("float32", *HALF):
        high = [(a, rate) for a in SHOWN for rate in study.rates(precision) if rate >= 10.0 * study.best(a, precision)]
        above = [study.above_best(a, precision, rate).mean for a, rate in high]
        harms = [
            (harm, f"{SHOWN[a]}, {rate:g}, seed {seed}")
            for a in SHOWN
            for rate, found in study.harms(a, precision).items()
            for harm, seed in zip(found, study.seeds, strict=True)
        ]
        worst, where = max(harms)
        same = sum(harm == 0.0 for harm, _ in harms)
        lines.append(
            f"- {PRECISIONS[precision].capitalize()}: from ten times AdamW's best rate up the guard ends "
            f"{min(above):+.2f} to {max(above):+.2f} % from AdamW at its best, means over seeds. At the best rate and "
            f"below, {same} of {counted(len(harms), 'run')} end as AdamW's to the bit"
            + (f"; the worst of the others ends {worst:+.2f} % from it ({where})." if same < len(harms) else ".")
        )
    return [*lines, failures(study)]


def distances(study: Study, precision: str) -> list[float]:
    """How far guarded runs end from float32's of equal seed and rate, percent, at the rates of the chance control."""
    return [
        abs(100.0 * (mine / other - 1.0))
        for a in SHOWN
        for rate in NUDGED_RATES
        if rate in study.rates(precision)
        for mine, other in zip(study.losses(a, precision, rate), study.losses(a, "float32", rate), strict=True)
    ]


def failures(study: Study) -> str:
    """What went wrong."""
    guarded = {job: o for job, o in study.outcomes.items() if job.method == GUARD}
    broken = sum(not math.isfinite(o.loss) for o in guarded.values())
    plain = sum(not math.isfinite(o.loss) for job, o in study.outcomes.items() if job.method == "adamw")
    told = sorted({(PRECISIONS[job.precision], text) for job, o in guarded.items() for text in o.warnings})
    warned = "; ".join(f"{where}: {text}" for where, text in told)
    return (
        f"- Of {counted(len(guarded), 'guarded run')} {broken} end in a loss that is no number, of the others {plain}. "
        + (
            f"Warnings of lbw-sim: {warned}."
            if told
            else "No probe failed, no guard was grounded, nothing was warned of."
        )
    )


def sight_rows(study: Study) -> list[list[str]]:
    rows = []
    for precision in PRECISIONS:
        found = [
            o
            for job, o in study.outcomes.items()
            if (job.precision, job.method) == (precision, GUARD) and not job.native
        ]
        steps = [
            step
            for a in SHOWN
            for rate in study.rates(precision)
            if rate > study.best(a, "float32")
            for step in study.parted(a, precision, rate)
        ]
        parted = [step for step in steps if step is not None]
        rows.append(
            [
                PRECISIONS[precision],
                f"{sum(o.measured for o in found):,}",
                f"{100.0 * sum(o.blind for o in found) / sum(o.measured for o in found):.1f}",
                f"{100.0 * sum(o.dense_blind for o in found) / sum(o.dense for o in found):.1f}",
                "–" if precision == "float32" else f"{len(parted)} of {len(steps)}",
                f"{statistics.median(parted):.0f} ({min(parted)}–{max(parted)})" if parted else "–",
                f"{sum(o.rollbacks for o in found)} / {sum(o.skips for o in found)}",
            ]
        )  # fmt: skip
    return rows


def native_rows(study: Study) -> list[list[str]]:
    rows = []
    for job, own in study.outcomes.items():
        if job.native:
            quick = study.outcomes[job._replace(native=False)]
            rows.append(
                [f"{SHOWN[job.architecture]}, {PRECISIONS[job.precision]}, {job.rate:g}, seed {job.seed}"]
                + [f"{o.loss:.4f}, {o.lowest:.4f}, {o.top_lr:.4f}" for o in (own, quick)]
                + [f"{own.seconds:.0f} / {quick.seconds:.0f}"]
            )
    return rows


def page(study: Study) -> str:
    """The whole document."""
    seconds = sum(o.seconds for o in study.outcomes.values())
    lines = [
        "# `adaptive_cap` in half precision",
        "",
        f"Made by `analysis/half_precision.py`: {len(study.outcomes)} real runs of 300 steps, seeds "
        f"{', '.join(map(str, study.seeds))}, which had been flown by nobody and chose nothing. Looked at before: ten "
        f"runs of seed 0; a rate of 0.03 was left out for time after the first 24 runs, in float32; that the first "
        f"sentences compare rates above the best was settled with two thirds of the runs in view. AdamW alone and "
        f"under `{GUARD}` (fingerprint `{GuardSpec.load(GUARD).fingerprint}`), the tiny GPTs of 34k parameters. "
        f"Intervals: 95 %, Student's t over {counted(len(study.seeds), 'seed')}, differences paired by seed. "
        f"Python {platform.python_version()} (corpus `{corpus('prose').digest}`), torch {torch.__version__}, "
        f"{platform.machine()}, one thread of {os.cpu_count()} shared cores: {seconds / 60:.0f} minutes of CPU time.",
        "",
        "- **Autocast to bfloat16**: weights, moments and cross-entropy in float32, products in bfloat16.",
        "- **Bfloat16 weights**: `model.to(torch.bfloat16)`, so weights, gradients, AdamW's moments and activations, "
        "and the half-way weights of the probe; the cross-entropy in float32, as most trainers take it.",
        "- **Bfloat16 weights and loss**: the cross-entropy as well; numbers between 2 and 4 lie 0.0156 apart there.",
        "- **First weights rounded**: float32 from weights rounded to bfloat16 once: how far two runs part by chance.",
        "",
        "Every validation loss is computed in float32 from the last weights, nats per byte. Products of bfloat16 "
        "matrices are summed up in float32 and rounded once, by float32 kernels, as this processor has no unit for "
        "them; some runs with torch's own are below. The float32 runs are those of the stress suite: one was compared, "
        "to the bit. One CPU, two models of one size, one text: nothing here is about float16, a GPU, or a model of "
        "another size.",
        "",
        "## What stands out",
        "",
        *findings(study),
        "",
        "## The cap",
        "",
        "First cap, mean; then by learning rate: lowest scale, mean (range) over seeds, and the highest learning rate "
        "that was let through, mean.",
    ]
    for a in SHOWN:
        lines += ["", *table([SHOWN[a], "first cap", *(f"{rate:g}" for rate in RATES)], cap_rows(study, a))]
    lines += [
        "",
        "## Final validation loss",
        "",
        "Mean ± half the interval; AdamW's best rate of each precision is bold.",
    ]
    for a in SHOWN:
        lines += ["", *table(rates_head(SHOWN[a]), loss_rows(study, a))]
    lines += [
        "",
        "## Against AdamW at its own best rate in the same precision",
        "",
        f"`{GUARD}`, percent of AdamW's loss.",
    ]
    for a in SHOWN:
        rows = estimate_rows(study, a, ("float32", *HALF), GUARD, lambda p, r, a=a: study.above_best(a, p, r))  # type: ignore[misc]
        lines += ["", *table(rates_head(SHOWN[a]), rows)]
    lines += ["", "## Against float32 at the same rate", "", "Percent of the loss in float32 with the same method."]
    for a, method in itertools.product(SHOWN, ("adamw", GUARD)):
        kinds = HALF if method == "adamw" else (*HALF, "nudged")
        rows = estimate_rows(study, a, kinds, method, lambda p, r, a=a, m=method: study.against_float32(a, p, r, m))  # type: ignore[misc]
        name = f"{SHOWN[a]}, {'AdamW' if method == 'adamw' else f'`{method}`'}"
        lines += ["", *table(rates_head(name), rows)]
    lines += [
        "",
        "## What the half step sees",
        "",
        "Blind: a measurement in which the whole and the half step changed the loss by the same number, 0 included, "
        "which says nothing or the wrong thing. Parted: of the guarded runs at rates above the best those whose scale "
        f"at some step is more than {100 * PARTED:g} % from that of float32 with the same seed and rate, and the step "
        "at which that begins.",
        "",
        *table(
            [
                "", "half steps", "blind, %", f"blind in the first {DENSE_STEPS} steps, %", "parted",
                "median step (range)", "rollbacks / skips",
            ],
            sight_rows(study),
        ),
        "",
        "## With torch's own bfloat16 products",
        "",
        "Final loss, lowest scale, highest rate let through; and seconds of CPU time.",
        "",
        *table(["", "torch's own", "as above", "seconds"], native_rows(study)),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fly, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/half_precision.jsonl"), help="ledger of finished runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = tuple(arguments.seeds)
    outcomes = collect(arguments.work, seeds)
    compared = Job("post_ln", "float32", 1e-1, GUARD, seeds[0])
    suites = fly(FlightPlan(workload=compared.architecture, lr=compared.rate, seed=compared.seed), GUARD)
    if suites.validation_loss != outcomes[compared].loss:
        raise SystemExit(
            f"{compared.key} ends at {outcomes[compared].loss} and in the suite at {suites.validation_loss}"
        )
    TARGET.write_text(page(Study(outcomes, seeds)), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
