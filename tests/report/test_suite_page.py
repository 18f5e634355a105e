"""The page of a stress suite: well-formed, escaped, complete, and one with the suite's own folder."""

from __future__ import annotations

import re
from pathlib import Path

from stress_runs import GUARD, grid, suite
from test_report import Page

from lbw_sim.report.suite import suite_page, write_suite_pages
from lbw_sim.score.stress_results import write_suite


def test_the_page_shows_findings_tables_and_both_figures_and_runs_nothing() -> None:
    html = suite_page(suite([*grid(), *grid(workload="other")], fine_tuning=True), "A <b>suite</b>")
    page = Page(html)
    assert "A <b>suite</b>" in page.text, "a title is text"
    assert "tiny & <odd>" in page.text
    assert page.tags["svg"] == 2
    assert page.tags["script"] == 0
    assert f"{GUARD} beats AdamW over all learning rates" in page.text
    assert "needs weights that can't be had here" in page.text
    assert "`" not in page.text
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in page.attributes if name == "href"}
    assert targets <= set(ids)
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.S))
    assert re.findall(r"#[0-9a-fA-F]{6}\b", re.sub(r"<text.*?</text>", "", drawings)) == [], "unknown to the dark page"


def test_the_folder_gets_table_figures_and_page_and_a_broken_suite_too(tmp_path: Path) -> None:
    for made in (suite(grid()), suite(run for run in grid() if run.method != "adamw" and run.seed == 400)):
        write_suite(made, tmp_path)
        written = write_suite_pages(made, tmp_path)
        assert {path.name for path in written} == {"table.md", "report.html", "sensitivity.svg", "ranks.svg"}
        table = (tmp_path / "table.md").read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)]+)\)", table):
            assert (tmp_path / target).exists()
        assert not re.search(r"\| *(nan|inf)\b", table), "what is not defined is a dash"
