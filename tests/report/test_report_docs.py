"""The commands of the page about reports do what they are shown to do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lbw_sim.cli.app import app

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "read-a-report.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.M | re.S)
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:3]))
def test_command_of_the_page(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "traces").symlink_to(ROOT / "traces")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "run.csv").write_text(
        "step,loss\n" + "".join(f"{step},{4.0 - step / 100}\n" for step in range(60)), encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, command)
    # of diff, because these two guards differ
    assert done.exit_code == (1 if command[0] == "compare" else 0), done.output
    written = tmp_path / command[[i for i, word in enumerate(command) if word in ("-o", "--figure")][-1] + 1]
    assert written.stat().st_size > 5_000


def test_the_grid_of_the_page_finds_its_runs(tmp_path: Path) -> None:
    (command,) = (command for command in COMMANDS if "--grid" in command)
    pattern = command[command.index("--grid") + 1]
    names = [path.name.removeprefix("run_id=") for path in (ROOT / "traces" / "tiny").iterdir()]
    assert len([name for name in names if re.search(pattern, name)]) == 3
