"""What the documentation shows is what the code does."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbw_sim.trace import BASE_COLUMNS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)


RUN_PAGES = r"""
import gc, os, re, shlex, subprocess, sys
from typer.testing import CliRunner

# whatever takes long to import, once for all pages: also what torch imports with its first optimizer (2.7 s) and numba
# with its first kernel (1.1 s)
import pandas, scipy.optimize, torch, torch._dynamo
import lbw_sim.cli.app, lbw_sim.live, lbw_sim.plots, lbw_sim.report, lbw_sim.stress.suite, lbw_sim.tune
from lbw_sim.replay import kernel_files, kernels

kernel_files.compiled(kernels.extraction())
# no page looks for garbage in it, a fifth of its time
gc.freeze()
for line in sys.stdin:
    page, folder = line.rstrip("\n").split("\t")
    if not (child := os.fork()):
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

os.chdir(folder)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
said = os.open("../said", os.O_WRONLY | os.O_CREAT)
os.dup2(said, 1)
os.dup2(said, 2)
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
                done = CliRunner().invoke(lbw_sim.cli.app.app, words[1:])
                # compare answers as diff does: 1 where there is a difference
                allowed = (0, 1) if words[1] == "compare" else (0,)
                assert done.exit_code in allowed, f"{line}: {done.output} {done.exception!r}"
            elif words and words[0] not in ("make", "pip", "."):
                subprocess.run(["bash", "-euo", "pipefail", "-c", line], check=True, stdout=subprocess.DEVNULL)
"""
"""A page in a forked process: Python in one namespace, shell in one folder, in the order of the page; a block that
names a file is written."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """Reads `page TAB folder`, runs the page there, and answers with the exit code."""
    command = tmp_path_factory.mktemp("bin") / "lbw"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lbw_sim "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        [sys.executable, "-c", RUN_PAGES], env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as started:  # fmt: skip
        yield started


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "(?:python|sh)")], ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, reader: subprocess.Popen[str], tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "traces").symlink_to(ROOT / "traces")
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write(f"{page}\t{folder}\n")
    reader.stdin.flush()
    # a command that waits for something is a fault of the page
    if not select.select([reader.stdout], [], [], 300)[0]:
        os.killpg(reader.pid, signal.SIGKILL)
    assert reader.stdout.readline() == "0\n", (tmp_path / "said").read_text()


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
