"""A file is written whole or not at all."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lbw_sim.whole_file import write_whole

FULL = """
import resource, signal, sys
from lbw_sim.whole_file import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole(sys.argv[1], "new " * 1000)
except OSError as error:
    print(error.filename == sys.argv[1])
"""


def test_a_disk_that_is_full_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "guard.backtest.json"
    path.write_text("old")
    told = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True).stdout
    assert told == "True\n"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000, "the limit was the child's"


def test_a_link_and_a_pipe_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    program = "from lbw_sim.whole_file import write_whole; write_whole('/dev/stdout', 'told')"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told == "told"


def test_the_folder_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "x", "new")


def test_threads_that_write_side_by_side_write_what_they_were_given(tmp_path: Path) -> None:
    def write(who: int) -> None:
        for _ in range(20):
            write_whole(tmp_path / f"{who}.txt", f"{who}" * 50_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        f"{who}.txt": f"{who}" * 50_000 for who in range(8)
    }
