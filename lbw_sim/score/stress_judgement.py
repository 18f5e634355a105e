"""Judgement of a stress suite: sensitivity to the learning rate, harm, compute lost, paired comparisons, ranks.

It judges runs that happened, and only against runs that happened with the same weights and data. A method is never
called better than a control that was not flown. An undefined number is nan, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lbw_sim.score.learning_rates import GridRun, lr_sensitivity
from lbw_sim.score.significance import Estimate, Ranks, mean_estimate, rank_methods, sign_flip_p
from lbw_sim.score.stress_results import BASELINE, CONTROLS, Suite, SuiteRun, rates_of, seeds_of
from lbw_sim.values import nan

BEST_RATE = "adamw at its best learning rate"
"""The control that is no run of its own: what choosing the learning rate by hand would have given."""
UNTOUCHED = "untouched model"
"""The control of fine-tuning: what not training at all would have given."""
TIE = 0.001
"""Losses nearer than this share of each other are called equal when wins are counted."""
TARGET_TOLERANCE = 0.01
"""How near to the loss of AdamW at its best learning rate a run must come to have reached it."""
FROM = 0.3
"""Multiple of the best learning rate from which sensitivity is held against its bar: no guard that only lowers a
learning rate can do anything for one that is too low."""
HIGH = (10.0, 100.0)
"""Multiples of the best learning rate, both inclusive, that are called far too high."""


class Bars(NamedTuple):
    """What a guard is asked for before it may be called one that needs no tuning."""

    sensitivity: float = 0.05
    """nats, over learning rates from `FROM` times the best one up."""
    high_excess: float = 0.03
    """Share of the best loss, at learning rates that are `HIGH`, mean over seeds."""
    harm: float = 0.005
    """Share of AdamW's loss at and below its best learning rate, mean over seeds."""
    harm_worst: float = 0.015
    """The same, of any one seed."""


BARS = Bars()


class Reference(NamedTuple):
    """AdamW on one workload."""

    best_lr: float
    """Of the grid, by mean counted loss."""
    best_loss: float
    """nats, mean over seeds."""
    at_best: Mapping[int, SuiteRun]
    """Seed -> its run at the best learning rate."""
    rates: tuple[float, ...]
    runs: tuple[SuiteRun, ...]


class Standing(NamedTuple):
    """One method, or control, on one workload. Shares are of the loss; seeds that miss a learning rate are left out."""

    workload: str
    label: str
    seeds: int
    diverged: int
    """Runs that ended without a finite loss."""
    sensitivity: Estimate
    """nats; mean over nominal learning rates of the counted loss above AdamW's best (arXiv 2309.14322)."""
    sensitivity_from: Estimate
    """nats; the same over learning rates from `FROM` times the best one up."""
    sensitivity_below: float
    """nats; how much of that AdamW itself has below its best learning rate: lowering mends none of it."""
    effective_sensitivity: Estimate
    """nats; over all, weighted by the logarithm of the mean effective learning rate; nan where that spans nothing."""
    decades: float
    """Factors of ten that the mean effective learning rates span."""
    harm: Estimate
    """Loss above AdamW's at AdamW's best learning rate, as a share."""
    harm_worst: float
    """Of the worst seed, at the best learning rate and all below."""
    harm_below: float
    """The largest mean over seeds among these learning rates."""
    high_excess: Estimate
    """Loss above AdamW's best, as a share, mean over learning rates that are `HIGH`; nan where the grid has none."""
    high_worst: float
    """Largest mean over seeds among these learning rates."""
    reached: int
    """Runs that reached AdamW's best training loss."""
    runs: int
    to_target: float
    """Tokens until there, as a share of those that AdamW needs at its best learning rate: mean over runs that reach."""
    lost_share: Estimate
    """Share of all tokens that went into runs that never reached it, or into steps that were trained again."""


