"""Builds the page: reads runs batch by batch, keeps the most noteworthy for a closer look, draws, writes one file.

Its size and its memory are bounded: long runs are drawn thinned out, many runs get a line each and some of them a
section of their own, and the page says what was left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lbw_sim
from lbw_sim.errors import LbwError, ScoreError
from lbw_sim.guard import GuardSpec
from lbw_sim.plots import (
    PHONE_WIDTH,
    colour_variables,
    comparison_figure,
    detection_figure,
    inline_svg,
    moment_figure,
    moment_info,
    outcome_figure,
    run_figure,
    stamp_figure,
    stamp_info,
)
from lbw_sim.replay import Unusable, unusable_words
from lbw_sim.report import blocks, sections
from lbw_sim.report.aside import Aside, worth_it
from lbw_sim.report.findings import Columns, Progress, RunFindings, examine
from lbw_sim.report.html import Child, Html, element, joined
from lbw_sim.report.moments import PREFERRED, choose, numbers
from lbw_sim.report.sight import look
from lbw_sim.score import RunScore
from lbw_sim.score.detection import family_of
from lbw_sim.score.learning_rates import GridRun, grids, place_in_grid
from lbw_sim.trace import Trace
from lbw_sim.whole_file import write_whole

MOST_STAMPS = 120
MOST_COMPARED = 10
MOST_LINES = 2_000
"""Runs in the table of all runs."""
FALLBACK = "default"
"""Preset that is replayed over runs that no guard watched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report shows."""

    guard: GuardSpec | None = None
    """Replayed over every run; None: as recorded, and the preset `FALLBACK` over runs that no guard watched."""
    rules: Mapping[str, GuardSpec] = dataclasses.field(default_factory=dict)
    """Name -> guards that are replayed beside."""
    details: int = 12
    """Runs that get a section of their own."""
    moments: int = 4
    """Close-ups in each of these sections."""
    title: str = ""
    environment: bool = False
    """Also show where and on what the runs were made: host, platform, paths."""
    grid: str | None = None
    """Regular expression that finds learning rate, method and seed in run ids; see `place_in_grid`."""
    sweeps: Mapping[str, Sequence[Sequence[RunScore]]] = dataclasses.field(default_factory=dict)
    """Guard -> its runs at several sensitivities, drawn as curves."""
    passed_over: int = 0
    """Files that were to be imported and were not; the page says how many."""
    left_out: int = 0
    """Runs that could not be read; the page says how many."""
    unusable: Sequence[Unusable] = ()
    """Runs that the guard shown cannot see, as `showable` finds them; the page names them."""


class Report(NamedTuple):
    """A page and what stands in it."""

    html: str
    runs: tuple[RunFindings, ...]
    detailed: tuple[str, ...]
    """Run ids with a section of their own."""


def build_report(traces: Sequence[Trace], options: ReportOptions, progress: Progress | None = None) -> Report:
    """The report of some runs. Raises LbwError when there is no row to report on, or the guard cannot see a run."""
    with contextlib.ExitStack() as stack:
        return _build(traces, options, progress or (lambda *_: None), stack)


def _build(traces: Sequence[Trace], options: ReportOptions, tell: Progress, stack: contextlib.ExitStack) -> Report:
    # a wrong pattern is said before the work, not after
    place_in_grid("", {}, options.grid)
    runs: list[RunFindings] = []
    stamps: dict[str, Html] = {}
    kept: dict[str, tuple[RunFindings, Columns]] = {}
    aside: Aside | None = None
    examined = examine(
        traces,
        guard=options.guard,
        fallback=GuardSpec.load(FALLBACK),
        rules=options.rules,
        environment=options.environment,
        progress=tell,
    )
    for place, (run, columns) in enumerate(examined):
        if not runs and worth_it(min(options.details, len(traces)), sum(s.rows for t in traces for s in t.segments)):
            # while the other runs are replayed, it loads what it will need
            aside = stack.enter_context(contextlib.closing(Aside()))
        runs.append(run)
        if len(traces) > 1 and place < MOST_STAMPS:
            alarms = [(alarm.start_row, alarm.end_row) for alarm in run.score.alarms]
            figure = stamp_figure(stamp_info(columns, alarms, run.labels))
            stamps[run.run_id] = Html(inline_svg(figure, f"s{place}", f"loss of {run.run_id}, its events and alarms"))
        kept[run.run_id] = (run, columns)
        if len(kept) > max(options.details, MOST_COMPARED if len(traces) <= MOST_COMPARED else 0):
            del kept[min(kept, key=lambda name: kept[name][0].noteworthy)]
    if not runs:
        raise LbwError("a report needs at least one run; there is none")

    best = sorted(kept, key=lambda name: kept[name][0].noteworthy, reverse=True)[: options.details]
    # in the order in which the runs were given
    detailed = [name for name in kept if name in best]
    anchors = {name: f"run-{number}" for number, name in enumerate(detailed, start=1)}
    scores = _scores(runs)
    parts: list[Child] = [
        _head(runs, options),
        # of a single run its own section says it all
        sections.in_short(runs, scores) if len(runs) > 1 else None,
        sections.open_loop(),
    ]
    if len(runs) > 1:
        parts += _overview(runs, stamps, anchors, scores, options)
        if len(runs) <= MOST_COMPARED:
            compared = {name: columns for name, (_, columns) in kept.items()}
            svg, narrow = _drawn(
                partial(comparison_figure, compared), 8.0, "c", "smoothed losses and scales of all runs"
            )
            parts += [
                element("h2", "Losses over each other", id="losses"),
                blocks.figure(svg, "Running medians, and below the scale.", "wide", narrow),
            ]
    parts += _grids(traces, runs, options)
    told = dataclasses.replace(options, rules={}, sweeps={})  # what a section needs of them
    tasks = [
        (run, columns, anchors[name], _shown(run, options, traces), told)
        for name in detailed
        for run, columns in (kept[name],)
    ]
    parts += _sections(tasks, aside, tell)
    if len(runs) > 1:
        parts.insert(1, _contents(anchors, parts))
    parts.append(_foot(runs, detailed, options))
    return Report(page_of(_title(runs, options), parts), tuple(runs), tuple(detailed))


def write_report(report: Report, path: str | Path) -> Path:
    """Write the page, making its folder. Raises ScoreError."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, report.html, errors="replace")
    except OSError as error:
        raise ScoreError(f"cannot write the report {path}: {error}") from None
    return path


