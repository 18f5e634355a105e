"""The search for a guard that needs no tuning per model: flies candidates and prints what came of each.

The log of the search is docs/results/guard_search.md. Run from the repository root, it can be stopped and goes on where
it was: python analysis/guard_search.py [CANDIDATE ...] [--work FOLDER] [--processes 1]
Post-LN and pre-LN tiny GPT and a byte GRU, seeds 0 to 2: what is reported elsewhere is flown on other seeds; `pictures`
candidates on a vision transformer, on the seeds that the page reports.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lbw_sim.guard import GuardSpec
from lbw_sim.stress import faults
from lbw_sim.stress.corpus import VOCABULARY, corpus, text_of
from lbw_sim.stress.faults import Fault
from lbw_sim.stress.flown import fly
from lbw_sim.stress.plan import FlightPlan
from lbw_sim.stress.text import ByteText, TextSession
from lbw_sim.stress.workload import Setting, Workload
from lbw_sim.stress.workloads import WORKLOADS

SEEDS = (0, 1, 2)
PICTURE_SEEDS = tuple(range(870, 910))
"""Of the vision transformer, flown once, when the last change had been chosen on others."""
MODELS = ("post_ln", "pre_ln", "gru")
RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
STEPS = 300
FAULT_LR, FAULT_STEPS, ONSET = 5e-3, 400, 200
WORST = math.log(VOCABULARY)
FAULTS: dict[str, Callable[[], Fault | None]] = {
    "none": lambda: None,
    "lr_bump_30": lambda: faults.lr_bump(ONSET, 30.0),
    "bad_labels": lambda: faults.bad_labels(ONSET),
    "repeated_batch": lambda: faults.repeated_batch(ONSET),
    "data_switch": lambda: faults.data_switch(ONSET),
    "warm_restart": lambda: faults.warm_restart(ONSET),
}


class Candidate(NamedTuple):
    """One guard tried."""

    preset: str
    changes: dict[str, Any]
    cases: str
    """`rates`; `few`, three of them on two seeds; `faults`; or `pictures`."""
    why: str


CANDIDATES: dict[str, Candidate] = {
    "adamw": Candidate("never", {}, "rates", "nothing"),
    "adamw_faults": Candidate("never", {}, "faults", "nothing"),
    "static_cap": Candidate("static_cap", {}, "rates", "the baseline"),
    "adaptive_cap": Candidate("adaptive_cap", {}, "rates", "as it ships"),
    "adaptive_cap_faults": Candidate("adaptive_cap", {}, "faults", "as it ships, under faults"),
    "early_alarm_faults": Candidate("adaptive_cap", {"analyzer.alarm_ratio": 0.45}, "faults", "as before, faults"),
    "adamw_pictures": Candidate("never", {}, "pictures", "nothing, pictures at their best rate"),
    "adaptive_cap_pictures": Candidate("adaptive_cap", {}, "pictures", "as it ships, pictures at their best rate"),
    "early_alarm_pictures": Candidate("adaptive_cap", {"analyzer.alarm_ratio": 0.45}, "pictures", "as before"),
    "first_eighth": Candidate("adaptive_cap", {"analyzer.first_share": 0.125}, "few", "a lower first cap"),
    "first_half": Candidate("adaptive_cap", {"analyzer.first_share": 0.5}, "few", "a higher first cap"),
    "no_collapse": Candidate("adaptive_cap", {"analyzer.collapse_share": 0.0}, "few", "the reach takes nothing back"),
    "never_whole": Candidate("adaptive_cap", {"analyzer.whole_share": 2.0}, "few", "the reach opens nothing"),
    "slow_growth": Candidate("adaptive_cap", {"analyzer.up": 1.15}, "few", "slower growth"),
    "tight": Candidate("adaptive_cap", {"analyzer.cut_ratio": 0.82, "analyzer.alarm_ratio": 0.82}, "few", "cuts early"),
    "loose": Candidate("adaptive_cap", {"analyzer.grow_ratio": 0.9}, "few", "grows early"),
    "two_limits": Candidate(
        "adaptive_cap",
        {"analyzer.cut_ratio": 0.8, "analyzer.alarm_ratio": 0.65},
        "few",
        "one limit where a cap is in the way, another where none is",
    ),
}


class Gru(nn.Module):
    """A development model that is no transformer: byte GRU, torch's own initial weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        # torch's layers draw from the global generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = nn.Embedding(VOCABULARY, 24)
            self.gru = nn.GRU(24, 48, batch_first=True)
            self.head = nn.Linear(48, VOCABULARY)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        states, _ = self.gru(self.tokens(batch[0]))
        return functional.cross_entropy(self.head(states).flatten(0, 1), batch[1].reshape(-1))


