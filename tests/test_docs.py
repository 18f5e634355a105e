"""What the documentation shows is what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lbw_sim.cli.app import app
from lbw_sim.trace import BASE_COLUMNS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_about_importing_runs_after_the_python_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "import-runs.md"
    code = "\n".join(blocks(page, "python"))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("lbw ")]
    assert len(lines) >= 8
    monkeypatch.chdir(tmp_path)
    for line in lines:
        # in this process: a new one for each would cost a second
        done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert done.exit_code == 0, f"{line}: {done.output} {done.exception}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


@cache
def help_of(command: str) -> str:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_lbw_command_in_a_page_is_one_that_the_command_line_takes(page: Path) -> None:
    commands = {
        tuple(shlex.split(line, comments=True))
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("lbw ")
    }
    for _, command, *arguments in sorted(commands):
        text = help_of(command)
        for option in (argument for argument in arguments if argument.startswith("-")):
            assert re.search(rf"{option}\b", text), f"{page.name}: lbw {command} has no {option}"


def test_the_column_table_is_the_schema() -> None:
    rows = [f"| `{c.name}` | {c.dtype} | {c.unit or '–'} | {c.role} | {c.doc} |" for c in BASE_COLUMNS]
    assert "\n".join(rows) in (ROOT / "docs" / "trace-format.md").read_text(encoding="utf-8")