def _scores(runs: Sequence[RunFindings]) -> dict[str, list[RunScore]]:
    """Guard -> its runs: every rule, and the guard shown where it is none of them. Runs that cannot support a score are
    left out where there is anything to judge by."""
    if any(run.judged for run in runs):
        runs = [run for run in runs if run.scorable]
    scores: dict[str, list[RunScore]] = {}
    for run in runs:
        for rule in run.rules:
            scores.setdefault(rule.name, []).append(rule.score)
    for run in runs:
        if run.guard not in {rule.name for rule in run.rules}:
            scores.setdefault(f"{run.guard} (shown)", []).append(run.score)
    return scores


def _title(runs: Sequence[RunFindings], options: ReportOptions) -> str:
    """What the page is and of which runs: a tab and a file that was sent on show no more than this."""
    if options.title:
        return options.title
    if len(runs) == 1:
        return f"Guard report: run {runs[0].run_id}"
    families = sorted({family_of(run.run_id) for run in runs})
    return f"Guard report: {len(runs):,} runs of {', '.join(families[:3])}{', …' if len(families) > 3 else ''}"


def _head(runs: Sequence[RunFindings], options: ReportOptions) -> Html:
    rows = sum(run.rows for run in runs)
    labels = sum(len(run.labels) for run in runs)
    guards = " and ".join(sorted({sections.guard_words(run) for run in runs})[:4])
    facts = (
        f"{blocks.count(len(runs), 'run')} · {blocks.count(rows, 'row')} · {blocks.count(labels, 'label')} · "
        f"guard: {guards}"
    )
    return joined([element("h1", _title(runs, options)), element("p", facts, class_="quiet")])