def gru_session(setting: Setting) -> TextSession:
    return TextSession(Gru(setting.seed), ByteText(text_of(None, "prose"), setting.seed, 12, 32), 12 * 32)


# of development only, so it has no file among the suite's workloads
WORKLOADS["gru"] = Workload(
    name="gru",
    about="Byte GRU, one layer of 48, on Python's help topics.",
    build=gru_session,
    reference_lr=3e-2,
    rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    steps=STEPS,
    tokens_per_step=12 * 32,
    parameters=20_000,
    trained_parameters=20_000,
)


class Case(NamedTuple):
    """One run of a candidate."""

    model: str
    lr: float
    fault: str
    seed: int


def cases_of(kind: str) -> list[Case]:
    """The runs that a candidate is judged by."""
    if kind == "faults":
        return [Case(a, FAULT_LR, fault, seed) for a in MODELS[:2] for fault in FAULTS for seed in SEEDS]
    if kind == "pictures":
        return [Case("vit", 1e-2, "none", seed) for seed in PICTURE_SEEDS]
    rates = RATES if kind == "rates" else (1e-2, 1e-1, 1.0)
    seeds = SEEDS if kind == "rates" else SEEDS[:2]
    return [Case(a, lr, "none", seed) for a in MODELS for lr in rates for seed in seeds]


class Outcome(NamedTuple):
    """What is kept of a run."""

    loss: float
    rollbacks: int
    skips: int
    lowest_scale: float
    last_scale: float
    seconds: float


def flown(spec: GuardSpec, case: Case) -> Outcome:
    """Fly one run; in a process of its own, on one thread."""
    torch.set_num_threads(1)
    started = time.process_time()
    plan = FlightPlan(
        workload=case.model,
        lr=case.lr,
        seed=case.seed,
        steps=WORKLOADS[case.model].steps if case.lr != FAULT_LR else FAULT_STEPS,
        fault=FAULTS[case.fault](),
    )
    run = fly(plan, spec)
    scales = run.scales
    return Outcome(
        run.validation_loss,
        len(run.rolled_back_to),
        sum(decision.posture == 3 for decision in run.decisions),
        min(scales),
        scales[-1],
        time.process_time() - started,
    )


def collect(work: Path, wanted: list[str], processes: int) -> dict[tuple[str, Case], Outcome]:
    """Fly what is not there yet; one line of JSON per run, written as it ends."""
    work.mkdir(parents=True, exist_ok=True)
    ledger = work / "search.jsonl"
    stamp = f"{torch.__version__} {corpus('prose').digest}"
    done: dict[str, Outcome] = {}
    if ledger.exists():
        for line in ledger.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["stamp"] == stamp:
                done[entry["key"]] = Outcome(**entry["outcome"])

    specs = {name: GuardSpec.load(CANDIDATES[name].preset).with_changes(CANDIDATES[name].changes) for name in wanted}
    places = {
        (name, case): f"{specs[name].fingerprint}|{'|'.join(map(str, case))}"
        for name in wanted
        for case in cases_of(CANDIDATES[name].cases)
    }
    waiting = {key: place for place, key in places.items() if key not in done}
    with ProcessPoolExecutor(processes) as pool, ledger.open("a", encoding="utf-8") as file:
        futures = {pool.submit(flown, specs[name], case): key for key, (name, case) in waiting.items()}
        for future in as_completed(futures):
            key, outcome = futures[future], future.result()
            done[key] = outcome
            file.write(json.dumps({"key": key, "stamp": stamp, "outcome": outcome._asdict()}) + "\n")
            file.flush()
    return {place: done[key] for place, key in places.items()}


def show(name: str, outcomes: dict[tuple[str, Case], Outcome]) -> None:
    """Print a candidate's runs."""
    candidate = CANDIDATES[name]
    print(f"== {name}: {candidate.why} {candidate.changes}")
    mine = {case: outcome for (which, case), outcome in outcomes.items() if which == name}
    groups: dict[tuple[str, float, str], list[Outcome]] = {}
    for case, outcome in mine.items():
        groups.setdefault(case[:3], []).append(outcome)
    for (model, lr, fault), found in groups.items():
        print(
            f"{model:8} {lr:<6g} {fault:14} {statistics.mean(o.loss for o in found):.3f}  "
            + " ".join(f"{o.loss:.3f}" for o in found)
            + f"   rollbacks {[o.rollbacks for o in found]} skips {[o.skips for o in found]} scale "
            + " ".join(f"{o.lowest_scale:.4f}/{o.last_scale:.4f}" for o in found)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidates", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("guard-search"))
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    wanted = given.candidates or list(CANDIDATES)
    outcomes = collect(given.work, wanted, given.processes)
    for name in wanted:
        show(name, outcomes)


if __name__ == "__main__":
    main()
