"""The page of a stress suite: its table, figures and findings as one HTML file, and as Markdown beside its results.

It reads what `lbw stress` wrote, and flies nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import lbw_sim
from lbw_sim.errors import ScoreError
from lbw_sim.plots import Picture, inline_svg
from lbw_sim.plots.suite import ranks_figure, sensitivity_figure
from lbw_sim.report.blocks import figure, table
from lbw_sim.report.build import page_of
from lbw_sim.report.html import Child, Html, element
from lbw_sim.score.stress_judgement import Judgement, judge
from lbw_sim.score.stress_page import Section, markdown_page, page
from lbw_sim.score.stress_results import Suite
from lbw_sim.whole_file import write_whole
from lbw_sim.wording import counted

TABLE = "table.md"
REPORT = "report.html"
FIGURES = {"sensitivity": "sensitivity.svg", "ranks": "ranks.svg"}
CAPTIONS = {
    "sensitivity": "Bars reach from the best to the worst seed; dashed: AdamW's best loss. Counted is at most the loss "
    "before training, which also stands for runs that did not end finite.",
    "ranks": "Critical-difference diagram.",
}
DESCRIPTIONS = {
    "sensitivity": "final loss against learning rate, by workload",
    "ranks": "mean ranks of the methods",
}
FOLDED = ("rows-", "seed-paper")
"""Sections that are long, or of use to few, start folded."""


def suite_page(suite: Suite, title: str = "") -> str:
    """One self-contained HTML page of a suite."""
    judgement = judge(suite)
    return _page(judgement, _figures(judgement), title)


def write_suite_pages(suite: Suite, folder: Path) -> list[Path]:
    """Write table.md, its figures and report.html into the suite's folder. Raises ScoreError."""
    judgement = judge(suite)
    drawn = _figures(judgement)
    written = [drawn[name].save(folder / file) for name, file in FIGURES.items()]
    text = markdown_page(page(judgement), _title(suite), [], FIGURES)
    try:
        for name, content in ((TABLE, text), (REPORT, _page(judgement, drawn, ""))):
            write_whole(folder / name, content, errors="replace")
            written.append(folder / name)
    except OSError as error:
        raise ScoreError(f"cannot write the pages of a stress suite to {folder}: {error}") from None
    return written


def _title(suite: Suite) -> str:
    return f"Stress suite {suite.facts.preset}"


def _page(judgement: Judgement, drawn: Mapping[str, Picture], title: str) -> str:
    suite = judgement.suite
    sections = page(judgement)
    drawings = {name: Html(inline_svg(picture.figure, name, DESCRIPTIONS[name])) for name, picture in drawn.items()}
    heading = title or _title(suite)
    facts = (
        f"{suite.facts.finished_runs:,} of {counted(suite.facts.planned_runs, 'run')} · "
        f"{counted(len(suite.facts.workloads), 'workload')} · "
        f"{counted(len(suite.facts.methods), 'method')} and their controls"
    )
    links = [element("a", plain(section.title), href=f"#{section.anchor}") for section in sections]
    parts: list[Child] = [
        element("h1", heading),
        element("p", facts, class_="quiet"),
        element("nav", links),
        *(_section(section, drawings) for section in sections),
        element("footer", element("p", f"Made by lbw-sim {lbw_sim.__version__}, lbw report.", class_="quiet")),
    ]
    return page_of(heading, parts)


def plain(text: str) -> str:
    """Text without backticks."""
    return text.replace("`", "")


def worded(text: str) -> list[Child]:
    """Text in which backticks make code.

    >>> worded("a `b` c")
    ['a ', '<code>b</code>', ' c']
    """
    parts = re.split(r"`([^`]*)`", text)
    return [element("code", part) if place % 2 else part for place, part in enumerate(parts)]


def _figures(judgement: Judgement) -> dict[str, Picture]:
    return {
        "sensitivity": Picture(sensitivity_figure(judgement, width=8.4)),
        "ranks": Picture(ranks_figure(judgement.ranks, width=8.4)),
    }


def _section(section: Section, drawings: dict[str, Html]) -> Html:
    points = [worded(text) for text in section.points]
    said: list[Child] = (
        [element("ul", [element("li", point) for point in points])]
        if section.listed
        else [element("p", point, class_="quiet" if section.rows else "") for point in points]
    )
    body: list[Child] = [*said]
    if section.figure:
        body.append(figure(drawings[section.figure], CAPTIONS[section.figure], "wide"))
    if section.rows:
        body.append(table(section.columns, _emphasised(section.rows)))
    if section.anchor.startswith(FOLDED):
        body = [element("details", element("summary", "Show the table"), body)]
    return element("section", element("h2", worded(section.title), id=section.anchor), body)


def _emphasised(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Controls stand back a little."""
    return [{**row, "class": "gone"} if " of " in str(row.get("method", "")) else row for row in rows]