def _contents(anchors: Mapping[str, str], parts: Sequence[Child]) -> Html:
    """Links to the parts that are there."""
    page = joined(parts)
    places = {
        "All runs": "runs", "At a glance": "glance", "Rules": "rules", "Losses": "losses",
        "Learning rates": "learning-rates",
    }  # fmt: skip
    links = [element("a", name, href=f"#{place}") for name, place in places.items() if f'id="{place}"' in page]
    return element("nav", links, [element("a", name, href=f"#{place}") for name, place in anchors.items()])


def _overview(
    runs: Sequence[RunFindings],
    stamps: Mapping[str, Html],
    anchors: Mapping[str, str],
    scores: Mapping[str, Sequence[RunScore]],
    options: ReportOptions,
) -> list[Child]:
    listed = runs[:MOST_LINES]
    left_out = f"{len(runs) - len(listed):,} further runs are not listed." if len(listed) < len(runs) else None
    pictures = []
    for run in runs:
        if run.run_id in stamps:
            name: Child = run.run_id
            if run.run_id in anchors:
                name = element("a", run.run_id, href=f"#{anchors[run.run_id]}")
            pictures.append(element("figure", stamps[run.run_id], element("figcaption", name)))
    legend = element(
        "p",
        element("span", element("span", class_="key event"), "labelled event"),
        element("span", element("span", class_="key benign"), "benign change"),
        element("span", element("span", class_="key alarm"), "alarm of the guard shown"),
        class_="quiet legend",
    )
    parts: list[Child] = [
        element("h2", "All runs", id="runs"),
        sections.runs_table(listed, anchors),
        element("p", left_out, class_="quiet") if left_out else None,
        element("h2", "At a glance", id="glance"),
        legend,
        element("div", pictures, class_="stamps"),
    ]
    if len(pictures) < len(runs):
        parts.append(element("p", f"The first {len(pictures)} of {len(runs):,} runs.", class_="quiet"))
    if scores:
        shown = {run.guard for run in runs}
        parts += [
            element("h2", "What each rule would have said", id="rules"),
            sections.guards_table(scores, shown | {f"{name} (shown)" for name in shown}, runs),
        ]
        if any(score.counts.events for mine in scores.values() for score in mine):
            draw = partial(detection_figure, scores, seed=0, sweeps=options.sweeps)
            svg, narrow = _drawn(draw, 6.4, "d", "event recall against false alarms of every guard")
            parts += [
                element(
                    "p",
                    "Recall and delay count labelled events. False alarms begin on rows that are clean of any label; "
                    "baited ones on changes that are labelled benign; latched is the share of clean rows in alarm. A "
                    "run without labels counts as one without events.",
                    class_="quiet",
                ),
                blocks.figure(svg, "Event recall against false alarms, as replayed.", "middle", narrow),
            ]
    return parts


def _drawn(draw: Callable[..., Any], width: float, prefix: str, words: str) -> tuple[Html, Html]:
    """A figure for a page and for a phone. `prefix`: a word of its own within the page; `words`: what it shows."""
    wide = inline_svg(draw(width=width), prefix, words)
    return Html(wide), Html(inline_svg(draw(width=PHONE_WIDTH), f"{prefix}-n", words))


