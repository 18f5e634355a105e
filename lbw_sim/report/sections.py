"""The parts of the page: findings in, elements out. Nothing is judged here, and every word from a file stays text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from lbw_sim.report.blocks import cards, count, number, table
from lbw_sim.report.findings import RunFindings
from lbw_sim.report.html import Child, Html, element, joined
from lbw_sim.report.moments import VERDICTS, Moment, Numbers
from lbw_sim.score import (
    DETECTION_COLUMNS,
    FALSE_ALARM_BUDGET_PER_10K,
    Column,
    DetectionCounts,
    RunScore,
    detection_rows,
    pooled,
)
from lbw_sim.score.learning_rates import GridRun, lr_sensitivity
from lbw_sim.score.table import UNDEFINED

GROWTH = 5.0
"""Growth of the gradient norm from which a run is named for it."""
END_SHARE = 0.9
"""A run that has kept less than this share of its fall at its end is named for it."""
MOST_NAMED = 8


def guard_words(run: RunFindings) -> str:
    """Which guard is shown, and whether it flew."""
    if run.view == "replayed":
        return f"{run.guard}, replayed"
    return f"{run.guard}, recorded in shadow" if run.mode == "shadow" else f"{run.guard}, active"


def open_loop() -> Html:
    """What no number here means."""
    return element(
        "div",
        element(
            "p",
            element("b", "How to read this. "),
            "A replay shows a guard the losses that were recorded. It tells when the guard would have raised an alarm "
            "and what it would have asked for. It can't tell what the loss would have been: after the first step at "
            "which the guard acts, the run would have been another one.",
        ),
        class_="callout",
    )


def in_short(runs: Sequence[RunFindings], scores: Mapping[str, Sequence[RunScore]]) -> Html:
    """The page in a few sentences, made from its numbers."""
    said = [_of_alarms(runs), _of_guards(runs, scores), *_of_losses(runs), *_of_logs(runs)]
    return element("ul", [element("li", text) for text in said])


def _of_alarms(runs: Sequence[RunFindings]) -> Child:
    """How often the guard shown raised an alarm, and what the labels say of that."""
    shown = {guard_words(run) for run in runs}
    who = " and ".join(sorted(shown)) if len(shown) < 4 else f"{len(shown)} guards"
    alarmed = sum(run.score.counts.alarms > 0 for run in runs)
    raised = sum(run.score.counts.alarms for run in runs)
    alarms = f"{count(raised, 'alarm')} in {alarmed} of {count(len(runs), 'run')}"
    counts = _judged_counts(runs)
    if not counts.events:
        return [element("b", who), f": {alarms}. No event is labelled, so alarms are not judged."]
    seen = f"Of {count(counts.events, 'labelled event')} it sees {counts.detected}"
    late = f", at a median delay of {number(counts.median_delay_steps)} steps" if counts.detected else ""
    wrong = (
        f"; {count(counts.false_alarms, 'false alarm')} on clean rows, "
        f"{number(counts.false_alarms_per_10k, '.2f')} per 10,000"
    )
    bait = f", and {count(counts.baited, 'alarm')} on changes labelled benign" if counts.baited else ""
    return [element("b", who), f": {alarms}. {seen}{late}{wrong}{bait}."]


def _of_guards(runs: Sequence[RunFindings], scores: Mapping[str, Sequence[RunScore]]) -> Child:
    """Which guards see most within the budget; without labels, which are loud."""
    rates = {name: pooled(mine) for name, mine in scores.items()}
    if not _judged_counts(runs).events:
        loud = sorted(rates, key=lambda name: -rates[name].alarms)
        quiet = [name for name in loud if not rates[name].alarms]
        told = ", ".join(f"{name} {rates[name].alarms:,}" for name in loud[:3])
        return f"Of {count(len(rates), 'guard')} replayed, {len(quiet)} stay silent; most alarms: {told}."
    within = {name: found for name, found in rates.items() if found.false_alarms_per_10k <= FALSE_ALARM_BUDGET_PER_10K}
    best = sorted(within, key=lambda name: (-within[name].recall, within[name].false_alarms_per_10k))[:3]
    told = ", ".join(f"{name} {rates[name].detected} of {rates[name].events}" for name in best)
    return (
        f"Of {count(len(rates), 'guard')} replayed, {len(within)} raise at most "
        f"{FALSE_ALARM_BUDGET_PER_10K:g} false alarm per 10,000 clean rows. "
        + (f"Of those, the ones that see most events: {told}." if best else "")
    )


def _of_losses(runs: Sequence[RunFindings]) -> Iterator[Child]:
    """Runs that broke, ended high, or whose gradient norm grew."""
    broken = [run for run in runs if run.vitals.nonfinite_rows]
    if broken:
        yield [f"{count(len(broken), 'run')} with a loss or gradient that is not finite: ", named(broken), "."]
    high = [run for run in runs if run.vitals.recovered_share < END_SHARE]
    high.sort(key=lambda run: run.vitals.recovered_share)
    if high:
        ends = "ends well above its" if len(high) == 1 else "end well above their"
        text = f"{count(len(high), 'run')} {ends} own lowest loss{', the worst first' if len(high) > 1 else ''}: "
        yield [text, named(high), "."]
    grown = sorted((run for run in runs if run.vitals.grad_growth >= GROWTH), key=lambda run: -run.vitals.grad_growth)
    if grown:
        text = f"In {count(len(grown), 'run')} the gradient norm grows {GROWTH:g}-fold or more after start-up: "
        yield [text, named(grown, lambda run: f" × {run.vitals.grad_growth:.0f}"), "."]


def _of_logs(runs: Sequence[RunFindings]) -> Iterator[Child]:
    """What the logs cannot support."""
    unscored = [run for run in runs if not run.scorable]
    if unscored:
        text = f"{count(len(unscored), 'run')} can't be scored, because of what was logged: "
        yield [text, named(unscored), "."]
    doubtful = [run for run in runs if run.warnings]
    if doubtful:
        yield f"{count(len(doubtful), 'run')} with warnings about what was logged, or how; see each run."


def _judged_counts(runs: Sequence[RunFindings]) -> DetectionCounts:
    """Of the guard shown, over the runs that can support a judgement."""
    return pooled(run.score for run in runs if run.scorable)


def named(runs: Sequence[RunFindings], note: Callable[[RunFindings], str] = lambda run: "") -> list[Child]:
    """Some run ids, each with its note, and how many more there are."""
    parts: list[Child] = []
    for run in runs[:MOST_NAMED]:
        parts += [", " if parts else None, element("code", run.run_id), note(run)]
    return [*parts, f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else None]


def runs_table(runs: Sequence[RunFindings], detailed: Mapping[str, str]) -> Html:
    """A line per run. `detailed`: run id -> anchor of its own section."""
    judged = any(run.judged for run in runs)
    rows = []
    for run in runs:
        counts, seen = run.score.counts, run.vitals
        link = element("a", run.run_id, href=f"#{detailed[run.run_id]}") if run.run_id in detailed else run.run_id
        rows.append(
            {
                "run": joined(link), "rows": run.rows, "start": seen.start_loss, "lowest": seen.lowest_loss,
                "end": joined("not finite") if seen.nonfinite_rows and math.isnan(seen.end_loss) else seen.end_loss,
                "growth": seen.grad_growth,
                "seen": f"{counts.detected} of {counts.events}" if counts.events else UNDEFINED,
                "false": counts.false_alarms if run.judged else math.nan,
                "alarms": counts.alarms,
                "first": int(run.first_step_of_alarm) if run.first_step_of_alarm is not None else None,
                "regime": run.first_regime.lower(),
                "rules": f"{sum(bool(rule.alarms) for rule in run.rules)} of {len(run.rules)}",
                "warnings": len(run.warnings) or None,
            }
        )  # fmt: skip
    columns = [
        Column("run", "run"), Column("alarms", "alarms", ",d"), Column("first", "first at\nstep", ",d"),
        Column("regime", "as"),
    ]  # fmt: skip
    if judged:
        columns += [Column("seen", "events\nseen", "s"), Column("false", "false\nalarms", ",.0f")]
    columns += [
        Column("rules", "rules that\nalarm", "s"), Column("rows", "rows", ",d"),
        Column("start", "loss at\nstart", ".4g"), Column("lowest", "lowest", ".4g"),
        Column("end", "end", ".4g"), Column("growth", "gradient\nnorm ×", ".3g"),
        Column("warnings", "warn-\nings", "d"),
    ]  # fmt: skip
    return table(columns, rows)


def guards_table(scores: Mapping[str, Sequence[RunScore]], shown: set[str], runs: Sequence[RunFindings]) -> Html:
    """A line per guard over all runs: judged where there are labels, counted where there are none."""
    judged = any(score.counts.events for mine in scores.values() for score in mine)
    if judged:
        rows = [row for row in detection_rows(scores, seed=0, families=False) if row["group"] == "all"]
        rows.sort(key=lambda row: (-_or_low(row["recall"]), _or_low(row["false_alarms_per_10k"])))
        columns = [column for column in DETECTION_COLUMNS if column.key != "group"]
    else:
        asked = {name: [rule for run in runs for rule in run.rules if rule.name == name] for name in scores}
        totals = {name: pooled(mine) for name, mine in scores.items()}
        rows = [
            {
                "guard": name, "runs": len(mine), "alarmed": sum(score.counts.alarms > 0 for score in mine),
                "alarms": totals[name].alarms,
                "rate": 10_000 * totals[name].alarms / totals[name].rows if totals[name].rows else math.nan,
                "share": sum(r.unsafe_rows for r in asked[name]) / totals[name].rows if totals[name].rows else math.nan,
                "skips": sum(rule.skip_requests for rule in asked[name]),
                "energy": math.fsum(rule.requested_energy for rule in asked[name]),
            }
            for name, mine in scores.items()
        ]  # fmt: skip
        rows.sort(key=lambda row: -_or_low(row["alarms"]))
        columns = [
            Column("guard", "guard"), Column("runs", "runs", "d"), Column("alarmed", "runs with\nan alarm", "d"),
            Column("alarms", "alarms", ",d"), Column("rate", "alarms per\n10k rows", ".1f"),
            Column("share", "rows in\nalarm", ".1%"), Column("skips", "skips\nasked for", ",d"),
            Column("energy", "energy\nasked for", ",.0f"),
        ]  # fmt: skip
    marked = [{**row, "class": "now" if row["guard"] in shown else ""} for row in rows]
    return table(columns, marked)


def _or_low(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not math.isnan(value) else -1.0


def run_summary(run: RunFindings) -> Html:
    """A run in two or three sentences."""
    seen, counts = run.vitals, run.score.counts
    if math.isnan(seen.lowest_loss):
        loss = "No loss of this run is finite."
    else:
        end = (
            f"ends at {number(seen.end_loss)}"
            if not math.isnan(seen.end_loss)
            else f"ends without a finite loss (not finite first at step {number(seen.first_nonfinite_step)})"
        )
        above = seen.end_above_lowest
        far = f", {number(above, '.2g')} above it" if above >= 0.01 else ""
        loss = (
            f"Loss falls from {number(seen.start_loss)} to {number(seen.lowest_loss)} at step {seen.lowest_step:,} and "
            f"{end}{far}."
        )
    grad = ""
    if seen.grad_growth >= 2.0:
        grad = (
            f" The gradient norm grows {seen.grad_growth:.3g}-fold after start-up, from {number(seen.grad_low, '.3g')} "
            f"to {number(seen.grad_high, '.3g')} (medians of tenths of the run)."
        )
    if counts.alarms:
        share = run.control.stress_mode_steps / run.rows
        guard = (
            f"First alarm at step {number(run.first_step_of_alarm)}, as {run.first_regime.lower()}; "
            f"{count(counts.alarms, 'alarm')}, {share:.1%} of rows."
        )
    else:
        guard = "No alarm."
    if counts.events:
        late = f", median delay {number(counts.median_delay_steps)} steps" if counts.detected else ""
        guard += (
            f" It sees {counts.detected} of {count(counts.events, 'labelled event')}{late}; "
            f"{count(counts.false_alarms, 'false alarm')}."
        )
    fired = [rule for rule in run.rules if rule.alarms]
    rules = f"{len(fired)} of {count(len(run.rules), 'rule')} would have raised an alarm."
    if counts.events:
        clean = [
            f"{rule.name} ({rule.score.counts.detected})"
            for rule in fired
            if rule.score.counts.detected and not rule.score.counts.false_alarms and not rule.score.counts.baited
        ]
        rules += f" Those that alarm on events only, with events seen: {', '.join(clean)}." if clean else ""
    return element(
        "ul",
        element("li", loss + grad),
        element("li", element("b", guard_words(run)), ": ", guard),
        element("li", rules),
    )


def run_cards(run: RunFindings) -> Html:
    """A run's numbers at a glance."""
    seen, control = run.vitals, run.control
    asked = "" if run.view == "recorded" and run.mode == "active" else " asked for"
    facts: list[tuple[str, Child]] = [
        ("rows", f"{run.rows:,}"),
        ("loss: start → end", f"{number(seen.start_loss, '.3f')} → {number(seen.end_loss, '.3f')}"),
        ("alarm" if run.score.counts.alarms == 1 else "alarms", f"{run.score.counts.alarms:,}"),
        ("rows in alarm", f"{control.stress_mode_steps / run.rows:.1%}"),
        (f"control energy{asked}", number(control.control_energy, ",.1f")),
        (f"rows below scale 1{asked}", f"{control.control_active_steps:,}"),
    ]
    if not math.isnan(seen.grad_growth):
        facts.insert(2, ("growth of the gradient norm", f"× {seen.grad_growth:.3g}"))
    if control.skipped_steps:
        what = "skipped update" if control.skipped_steps == 1 else "skipped updates"
        facts.append((what, f"{control.skipped_steps:,}"))
    return cards(facts)


