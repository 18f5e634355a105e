"""What a stress suite shows, in sentences made from its figures: also where a guard does not beat a control.

No sentence is written by hand about a result. What a comparison could not settle is called unsettled.
"""

from __future__ import annotations

import math

from lbw_sim.score.significance import LEVEL, Estimate
from lbw_sim.score.stress_judgement import (
    BARS,
    BEST_RATE,
    FROM,
    TIE,
    UNTOUCHED,
    Judgement,
    Paired,
    Standing,
    missed,
    percent,
)
from lbw_sim.score.stress_results import BASELINE, CONTROLS, NUDGE, seeds_of
from lbw_sim.wording import counted

UNBEATEN = {
    BASELINE: "over this grid it is no better than no guard",
    BEST_RATE: "one learning rate chosen by hand, once, does as well or better; the guard saves that choice, not loss",
    UNTOUCHED: "not training at all would have left the lower loss",
    "same_mean_lr": "what it gains is what a lower learning rate gains, which it had to find and the control was told",
    "playback": "its schedule does as much without looking at the loss, so the feedback is not what helps",
    "frozen_floor": "a learning rate held at its lowest scale does as much, so changing the scale is not what helps",
    "random_damping": "as much damping at random times does as much, so when it acts is not what helps",
}
"""What it means when a guard does not beat a comparison."""
NAMES = {
    BASELINE: "AdamW",
    BEST_RATE: "AdamW at its best learning rate",
    UNTOUCHED: "the untouched model",
    **CONTROLS,
}
CEILING = (BEST_RATE,)
"""Comparisons that know what no method may know; not to lose to them is enough."""
TIES = 0.5
"""Where at least this share of pairs is equal, a sentence says so."""


def sentences(judgement: Judgement) -> list[str]:
    """The findings, most important first. Names of methods stand in backticks."""
    suite = judgement.suite
    said = _caveats(judgement)
    guards = [label for label in suite.facts.controlled if any(s.label == label for s in judgement.standings)]
    for guard in guards:
        said += _guard(judgement, guard)
    if not guards:
        for label in (label for label in suite.labels(controls=False) if label.startswith("guard:")):
            said += _bars(judgement, label)
    said += _others(judgement, guards)
    said += _ranks(judgement)
    return said


def verdict(pair: Paired) -> str:
    """`beats`, `loses to`, `equals` or `is not told apart from`.

    Equal: every pair is a tie, as for a guard that never acted.
    """
    if pair.lower == pair.higher == 0:
        return "equals"
    return "beats" if pair.beats else "loses to" if pair.beaten else "is not told apart from"


def interval(estimate: Estimate, spec: str = "+.3f") -> str:
    """Mean with its interval; only the mean where there is none."""
    if math.isnan(estimate.mean):
        return "–"
    if math.isnan(estimate.low):
        return format(estimate.mean, spec)
    return f"{format(estimate.mean, spec)} ({format(estimate.low, spec)} to {format(estimate.high, spec)})"


def control_name(label: str) -> str:
    """`playback of guard:x` -> `playback`; any other label as it is."""
    name = label.partition(" of ")[0]
    return name if name in CONTROLS else label


def _caveats(judgement: Judgement) -> list[str]:
    facts = judgement.suite.facts
    said = []
    if not facts.complete:
        said.append(
            f"This suite is not finished: {facts.finished_runs} of {counted(facts.planned_runs, 'run')}. Methods that "
            "miss a seed or a learning rate are judged on what is there."
        )
    seeds = len(seeds_of(judgement.suite.runs))
    if seeds < 3:
        said.append(f"Only {counted(seeds, 'seed')}: fewer than three is an anecdote.")
    drawn = [facts.name for facts in facts.workloads if facts.random_weights]
    if drawn:
        said.append(
            f"{', '.join(drawn)}: random weights instead of the published ones, so these losses say how the method "
            "behaves on that architecture and nothing about the pretrained model."
        )
    return said


def _guard(judgement: Judgement, guard: str) -> list[str]:
    said = []
    plain = judgement.pair(guard, BASELINE)
    if plain is not None:
        said.append(f"`{guard}` {verdict(plain)} AdamW over all learning rates: {_figures(plain)}.{_ties(plain)}")
    won, open_, lost = [], [], []
    for against in (BEST_RATE, *(f"{control} of {guard}" for control in CONTROLS), UNTOUCHED):
        pair = judgement.pair(guard, against)
        if pair is None:
            continue
        name = control_name(against)
        if pair.beats:
            won.append(f"{NAMES[name]} ({interval(pair.difference)})")
        else:
            words = f"`{guard}` {verdict(pair)} {NAMES[name]}: {_figures(pair)}. "
            if pair.beaten or pair.lower == pair.higher == 0 or name in CEILING:
                lost.append(f"{words}So {UNBEATEN[name]}.")
            else:
                open_.append(f"{words}So it may be that {UNBEATEN[name]}; more seeds may settle it.")
    if won:
        said.append(f"`{guard}` beats, with an interval that excludes zero: {'; '.join(won)}.")
    said += lost + open_
    said += _bars(judgement, guard)
    return said