def _grids(traces: Sequence[Trace], runs: Sequence[RunFindings], options: ReportOptions) -> list[Child]:
    provenance = {trace.run_id: trace.meta.provenance for trace in traces}
    found = []
    for run in runs:
        place = place_in_grid(run.run_id, provenance[run.run_id], options.grid)
        # a fault that was injected is another experiment
        if place is not None and not provenance[run.run_id].get("fault"):
            found.append(GridRun(run.run_id, *place, run.vitals.start_loss, run.vitals.end_loss))
    parts: list[Child] = []
    for number, (architecture, mine) in enumerate(grids(found).items()):
        if not parts:
            parts += [
                element("h2", "Learning rates", id="learning-rates"),
                element(
                    "p",
                    "Final training loss (median over the last twentieth of a run) against the peak learning rate. LR "
                    "sensitivity is the mean over these learning rates of the final loss, at most the loss at the "
                    "start, above the best final loss here; smaller is better, and only methods that ran at the same "
                    "learning rates compare (arXiv 2309.14322).",
                ),
            ]
        names = sorted({(run.method, run.peak_lr, run.seed) for run in mine})
        title = architecture or "All runs"
        parts += [element("h3", f"{title}: {blocks.count(len(mine), 'run')}"), sections.grid_table(mine)]
        if len(names) < len(mine):
            parts.append(element("p", "Not drawn: some of these runs share method, learning rate and seed."))
            continue
        seeds = {seed: place for place, seed in enumerate(sorted({run.seed for run in mine}))}
        starts = [run.initial_loss for run in mine if math.isfinite(run.initial_loss)]
        draw = partial(
            outcome_figure,
            [run.method for run in mine],
            [run.peak_lr for run in mine],
            [seeds[run.seed] for run in mine],
            [run.final_loss for run in mine],
            initial_loss=float(np.median(starts)) if starts else math.nan,
        )
        svg, narrow = _drawn(draw, 7.2, f"g{number}", f"final loss against learning rate, {title}")
        parts.append(blocks.figure(svg, "Dashed: the median of the losses at the start.", "wide", narrow))
    return parts


def _sections(tasks: Sequence[tuple[Any, ...]], aside: Aside | None, tell: Progress) -> list[Html]:
    """`_run_section` of each task, the last half of them in a process of its own if there is one."""
    own = len(tasks) if aside is None or len(tasks) < 2 else (len(tasks) + 1) // 2
    if aside is not None and own < len(tasks):
        aside.begin(_run_section, tasks[own:])
    drawn = []
    for task in tasks[:own]:
        drawn.append(_run_section(*task))
        tell("drawing", len(drawn), len(tasks))
    others = aside.result() if aside is not None and own < len(tasks) else None
    for place in range(own, len(tasks)):
        drawn.append(others[place - own] if others is not None else _run_section(*tasks[place]))
        tell("drawing", len(drawn), len(tasks))
    return drawn


