"""The page of a stress suite as data: sections of sentences and tables, for Markdown and for HTML alike.

It draws nothing and judges nothing. Every number stands in `results.csv` or follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lbw_sim.score.seed_paper import METHODS as PAPER_METHODS
from lbw_sim.score.seed_paper import published_rows
from lbw_sim.score.significance import LEVEL, Estimate, mean_estimate
from lbw_sim.score.stress_judgement import (
    BEST_RATE,
    FROM,
    TARGET_TOLERANCE,
    UNTOUCHED,
    Judgement,
    Paired,
    Standing,
    percent,
)
from lbw_sim.score.stress_results import BASELINE, CONTROLS, SuiteRun, WorkloadFacts, rates_of, seeds_of
from lbw_sim.score.stress_words import control_name, interval, sentences, verdict
from lbw_sim.score.table import Column, markdown, shown
from lbw_sim.values import nan
from lbw_sim.wording import counted

Row = dict[str, object]
SHOWN_FACTORS = (1.0, 10.0, 100.0)
"""Multiples of the reference learning rate that the short form of the last table shows, the nearest of the grid."""


class Section(NamedTuple):
    """A heading with what stands under it, in this order."""

    title: str
    anchor: str
    points: tuple[str, ...] = ()
    """Sentences; names in backticks are code."""
    listed: bool = False
    """Whether the sentences are a list."""
    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()
    figure: str = ""
    """Name of the figure that belongs here: `sensitivity` or `ranks`."""


def page(judgement: Judgement, *, every_rate: bool = True) -> list[Section]:
    """All sections. Without `every_rate` the last table holds only the learning rates near `SHOWN_FACTORS`."""
    facts = judgement.suite.facts
    made = [
        Section("What stands out", "findings", tuple(sentences(judgement)), listed=True),
        _workloads(judgement),
        Section(
            "Sensitivity to the learning rate", "sensitivity",
            ("Final validation loss against the nominal learning rate, and against the one that was applied in the "
             "mean. A guard rescales the learning rate: a curve that is flat at the left and lies on AdamW's at "
             "the right is a guard that found a lower learning rate. Drawn is at most the loss before training: worse "
             "than that is all the same here, and stands in the tables. Bars reach from the best to the worst seed.",),
            figure="sensitivity",
        ),
    ]  # fmt: skip
    for workload in facts.workloads:
        if workload.name in judgement.references:
            made += [_losses(judgement, workload), _standings(judgement, workload)]
    made += [
        _against_adamw(judgement),
        *(_controls(judgement, guard) for guard in facts.controlled),
        Section(
            "Ranks",
            "ranks",
            (
                "Mean rank of the final loss within each (workload, learning rate), seeds averaged first. Grey bars "
                "join methods that are not told apart: their mean ranks lie nearer than the critical difference.",
            ),
            figure="ranks",
        ),
        _seed_paper(judgement),
    ]
    for workload in facts.workloads:
        made.append(_every_row(judgement, workload, every_rate=every_rate))
    return [section for section in made if section.points or section.rows or section.figure]


def markdown_page(
    sections: Sequence[Section], title: str, lead: Sequence[str], figures: Mapping[str, str], level: int = 1
) -> str:
    """The sections as a Markdown document. `figures`: name of a figure -> its path as the page links it; without it a
    section that is made of one is left out. `level`: of the title's heading."""
    lines = [f"{'#' * level} {title}", "", *(part for text in lead for part in (text, ""))]
    for section in sections:
        if section.figure and section.figure not in figures:
            continue
        lines += [f"{'#' * (level + 1)} {section.title}", ""]
        if section.listed:
            lines += [*(f"- {text}" for text in section.points), ""]
        else:
            lines += [part for text in section.points for part in (text, "")]
        if section.figure:
            lines += [f"![{section.title}]({figures[section.figure]})", ""]
        if section.rows:
            lines += [markdown(section.rows, section.columns), ""]
    return "\n".join(lines).rstrip() + "\n"