def warnings_of(run: RunFindings) -> Html | None:
    """What to know before trusting a run."""
    if not run.warnings:
        return None
    return element(
        "div", element("p", element("b", "Before you trust this run")),
        element("ul", [element("li", text) for text in run.warnings]), class_="callout",
    )  # fmt: skip


def rules_table(run: RunFindings) -> Html:
    """What each rule would have said along one run."""
    fired = [rule for rule in run.rules if rule.alarms]
    silent = [rule.name for rule in run.rules if not rule.alarms]
    judged = bool(run.score.counts.events)
    rows = [
        {
            "rule": rule.name, "alarms": len(rule.alarms), "first": rule.first_step, "as": rule.first_regime.lower(),
            "seen": f"{rule.score.counts.detected} of {rule.score.counts.events}",
            "false": rule.score.counts.false_alarms, "baited": rule.score.counts.baited,
            "share": rule.unsafe_rows / run.rows, "skips": rule.skip_requests or None,
            "scale": rule.min_scale, "energy": rule.requested_energy,
        }
        for rule in fired
    ]  # fmt: skip
    columns = [
        Column("rule", "rule"), Column("alarms", "alarms", ",d"), Column("first", "first at\nstep", ",d"),
        Column("as", "as"),
    ]  # fmt: skip
    if judged:
        columns += [
            Column("seen", "events\nseen", "s"), Column("false", "false\nalarms", ",d"),
            Column("baited", "baited", ",d"),
        ]  # fmt: skip
    columns += [
        Column("share", "rows in\nalarm", ".1%"), Column("scale", "lowest scale\nasked for", ".2f"),
        Column("skips", "skips\nasked for", ",d"), Column("energy", "energy\nasked for", ",.1f"),
    ]  # fmt: skip
    return joined(
        [
            table(columns, rows) if rows else element("p", "None of them would have raised an alarm."),
            element("p", f"Silent on this run: {', '.join(silent)}.", class_="quiet") if silent else None,
            element(
                "p", "Not tried: ",
                "; ".join(f"{r.name} needs {', '.join(r.missing)}, which this run does not hold" for r in run.refused),
                ".", class_="quiet",
            ) if run.refused else None,
        ]
    )  # fmt: skip