def _figures(pair: Paired) -> str:
    p = "–" if math.isnan(pair.p) else f"{pair.p:.3g}"
    return (
        f"{interval(pair.difference)} nats in the mean, lower in {pair.lower} and higher in {pair.higher} of "
        f"{pair.pairs} pairs, p = {p}"
    )


def _ties(pair: Paired) -> str:
    ties = pair.pairs - pair.lower - pair.higher
    if ties == pair.pairs:
        return f" Every pair is equal to {100 * TIE:g} %: it changed nothing that matters here."
    return f" {ties} pairs are equal to {100 * TIE:g} %." if ties >= TIES * pair.pairs else ""


def _bars(judgement: Judgement, guard: str) -> list[str]:
    standings = [found for found in judgement.standings if found.label == guard]
    short = {found.workload: missed(found) for found in standings}
    met = [name for name, gone in short.items() if not gone]
    said = [
        f"Bars for a guard without tuning (sensitivity ≤ {BARS.sensitivity:g} nats over learning rates from "
        f"{FROM:g} times the best up; within "
        f"{100 * BARS.high_excess:g} % of the best loss at 10 to 100 times the best learning rate; harm at and below "
        f"it ≤ {100 * BARS.harm:g} % in the mean and ≤ {100 * BARS.harm_worst:g} % on any seed): `{guard}` meets them "
        f"on {', '.join(met) or 'no workload here'}."
    ]
    said += [
        f"`{guard}` on {name} misses: {'; '.join(gone)}.{_chance(judgement, name)}"
        for name, gone in short.items()
        if gone
    ]
    return said


def _chance(judgement: Judgement, workload: str) -> str:
    """What next to nothing changes on the same seeds and learning rates; empty where that was not flown."""
    found = judgement.standing(workload, NUDGE)
    if found is None or math.isnan(found.harm_worst):
        return ""
    return (
        f" A learning rate a thousandth lower (`{NUDGE}`) changes the loss at and below AdamW's best one by "
        f"{percent(found.harm_below)} in the mean and {percent(found.harm_worst)} on the worst seed: as much is chance."
    )


def _others(judgement: Judgement, guards: list[str]) -> list[str]:
    """Every method against AdamW, and the best guard against the best of the rest."""
    said = []
    methods = judgement.suite.labels(controls=False)
    pairs = [pair for label in methods if label not in guards and (pair := judgement.pair(label, BASELINE))]
    groups = {
        "Lower loss than AdamW over all learning rates, interval below zero": [pair for pair in pairs if pair.beats],
        "Higher": [pair for pair in pairs if pair.beaten],
        "Not told apart from AdamW": [pair for pair in pairs if not pair.beats and not pair.beaten],
    }
    told = [
        f"{name}: {', '.join(f'`{pair.label}` {interval(pair.difference)}' for pair in found)}"
        for name, found in groups.items()
        if found
    ]
    if told:
        said.append(f"{'. '.join(told)}.")
    for guard in guards:
        rivals = [
            pair
            for pair in judgement.paired
            if pair.label == guard and pair.against in methods and pair.against not in (BASELINE, *guards)
        ]
        unbeaten = [pair for pair in rivals if not pair.beats]
        if unbeaten:
            names = ", ".join(f"`{pair.against}` {interval(pair.difference)}" for pair in unbeaten)
            said.append(f"`{guard}` does not beat these other methods (its loss minus theirs): {names}.")
        elif rivals:
            said.append(f"`{guard}` beats every other method that was flown, each with an interval below zero.")
    clips = [pair for pair in pairs if pair.label.startswith("clip")]
    if clips and guards:
        best = min(clips, key=lambda pair: pair.difference.mean)
        shown = judgement.pair(guards[0], BASELINE)
        if shown is not None and shown.difference.mean < 0.0:
            share = max(0.0, best.difference.mean / shown.difference.mean)
            said.append(
                f"The best clipping, `{best.label}`, gains {100 * share:.0f} % of what `{guards[0]}` gains over AdamW."
            )
    worst: Standing | None = max(
        (found for found in judgement.standings if found.label in methods and not math.isnan(found.harm_worst)),
        key=lambda found: found.harm_worst,
        default=None,
    )
    if worst is not None and worst.label != BASELINE:
        said.append(
            f"The worst harm of any method at or below AdamW's best learning rate: `{worst.label}` on "
            f"{worst.workload}, {percent(worst.harm_worst)} on one seed."
        )
    return said


def _ranks(judgement: Judgement) -> list[str]:
    ranks = judgement.ranks
    if math.isnan(ranks.critical_difference):
        return []
    best = ranks.mean_ranks[0]
    near = [
        method
        for method, rank in zip(ranks.methods, ranks.mean_ranks, strict=True)
        if rank - best < ranks.critical_difference
    ]
    others = f"; not told apart from it: {', '.join(f'`{method}`' for method in near[1:])}" if near[1:] else ""
    return [
        f"Ranks over {ranks.blocks} blocks (workload, learning rate): best `{ranks.methods[0]}` with "
        f"{best:.2f}{others}. Friedman p = {ranks.p:.2g}, critical difference {ranks.critical_difference:.2f} at "
        f"{100 * (1 - LEVEL):.0f} % (Nemenyi). Learning rates of one workload are not independent of each other, so "
        "this orders what was flown and proves nothing about other workloads."
    ]
