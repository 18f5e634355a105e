"""`lbw report` and `lbw compare` as their user runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import lbw

from lbw_sim.cli.compare import compare
from lbw_sim.cli.report import report
from lbw_sim.errors import LbwError
from lbw_sim.guard import GuardSpec

SHIPPED = Path(__file__).parent.parent.parent / "traces" / "tiny"
RUN = SHIPPED / "run_id=postln_lr_bump_shadow_s7"
CALM = SHIPPED / "run_id=postln_none_shadow_s7"


def test_report_writes_one_file_of_several_arguments(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    said = lbw("report", RUN, CALM, "-o", page, "--rule", "zscore", "--rule", "cusum", "--title", "Two <runs>").stdout
    assert said.startswith("2 runs, 2 of them in detail")
    text = page.read_text(encoding="utf-8")
    assert "<title>Two &lt;runs&gt;</title>" in text
    assert "postln_none_shadow_s7" in text
    assert "zclip" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_without_a_title_the_page_says_what_it_is_and_of_which_runs(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    for traces, title in (
        ([RUN], f"Guard report: run {RUN.name[7:]}"),
        ([RUN, CALM], "Guard report: 2 runs of postln"),
    ):
        report(list(map(str, traces)), out=page, rule=["never"], details=0)
        text = page.read_text(encoding="utf-8")
        assert f"<title>{title}</title>" in text
        assert f"<h1>{title}</h1>" in text


def test_report_of_a_guard_in_replay_with_curves_of_it(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    report([RUN, CALM], out=page, guard="zscore", rule=["never"], curves=True, details=0)
    text = page.read_text(encoding="utf-8")
    assert "zscore, replayed" in text
    assert 'id="run-1"' not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"traces": []}, "say which traces"),
        ({"traces": [RUN, RUN]}, "comes twice"),
        ({"run": ["nobody"]}, "no run named 'nobody'"),
        ({"grid": "("}, "is no regular expression"),
        ({"grid": "(?P<lr>x)"}, "has no group"),
        ({"guard": "defualt"}, "Did you mean 'default'?"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_written(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(LbwError, match=re.escape(message)):
        report(**{"traces": [RUN], "rule": ["never"], "out": tmp_path / "no.html", **arguments})
    assert not (tmp_path / "no.html").exists()


def test_without_traces_it_exits_with_code_2() -> None:
    assert lbw("report", code=2).stderr.startswith("lbw: say which traces")


def test_compare_exits_like_diff_and_says_where_and_in_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.toml"
    GuardSpec.load("zscore").with_changes({"analyzer.limit_sd": 20.0}).save(mine)
    compare("zscore", "zscore", [RUN, CALM])
    assert "The same decisions on every row of 2 runs." in capsys.readouterr().out
    done = lbw("compare", "zscore", mine, RUN, CALM, "--figure", tmp_path / "difference.svg", code=1)
    assert "analyzer.limit_sd" in done.stdout
    assert "Decisions change at" in done.stdout
    assert "of 800 rows" in done.stdout
    assert (tmp_path / "difference.svg").read_text().startswith("<?xml")
    with pytest.raises(typer.Exit):
        compare("zscore", str(mine), [RUN, CALM], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == [{"parameter": "analyzer.limit_sd", "a": 3.0, "b": 20.0}]
    assert found["places"] == sum(len(run["episodes"]) for run in found["runs"]) > 0
    assert found["rows"] == 800
    with pytest.raises(LbwError, match="no such"):
        compare("zscore", "never", [tmp_path / "nothing"])