def budgets_table(run: RunFindings) -> Html | None:
    """Limits of the envelope, and how near the run came to them."""
    if not run.budgets:
        return None
    rows = [{**item._asdict(), "rows_refused": item.rows_refused or None} for item in run.budgets]
    columns = [
        Column("limit", "limit of the envelope"), Column("allowed", "allowed", ",.4g"),
        Column("used", "most used", ",.4g"), Column("rows_refused", "rows on which it\nhad the last word", ",d"),
    ]  # fmt: skip
    return table(columns, rows)


def labels_table(run: RunFindings) -> Html:
    """What is known to have happened."""
    rows = [{**label._asdict(), "steps": f"{label.start_step:,}–{label.end_step:,}"} for label in run.labels]
    columns = [
        Column("steps", "steps"), Column("kind", "kind"), Column("confidence", "confidence"),
        Column("source", "source"), Column("note", "note"),
    ]  # fmt: skip
    return table(columns, rows)


def provenance_table(run: RunFindings, environment: bool) -> Html:
    """How a run was made and recorded."""
    facts = [
        ("guard shown", guard_words(run)), ("fingerprint", run.fingerprint),
        ("steps", f"{run.first_step:,}–{run.last_step:,}"), ("channels", ", ".join(run.channels)), *run.provenance,
    ]  # fmt: skip
    rows = [{"name": name, "value": value} for name, value in facts]
    hidden = (
        f"{count(run.hidden_provenance, 'entry', 'entries')} that may tell where the run was made left out; "
        "--include-environment shows them."
    )
    return joined(
        [
            table([Column("name", "what"), Column("value", "value")], rows),
            element("p", hidden, class_="quiet") if run.hidden_provenance and not environment else None,
        ]
    )