class Paired(NamedTuple):
    """One method against another over (workload, learning rate, seed)."""

    label: str
    against: str
    pairs: int
    difference: Estimate
    """nats, negative: `label` is lower. Interval by Student's t over seeds, one value each: its mean over the grid."""
    lower: int
    """Pairs in which `label` is lower by more than `TIE`."""
    higher: int
    p: float
    """Sign-flip test; all pairs of one workload and seed share weights and data and flip together."""

    @property
    def beats(self) -> bool:
        """Whether the interval lies below zero."""
        return self.difference.high < 0.0

    @property
    def beaten(self) -> bool:
        """Whether the interval lies above zero."""
        return self.difference.low > 0.0


class Judgement(NamedTuple):
    """Everything that is said of a suite."""

    suite: Suite
    references: Mapping[str, Reference]
    """Workload -> AdamW there; workloads without any run of AdamW are missing."""
    standings: tuple[Standing, ...]
    paired: tuple[Paired, ...]
    """Every method against AdamW and AdamW at its best; guards also against their controls and the other methods."""
    ranks: Ranks
    """Methods, without controls, over blocks (workload, learning rate) with seeds averaged."""

    def standing(self, workload: str, label: str) -> Standing | None:
        """One standing; None when there is none."""
        return next((s for s in self.standings if s.workload == workload and s.label == label), None)

    def pair(self, label: str, against: str) -> Paired | None:
        """One comparison; None when there is none."""
        return next((p for p in self.paired if p.label == label and p.against == against), None)


def judge(suite: Suite) -> Judgement:
    """Judge whatever runs there are."""
    references = {
        facts.name: plain for facts in suite.facts.workloads if (plain := reference(suite.of(facts.name, BASELINE)))
    }
    labels = suite.labels(controls=True)
    standings = [
        standing(name, label, runs, references[name])
        for name in references
        for label in labels
        if (runs := suite.of(name, label))
    ]
    losses = {label: _cells(run for run in suite.runs if run.label == label) for label in labels}
    losses[BEST_RATE] = {
        (run.workload, run.lr, run.seed): found.counted_loss
        for run in suite.runs
        if run.label == BASELINE
        and run.workload in references
        and (found := references[run.workload].at_best.get(run.seed))
    }
    fine_tuned = {facts.name for facts in suite.facts.workloads if facts.fine_tuning}
    untouched = {(run.workload, run.lr, run.seed): run.initial_loss for run in suite.runs if run.workload in fine_tuned}
    methods = suite.labels(controls=False)
    paired = []
    for label in methods:
        others = [BASELINE, BEST_RATE]
        if label in suite.facts.controlled:
            others += [f"{control} of {label}" for control in CONTROLS]
            others += [other for other in methods if other not in (BASELINE, label)]
        paired += [compare(label, other, losses[label], losses[other]) for other in others if other in losses]
        if label in suite.facts.controlled and untouched:
            # not the counted loss: that is capped at the untouched model's
            ended = _cells((run for run in suite.runs if run.label == label), counted=False)
            paired.append(compare(label, UNTOUCHED, ended, untouched))
    kept = [pair for pair in paired if pair.pairs and pair.label != pair.against]
    return Judgement(suite, references, tuple(standings), tuple(kept), _ranks(methods, losses))


def reference(runs: Sequence[SuiteRun]) -> Reference | None:
    """AdamW's runs on one workload; None when there are none."""
    if not runs:
        return None
    means = {
        lr: math.fsum(losses) / len(losses)
        for lr in rates_of(runs)
        if (losses := [run.counted_loss for run in runs if run.lr == lr])
    }
    best = min(means, key=means.__getitem__)
    return Reference(best, means[best], {run.seed: run for run in runs if run.lr == best}, tuple(means), tuple(runs))


