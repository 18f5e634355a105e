"""What the documentation shows is what the code does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lbw_sim.trace import BASE_COLUMNS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


RUN_PAGE = r"""
import re, shlex, subprocess, sys
from typer.testing import CliRunner

names = {"__name__": "__page__"}
for language, block in re.findall(r"^```(python|sh|toml)\n(.*?)^```", open(sys.argv[1]).read(), flags=re.M | re.S):
    if named := re.match(r"# ([\w.-]+\.(?:py|toml))\n", block):
        open(named[1], "w").write(block)
    elif language == "python":
        exec(compile(block, sys.argv[1], "exec"), names)
    elif language == "sh":
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["lbw"] and not {"|", ">", "<", "*"} & set(line):
                from lbw_sim.cli.app import app

                # in this process: a new one for each would cost a second
                done = CliRunner().invoke(app, words[1:])
                # compare answers as diff does: 1 where there is a difference
                allowed = (0, 1) if words[1] == "compare" else (0,)
                assert done.exit_code in allowed, f"{line}: {done.output} {done.exception!r}"
            elif words and words[0] not in ("make", "pip", "."):
                subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True, stdout=subprocess.DEVNULL)
"""
"""Python in one namespace, shell in one folder, in the order of the page; a block that names a file is written."""


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "(?:python|sh)")], ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "lbw"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lbw_sim "$@"\n')
    command.chmod(0o755)
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "traces").symlink_to(ROOT / "traces")
    done = subprocess.run(
        [sys.executable, "-c", RUN_PAGE, str(page)],
        cwd=folder,
        env={**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=300,  # a command that waits for something is a fault of the page
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_column_table_is_the_schema() -> None:
    rows = [f"| `{c.name}` | {c.dtype} | {c.unit or '–'} | {c.role} | {c.doc} |" for c in BASE_COLUMNS]
    assert "\n".join(rows) in (ROOT / "docs" / "trace-format.md").read_text(encoding="utf-8")