def moment_box(moment: Moment, found: Numbers, svg: Html, start: int, end: int) -> Html:
    """A close-up with its numbers."""
    name = f"{'Alarm' if moment.alarm else 'No alarm'}, {moment.kind.lower().replace('_', ' ')}"
    where = f"step {start:,}" if start == end else f"steps {start:,}–{end:,}"
    class_ = {"false": "bad", "baited": "bad", "missed": "bad", "event": "good"}.get(moment.verdict, "")
    if not moment.alarm:
        decided = None
    elif found.deciding:
        decided = f"Decided by {found.deciding} = {number(found.evidence, '.3g')}."
    elif not math.isnan(found.evidence):
        decided = f"Evidence of the analyzer: {number(found.evidence, '.3g')}."
    else:
        decided = None
    rows = []
    for offset, values in found.rows:
        # the step in full, everything measured to three digits
        cells = [
            value if isinstance(value, str) else f"{value:.0f}" if column == "step" else number(value, ".3g")
            for column, value in zip(found.columns, values, strict=True)
        ]
        rows.append(element("tr", [element("td", cell) for cell in cells], class_="now" if offset == 0 else ""))
    return element(
        "div",
        element("h4", f"{name}: {where} ", element("span", VERDICTS[moment.verdict], class_=class_)),
        element("figure", svg),
        element("p", decided, class_="quiet") if decided else None,
        element(
            "div",
            element(
                "table",
                element("thead", element("tr", [element("th", column.replace("_", " ")) for column in found.columns])),
                element("tbody", rows),
            ),
            class_="scroll",
        ),
        class_="moment",
    )