def standing(workload: str, label: str, runs: Sequence[SuiteRun], plain: Reference) -> Standing:
    """Where one method stands on one workload, against AdamW there."""
    by_seed = {seed: {run.lr: run for run in runs if run.seed == seed} for seed in seeds_of(runs)}
    whole = {
        seed: [mine[lr] for lr in plain.rates]
        for seed, mine in by_seed.items()
        if seed in plain.at_best and set(plain.rates) <= set(mine)
    }
    best = {seed: run.counted_loss for seed, run in plain.at_best.items()}
    spans = [effective_span(mine, best[seed]) for seed, mine in whole.items()]
    harm = {lr: _harm(runs, plain, lr) for lr in plain.rates if lr <= plain.best_lr * 1.0001}
    harm = {lr: found for lr, found in harm.items() if found}
    low, high = HIGH
    # a little room: 0.3 is ten times 0.03 on paper only
    far = [lr for lr in plain.rates if low * 0.999 <= lr / plain.best_lr <= high * 1.001]
    excess = {
        seed: [mine[lr].counted_loss / best[seed] - 1.0 for lr in far if lr in mine]
        for seed, mine in by_seed.items()
        if seed in best
    }
    by_rate = [[mine[place] for mine in excess.values() if len(mine) == len(far)] for place in range(len(far))]
    reached = [run for run in runs if run.tokens_to_target <= run.tokens]
    ratios = [
        run.tokens_to_target / plain.at_best[run.seed].tokens_to_target for run in reached if run.seed in plain.at_best
    ]
    return Standing(
        workload=workload,
        label=label,
        seeds=len(whole),
        diverged=sum(math.isnan(run.final_loss) for run in runs),
        sensitivity=mean_estimate([lr_sensitivity(_grid(mine), best[seed]) for seed, mine in whole.items()]),
        sensitivity_from=mean_estimate(
            [
                lr_sensitivity(_grid(run for run in mine if run.lr >= 0.999 * FROM * plain.best_lr), best[seed])
                for seed, mine in whole.items()
            ]
        ),
        sensitivity_below=_sensitivity_below(plain),
        effective_sensitivity=mean_estimate([value for value, _ in spans]),
        decades=_mean([decades for _, decades in spans]),
        harm=mean_estimate(harm.get(plain.best_lr, [])),
        harm_worst=max((max(found) for found in harm.values()), default=nan),
        harm_below=max((_mean(found) for found in harm.values()), default=nan),
        high_excess=mean_estimate([_mean(mine) for mine in excess.values() if far and len(mine) == len(far)]),
        high_worst=max((_mean(found) for found in by_rate if found), default=nan),
        reached=len(reached),
        runs=len(runs),
        to_target=_mean([ratio for ratio in ratios if math.isfinite(ratio)]),
        lost_share=mean_estimate([_lost_share(list(mine.values())) for mine in by_seed.values()]),
    )


def _sensitivity_below(plain: Reference) -> float:
    """The share of AdamW's own `sensitivity_from` that lies below its best learning rate."""
    rates = [lr for lr in plain.rates if lr >= 0.999 * FROM * plain.best_lr]
    above = {
        lr: [
            run.counted_loss - plain.at_best[run.seed].counted_loss
            for run in plain.runs
            if run.lr == lr and run.seed in plain.at_best
        ]
        for lr in rates
        if lr < plain.best_lr
    }
    return math.fsum(_mean(found) for found in above.values()) / len(rates)


def effective_span(runs: Sequence[SuiteRun], best_loss: float) -> tuple[float, float]:
    """Sensitivity weighted by the logarithm of the mean effective learning rate, and the decades that it spans.

    The area between the loss, over that logarithm, and `best_loss`, divided by its width. A guard that brings every
    learning rate to the same effective one has no width, and no such number: nan.
    """
    points = sorted((run.mean_effective_lr, run.counted_loss) for run in runs)
    if len(points) < 2 or not points[0][0] > 0.0:
        return nan, nan
    where = np.log10([lr for lr, _ in points])
    above = np.array([loss for _, loss in points]) - best_loss
    width = float(where[-1] - where[0])
    if width < 1e-9:
        return nan, 0.0
    area = float(((above[1:] + above[:-1]) / 2.0 * np.diff(where)).sum())
    return area / width, width


