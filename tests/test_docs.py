"""What the documentation shows is what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_lbw_command_in_a_page_is_one_that_the_command_line_takes(page: Path) -> None:
    commands = {
        tuple(shlex.split(line, comments=True))
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("lbw ")
    }
    for _, command, *arguments in sorted(commands):
        text = subprocess.run(
            [sys.executable, "-m", "lbw_sim", command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in (argument for argument in arguments if argument.startswith("-")):
            assert re.search(rf"{option}\b", text), f"{page.name}: lbw {command} has no {option}"


def test_the_column_table_is_the_schema() -> None:
    rows = [f"| `{c.name}` | {c.dtype} | {c.unit or '–'} | {c.role} | {c.doc} |" for c in BASE_COLUMNS]
    assert "\n".join(rows) in (ROOT / "docs" / "trace-format.md").read_text(encoding="utf-8")