def grid_table(runs: Sequence[GridRun]) -> Html:
    """Methods by learning rates: mean final loss and its range over seeds; and each method's sensitivity."""
    lrs = sorted({run.peak_lr for run in runs})
    finite = [run.final_loss for run in runs if not math.isnan(run.final_loss)]
    best = min(finite, default=math.nan)
    rows: list[dict[str, object]] = []
    for method in dict.fromkeys(run.method for run in runs):
        mine = [run for run in runs if run.method == method]
        row: dict[str, object] = {"method": method, "sensitivity": lr_sensitivity(mine, best)}
        for lr in lrs:
            ends = [run.final_loss for run in mine if run.peak_lr == lr]
            lost = sum(map(math.isnan, ends))
            text = UNDEFINED
            if lost:
                text = f"not finite ({lost} of {len(ends)})" if len(ends) > 1 else "not finite"
            elif ends:
                mean = f"{math.fsum(ends) / len(ends):.3f}"
                text = mean if len(ends) == 1 else f"{mean} ({min(ends):.3f}–{max(ends):.3f})"
            row[f"{lr}"] = text
        rows.append(row)
    columns = [
        Column("method", "method"), *(Column(f"{lr}", f"lr {lr:g}", "s") for lr in lrs),
        Column("sensitivity", "LR\nsensitivity", ".3f"),
    ]  # fmt: skip
    return table(columns, rows)