def compare(label: str, against: str, mine: Mapping[Cell, float], theirs: Mapping[Cell, float]) -> Paired:
    """Pair two methods wherever both have a run."""
    cells = sorted(mine.keys() & theirs.keys())
    differences = {cell: mine[cell] - theirs[cell] for cell in cells}
    by_seed: dict[int, list[float]] = {}
    blocks: dict[tuple[str, int], float] = {}
    for (workload, _, seed), difference in differences.items():
        by_seed.setdefault(seed, []).append(difference)
        blocks[workload, seed] = blocks.get((workload, seed), 0.0) + difference
    return Paired(
        label,
        against,
        len(cells),
        mean_estimate([_mean(found) for found in by_seed.values()]),
        sum(differences[cell] < -TIE * theirs[cell] for cell in cells),
        sum(differences[cell] > TIE * theirs[cell] for cell in cells),
        sign_flip_p(list(blocks.values())),
    )


def missed(found: Standing, bars: Bars = BARS) -> list[str]:
    """The bars that a guard misses on one workload, as words with its figures; a figure that is nan misses its bar."""
    said = []
    if not found.sensitivity_from.mean <= bars.sensitivity:
        below = f"; AdamW's own below its best learning rate: {_nats(found.sensitivity_below)}"
        said.append(f"sensitivity {_nats(found.sensitivity_from.mean)} (bar {bars.sensitivity:g}{below})")
    if not found.high_worst <= bars.high_excess:
        said.append(f"{percent(found.high_worst)} at a learning rate far too high (bar {100 * bars.high_excess:g} %)")
    if not found.harm_below <= bars.harm:
        said.append(f"harm {percent(found.harm_below)} in the mean (bar {100 * bars.harm:g} %)")
    if not found.harm_worst <= bars.harm_worst:
        said.append(f"harm {percent(found.harm_worst)} on the worst seed (bar {100 * bars.harm_worst:g} %)")
    return said


def percent(share: float, digits: int = 2) -> str:
    """A share with its sign, or a dash.

    >>> percent(0.0123), percent(nan)
    ('+1.23 %', '–')
    """
    return "–" if math.isnan(share) else f"{100.0 * share:+.{digits}f} %"


def _nats(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.3f}"


Cell = tuple[str, float, int]
"""Workload, nominal learning rate, seed."""


def _cells(runs: Iterable[SuiteRun], *, counted: bool = True) -> dict[Cell, float]:
    return {
        (run.workload, run.lr, run.seed): run.counted_loss if counted else run.final_loss for run in runs
    }  # fmt: skip


def _harm(runs: Sequence[SuiteRun], plain: Reference, lr: float) -> list[float]:
    """Per seed, the loss at one learning rate above that of AdamW there, as a share."""
    own = {run.seed: run.counted_loss for run in plain.runs if run.lr == lr}
    return [run.counted_loss / own[run.seed] - 1.0 for run in runs if run.lr == lr and run.seed in own]


def _grid(runs: Iterable[SuiteRun]) -> list[GridRun]:
    return [
        GridRun(run.run_id, run.workload, run.method, run.lr, str(run.seed), run.initial_loss, run.final_loss)
        for run in runs
    ]


def _lost_share(runs: Sequence[SuiteRun]) -> float:
    """nan when it is not known what had to be reached."""
    if any(math.isnan(run.tokens_to_target) for run in runs):
        return nan
    lost = sum(
        run.tokens * (run.retrained_steps / run.steps if run.tokens_to_target <= run.tokens else 1.0) for run in runs
    )
    return lost / sum(run.tokens for run in runs)


def _ranks(methods: Sequence[str], losses: Mapping[str, Mapping[Cell, float]]) -> Ranks:
    """Ranks of the methods that have a run in every cell."""
    cells = set().union(*(losses[method] for method in methods)) if methods else set()
    complete = [method for method in methods if losses[method].keys() == cells]
    blocks = sorted({(workload, lr) for workload, lr, _ in cells})
    table = np.array(
        [
            [_mean([loss for cell, loss in losses[method].items() if cell[:2] == block]) for method in complete]
            for block in blocks
        ]
    ).reshape(len(blocks), len(complete))
    return rank_methods(complete, table)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else nan