def _workloads(judgement: Judgement) -> Section:
    facts = judgement.suite.facts
    rows: list[Row] = []
    for workload in facts.workloads:
        runs = [run for run in judgement.suite.runs if run.workload == workload.name]
        plain = judgement.references.get(workload.name)
        weights = "random (published ones can't be had here)" if workload.random_weights else ""
        rows.append(
            {
                "workload": workload.name,
                "about": "; ".join(part for part in (workload.about.rstrip("."), workload.text, weights) if part),
                "parameters": workload.parameters,
                "runs": len(runs),
                "seeds": len(seeds_of(runs)),
                "steps": max((run.steps for run in runs), default=0),
                "reference_lr": workload.reference_lr,
                "best_lr": plain.best_lr if plain else nan,
                "initial": _mean([run.initial_loss for run in runs]),
                "best_loss": plain.best_loss if plain else nan,
                "unit": workload.unit,
            }
        )
    return Section(
        "Workloads", "workloads",
        (f"{facts.about.rstrip('.')}. {facts.machine}, "
         f"{counted(facts.processes, 'process', 'processes')}: wall-clock times are of a shared machine.",),
        columns=(
            Column("workload", "workload"), Column("about", "what it is"), Column("parameters", "parameters", ","),
            Column("runs", "runs", "d"), Column("seeds", "seeds", "d"), Column("steps", "steps", "d"),
            Column("reference_lr", "reference LR", "g"), Column("best_lr", "AdamW's best LR", "g"),
            Column("initial", "loss before training", ".3f"), Column("best_loss", "AdamW's best loss", ".3f"),
            Column("unit", "nats per"),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _losses(judgement: Judgement, workload: WorkloadFacts) -> Section:
    """Method × learning rate, with both sensitivities."""
    suite, plain = judgement.suite, judgement.references[workload.name]
    rates = plain.rates
    rows: list[Row] = []
    for label in suite.labels(controls=True):
        runs, found = suite.of(workload.name, label), judgement.standing(workload.name, label)
        if found is None:
            continue
        row: Row = {"method": label}
        for lr in rates:
            row[f"{lr:g}"] = spread([run.final_loss for run in runs if run.lr == lr])
        row |= _sensitivities(found)
        rows.append(row)
    best = mean_estimate([run.final_loss for run in plain.at_best.values()])
    rows.append(
        {"method": f"{BEST_RATE} ({plain.best_lr:g})", **dict.fromkeys((f"{lr:g}" for lr in rates), spread_of(best)),
         "sensitivity": "0 by definition", "from": nan, "effective": nan, "decades": nan, "diverged": nan}
    )  # fmt: skip
    if workload.fine_tuning:
        before = spread_of(mean_estimate(_first_losses(suite.of(workload.name, BASELINE))))
        rows.append(
            {"method": UNTOUCHED, **dict.fromkeys((f"{lr:g}" for lr in rates), before), "sensitivity": nan, "from": nan,
             "effective": nan, "decades": nan, "diverged": nan}
        )  # fmt: skip
    return Section(
        f"{workload.name}: final validation loss", f"loss-{workload.name}",
        (f"nats per {workload.unit}, mean over seeds ± half the {100 * LEVEL:.0f} % interval (Student's t). "
         "Sensitivity: mean over these learning rates of the loss, at most that before training, above AdamW's best; "
         f"again from {FROM:g} times the best learning rate up, for no guard that only lowers can mend one too low; "
         "the effective one weighs by the logarithm of the mean learning rate applied, over so many decades. Controls "
         "stand at the guarded run's nominal learning rate.",),
        columns=(
            Column("method", "method"), *(Column(f"{lr:g}", f"{lr:g}", "s") for lr in rates),
            Column("sensitivity", "sensitivity", "s"),
            Column("from", f"from {FROM:g} × best", "s"), Column("effective", "effective", ".3f"),
            Column("decades", "decades", ".1f"), Column("diverged", "diverged", "d"),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _sensitivities(found: Standing) -> Row:
    return {
        "sensitivity": spread_of(found.sensitivity),
        "from": spread_of(found.sensitivity_from),
        "effective": found.effective_sensitivity.mean,
        "decades": found.decades,
        "diverged": found.diverged,
    }


def _standings(judgement: Judgement, workload: WorkloadFacts) -> Section:
    """Harm, far too high learning rates, compute."""
    plain = judgement.standing(workload.name, BASELINE)
    rows: list[Row] = []
    for found in judgement.standings:
        if found.workload != workload.name:
            continue
        rows.append(
            {
                "method": found.label,
                "harm": _percent(found.harm),
                "harm_below": percent(found.harm_below),
                "harm_worst": percent(found.harm_worst),
                "high": _percent(found.high_excess, 1),
                "high_worst": percent(found.high_worst, 1),
                "reached": f"{found.reached} of {found.runs}",
                "to_target": found.to_target,
                "lost": found.lost_share.mean,
                "saved": plain.lost_share.mean - found.lost_share.mean if plain else nan,
            }
        )
    return Section(
        f"{workload.name}: harm, rescue, compute", f"standing-{workload.name}",
        ("Harm: loss above AdamW's with the same seed and learning rate, at AdamW's best learning rate, the largest "
         "mean there and at all below, and the worst single seed. Far too high: loss above AdamW's best at 10 to 100 "
         "times the best learning rate, in the mean and at the worst of them. Reached: runs whose smoothed training "
         f"loss comes within {100 * TARGET_TOLERANCE:g} % of where AdamW at its best learning rate ends; the tokens "
         "they need as a share of AdamW's own; lost: share of all tokens that went into runs that never get there or "
         "into steps trained again; saved: lost by AdamW less lost by the method.",),
        columns=(
            Column("method", "method"), Column("harm", "harm at the best LR", "s"),
            Column("harm_below", "largest at or below", "s"), Column("harm_worst", "worst seed", "s"),
            Column("high", "far too high", "s"), Column("high_worst", "worst LR", "s"),
            Column("reached", "reached", "s"), Column("to_target", "tokens to there", ".2f"),
            Column("lost", "lost", ".0%"), Column("saved", "saved", "+.0%"),
        ),
        rows=tuple(rows),
    )  # fmt: skip


PAIR_COLUMNS = (
    Column("method", "method"), Column("against", "against"), Column("difference", "difference, nats (95 %)", "s"),
    Column("lower", "lower", "d"), Column("higher", "higher", "d"), Column("pairs", "pairs", "d"),
    Column("p", "p", ".2g"), Column("verdict", "verdict"),
)  # fmt: skip


def _pair_row(pair: Paired) -> Row:
    return {
        "method": pair.label,
        "against": control_name(pair.against),
        "difference": interval(pair.difference),
        "lower": pair.lower,
        "higher": pair.higher,
        "pairs": pair.pairs,
        "p": pair.p,
        "verdict": verdict(pair),
    }


def _against_adamw(judgement: Judgement) -> Section:
    rows = [
        _pair_row(pair)
        for label in judgement.suite.labels(controls=False)
        for against in (BASELINE, BEST_RATE)
        if (pair := judgement.pair(label, against)) is not None
    ]
    seeds = len(seeds_of(judgement.suite.runs))
    return Section(
        "Every method against AdamW", "against-adamw",
        ("Pairs over (workload, learning rate, seed); loss of the method minus the other's, negative is lower. The "
         f"interval is Student's t over {counted(seeds, 'seed')}, each seed's mean over the grid being one value. p: "
         "sign-flip test in which all pairs of one workload and seed, which share weights and data, flip together. "
         "Pairs nearer than 0.1 % count neither as lower nor as higher.",),
        columns=PAIR_COLUMNS, rows=tuple(rows),
    )  # fmt: skip


def _controls(judgement: Judgement, guard: str) -> Section:
    others = [f"{control} of {guard}" for control in CONTROLS] + [BEST_RATE, UNTOUCHED]
    rows = [_pair_row(pair) for other in others if (pair := judgement.pair(guard, other)) is not None]
    meanings = "; ".join(f"`{name}`: {about}" for name, about in CONTROLS.items())
    return Section(
        f"`{guard}` against its controls", f"controls-{guard.replace(':', '-')}",
        (f"{meanings}. Each of them is told what the guard found out in flight: to equal them is to have found a good "
         "learning rate untold, and no more than that; to beat them, feedback has to do something in its time.",),
        columns=PAIR_COLUMNS, rows=tuple(rows),
    )  # fmt: skip


def _seed_paper(judgement: Judgement) -> Section:
    guard = next(iter(judgement.suite.facts.controlled), "guard:default")
    columns = [
        Column("system", "system"), Column("lr", "LR"), Column("adamw_perplexity", "published AdamW", ".2f"),
        Column("guard_perplexity", "published guard", ".2f"), Column("adamw_seconds", "AdamW, s", ".2f"),
        Column("guard_seconds", "guard, s", ".2f"),
    ]  # fmt: skip
    columns += [Column(f"here_{method}", f"here: {method}", ".2f") for method in PAPER_METHODS]
    columns += [
        Column("here_guard", f"here: {guard}", ".2f"), Column("seconds_adamw", "here: AdamW, s", ".1f"),
        Column("seconds_guard", "here: guard, s", ".1f"), Column("state", "state"),
    ]  # fmt: skip
    return Section(
        "The seed paper's rows", "seed-paper",
        ("Perplexities and wall-clock times of the LBW-Guard paper (arXiv 2605.19008), and what was measured here. A "
         "dash under `published` is a figure that is not public.",),
        columns=tuple(columns), rows=tuple(published_rows(judgement.suite, guard)),
    )  # fmt: skip


def _every_row(judgement: Judgement, workload: WorkloadFacts, *, every_rate: bool) -> Section:
    """What the seed paper's tables list, for each learning rate and method."""
    suite = judgement.suite
    runs = [run for run in suite.runs if run.workload == workload.name]
    rates = rates_of(runs)
    if not every_rate:
        asked = [factor * workload.reference_lr for factor in SHOWN_FACTORS]
        rates = sorted({min(rates, key=lambda lr: abs(math.log(lr / near))) for near in asked}) if rates else []
    rows: list[Row] = []
    for lr in rates:
        plain = _mean([run.seconds for run in suite.of(workload.name, BASELINE) if run.lr == lr])
        for label in suite.labels(controls=True):
            mine = [run for run in suite.of(workload.name, label) if run.lr == lr]
            if mine:
                rows.append({"lr": lr, "method": label, **measures(mine), "speed_up": plain / _seconds(mine)})
    return Section(
        f"{workload.name}: every measure", f"rows-{workload.name}",
        ("Means over seeds. Speed-up: AdamW's wall-clock time at the same learning rate over the method's. Active: "
         "steps with a scale below 1; switches: changes of regime; stress: steps in an unsafe regime; energy: sum of "
         "(1 − scale)².",),
        columns=(
            Column("lr", "LR", "g"), Column("method", "method"), Column("loss", "final loss", ".3f"),
            Column("perplexity", "perplexity", ".4g"), Column("seconds", "wall-clock, s", ".2f"),
            Column("cpu", "CPU, s", ".2f"),
            Column("tokens_per_second", f"{workload.unit}s/s", ",.0f"), Column("speed_up", "speed-up", ".2f"),
            Column("active", "active", ".0f"), Column("switches", "switches", ".1f"), Column("stress", "stress", ".0f"),
            Column("scale", "mean scale", ".3f"), Column("lowest", "lowest", ".3f"), Column("energy", "energy", ".1f"),
            Column("effective_lr", "mean effective LR", ".3g"), Column("skips", "skips", ".1f"),
            Column("rollbacks", "rollbacks", ".1f"), Column("retrained", "re-trained steps", ".0f"),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def measures(runs: Sequence[SuiteRun]) -> dict[str, Any]:
    """The seed paper's measures, means over some runs; nan where a run has none."""
    loss = _mean([run.final_loss for run in runs])
    seconds = _seconds(runs)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)) if not math.isnan(loss) else nan,
        "seconds": seconds,
        "cpu": _mean([run.cpu_seconds for run in runs]),
        "tokens_per_second": _mean([run.tokens for run in runs]) / seconds if seconds > 0.0 else nan,
        "active": _mean([run.control_active_steps for run in runs]),
        "switches": _mean([run.regime_switches for run in runs]),
        "stress": _mean([run.stress_mode_steps for run in runs]),
        "scale": _mean([run.mean_scale for run in runs]),
        "lowest": _mean([run.min_scale for run in runs]),
        "energy": _mean([run.control_energy for run in runs]),
        "effective_lr": _mean([run.mean_effective_lr for run in runs]),
        "skips": _mean([run.skipped_steps for run in runs]),
        "rollbacks": _mean([run.rollbacks for run in runs]),
        "retrained": _mean([run.retrained_steps for run in runs]),
    }


def spread(losses: Sequence[float]) -> str:
    """Mean ± half interval; how many are not finite, where any is; a dash without any."""
    broken = sum(math.isnan(loss) for loss in losses)
    if broken:
        return "nan" if broken == len(losses) else f"nan in {broken} of {len(losses)}"
    return spread_of(mean_estimate(losses))


def spread_of(estimate: Estimate) -> str:
    """Mean ± half interval."""
    if math.isnan(estimate.mean):
        return shown(nan)
    return f"{estimate.mean:.3f}" if math.isnan(estimate.low) else f"{estimate.mean:.3f} ± {estimate.half:.3f}"


def _percent(estimate: Estimate, digits: int = 2) -> str:
    if math.isnan(estimate.low):
        return percent(estimate.mean, digits)
    return f"{100.0 * estimate.mean:+.{digits}f} ± {100.0 * estimate.half:.{digits}f} %"


def _first_losses(runs: Sequence[SuiteRun]) -> list[float]:
    """Loss before training of each seed."""
    return list({run.seed: run.initial_loss for run in runs}.values())


def _seconds(runs: Sequence[SuiteRun]) -> float:
    return _mean([run.seconds for run in runs])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else nan