def _run_section(
    run: RunFindings, columns: Columns, anchor: str, shown: GuardSpec | None, options: ReportOptions
) -> Html:
    """`shown`: the guard whose decisions stand in `columns`; None when its components are not installed here."""
    draw = partial(
        run_figure,
        columns,
        run.labels,
        mode="shadow" if run.view == "replayed" else run.mode,
        judge=run.judged,
        given_up=run.given_up,
        rules={rule.name: rule.alarms for rule in run.rules if rule.alarms},
    )
    words = f"loss, labels, alarms, regimes, rules and scale of {run.run_id} over its steps"
    drawn, narrow = _drawn(draw, 8.0, anchor, words)
    caption = (
        "Loss, what the labels say, alarms and regimes of the guard shown, alarms of the other rules, and the scale. "
        "Numbers at the right: how many, or the share of rows."
    )
    moments = choose(run, columns["regime"], options.moments)
    sight = look(shown.build(), columns, columns["regime"]) if shown is not None and moments else None
    boxes = []
    for place, moment in enumerate(moments):
        told = numbers(moment, columns, sight)
        signal = None
        if sight is not None:
            others = (name for name in PREFERRED if name in sight.signals)
            name = told.deciding if told.deciding in sight.signals else next(others, "")
            signal = (name, sight.signals[name]) if name else None
        info = moment_info(columns, moment.first_row, moment.last_row, run.labels, alarm=moment.alarm, signal=signal)
        start, end = int(columns["step"][moment.first_row]), int(columns["step"][moment.last_row])
        svg = inline_svg(moment_figure(info), f"{anchor}-m{place}", f"loss around steps {start} to {end}")
        boxes.append(sections.moment_box(moment, told, Html(svg), start, end))
    every = len(run.score.alarms) + run.missed
    close = None
    if boxes:
        blind = (
            "The guard's signals are not shown: the run is too long to look into, or was resumed or rolled back, so "
            "that its final lineage is not what the guard saw."
        )
        close = joined(
            [
                element("h3", f"What the guard saw: {len(boxes)} of {blocks.count(every, 'moment')}"),
                element("p", blind, class_="quiet") if sight is None else None,
                element("div", boxes, class_="moments"),
            ]
        )
    return element(
        "section",
        element("h2", element("code", run.run_id), id=anchor),
        sections.run_summary(run),
        sections.warnings_of(run),
        sections.run_cards(run),
        blocks.figure(drawn, caption, "wide", narrow),
        close,
        element("details", element("summary", "What each rule would have said"), sections.rules_table(run))
        if run.rules or run.refused
        else None,
        element("details", element("summary", "Labels"), sections.labels_table(run)) if run.labels else None,
        element("details", element("summary", "Budgets"), sections.budgets_table(run)) if run.budgets else None,
        element("details", element("summary", "Provenance"), sections.provenance_table(run, options.environment)),
        class_="run",
    )


def _shown(run: RunFindings, options: ReportOptions, traces: Sequence[Trace]) -> GuardSpec | None:
    """The guard whose decisions are shown; None when its components are not installed here."""
    if run.view == "replayed":
        return options.guard or GuardSpec.load(FALLBACK)
    (trace,) = (trace for trace in traces if trace.run_id == run.run_id)
    try:
        trace.meta.spec.build()
    except LbwError:
        return None
    return trace.meta.spec


def _foot(runs: Sequence[RunFindings], detailed: Sequence[str], options: ReportOptions) -> Html:
    said = []
    if options.passed_over:
        said.append(f"{blocks.count(options.passed_over, 'file')} could not be imported and stand nowhere here.")
    if options.left_out:
        said.append(f"{blocks.count(options.left_out, 'run')} could not be read and stand nowhere here.")
    said += [f"{words}: nothing of that stands here." for words in unusable_words(options.unusable)]
    if len(detailed) < len(runs):
        said.append(
            f"{len(detailed)} of {len(runs):,} runs have a section of their own: those with the most to see (values "
            "that are not finite, missed and labelled events, alarms). lbw report --run ID, or --details N, shows "
            "others."
        )
    if not options.environment:
        said.append("Host, platform, paths and other facts of the environment are left out.")
    said.append("Long runs are drawn thinned out: extremes are kept, points between them are not.")
    said.append(f"Made by lbw-sim {lbw_sim.__version__}, lbw report.")
    return element("footer", [element("p", text, class_="quiet") for text in said])


def page_of(title: str, parts: Sequence[Child]) -> str:
    """A whole document of some parts, which loads nothing and runs nothing."""
    css = (resources.files("lbw_sim.report") / "report.css").read_text(encoding="utf-8")
    css = css.replace("LIGHT_VARIABLES", colour_variables(dark=False))
    css = css.replace("DARK_VARIABLES", colour_variables(dark=True))
    # nothing is loaded and nothing runs, whatever a file managed to write
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"lbw-sim {lbw_sim.__version__}"),
        element("title", title),
        Html(f"<style>{css}</style>"),
    )
    return "<!doctype html>\n" + element("html", head, element("body", element("main", parts)), lang="en") + "\n"
