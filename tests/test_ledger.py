"""Finished work, line by line."""

from __future__ import annotations

import io
from pathlib import Path

from lbw_sim.ledger import add_line, read_line


class Shared(io.FileIO):
    """A file to which somebody else appends just when we have looked at its end."""

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(-1 if size is None else size)
        with open(self.name, "ab") as other:
            other.write(b"69f61ffe theirs\n")
        return found


def test_a_line_is_found_where_it_lies_when_two_searches_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(b"first line\n")
    with Shared(path, "a+") as file:
        begin = add_line(file, b"ours")  # type: ignore[arg-type]
    with path.open("rb") as file_now:
        assert read_line(file_now, begin) == b"ours"
    assert path.read_bytes().count(b"\n") == 3
