"""What the documentation shows is what the code does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from forked import Forked

from lbw_sim.trace import BASE_COLUMNS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


RUN_PAGE = r"""
import os, re, shlex, subprocess, sys
from commands import lbw

page, commands = sys.argv[1:]
os.environ["PATH"] = commands + os.pathsep + os.environ["PATH"]
names = {"__name__": "__page__"}
for language, block in re.findall(r"^```(python|sh|toml)\n(.*?)^```", open(page).read(), flags=re.M | re.S):
    if named := re.match(r"# ([\w.-]+\.(?:py|toml))\n", block):
        open(named[1], "w").write(block)
    elif language == "python":
        exec(compile(block, page, "exec"), names)
    elif language == "sh":
        for line in block.splitlines():
            tokens = shlex.shlex(line, posix=True, punctuation_chars=True)
            tokens.whitespace_split = True
            words = list(tokens)
            if words[:1] == ["lbw"] and not any(set(word) <= set("();<>|&") for word in words):
                # as the shell reads quotes and patterns, but in this process: a new one for each would cost seconds
                words = subprocess.check_output(["bash", "-euc", f"printf '%s\\0' {line}"], text=True).split("\0")[:-1]
                # compare answers as diff does: 1 where there is a difference
                done = lbw(*words[1:], code=None if words[1] == "compare" else 0)
                assert done.code in (0, 1), f"{line}: {done}"
            elif words and words[0] not in ("make", "pip", "."):
                subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True, stdout=subprocess.DEVNULL)
"""
"""A page in a process of its own: Python in one namespace, shell in one folder, in the order of the page; a block that
names a file is written."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of commands, `lbw` among them."""
    command = tmp_path_factory.mktemp("bin") / "lbw"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lbw_sim "$@"\n')
    command.chmod(0o755)
    return command.parent


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "(?:python|sh)")], ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, commands: Path, tmp_path: Path, forked: Forked) -> None:
    (tmp_path / "traces").symlink_to(ROOT / "traces")
    # a command that waits for something is a fault of the page
    done = forked.run(RUN_PAGE, page, commands, folder=tmp_path, seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr


LINKING = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "traces" / "README.md"]


def headings(page: Path) -> set[str]:
    """Of a page, as a link names them: small letters, hyphens for spaces, the other signs left out."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


@pytest.mark.parametrize("page", sorted(LINKING), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if "://" not in target:
            leads_to = page.parent / target if target else page
            assert leads_to.exists(), f"{page.name} links to {target}"
            assert not heading or heading in headings(leads_to), f"{page.name} links to {target}#{heading}"


@pytest.mark.parametrize("page", sorted(LINKING), ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page: Path) -> None:
    for name in re.findall(r"`((?:analysis|benchmarks|tests|traces|lbw_sim)/[\w./-]+\.\w+)`", page.read_text()):
        if page.name != "CHANGELOG.md":
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_column_table_is_the_schema() -> None:
    rows = [f"| `{c.name}` | {c.dtype} | {c.unit or '–'} | {c.role} | {c.doc} |" for c in BASE_COLUMNS]
    assert "\n".join(rows) in (ROOT / "docs" / "trace-format.md").read_text(encoding="utf-8")
