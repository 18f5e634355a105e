"""Generated code as data: its lines, the names that they read, and which lines a wanted value takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_NAME = re.compile(r"\b[a-z_]+\d+\b")


class Line(NamedTuple):
    """One assignment of the generated code, or with `body` a loop."""

    target: str
    text: str
    body: tuple[Line, ...] = ()


def names_in(text: str) -> set[str]:
    """Names of generated variables that an expression reads."""
    return set(_NAME.findall(text))


def pruned(lines: Sequence[Line], wanted: set[str]) -> list[Line]:
    """The lines on which the wanted names depend, in order. Windows are memory: what writes them is kept."""
    needed = set(wanted)
    kept = []
    for line in reversed(lines):
        inside = list(_flat(line.body))
        if {line.target, *(inner.target for inner in inside)} & needed or line.target.startswith("win["):
            needed |= names_in(line.text) | names_in(line.target)
            for inner in inside:
                needed |= names_in(inner.text) | names_in(inner.target)
            kept.append(line)
    return kept[::-1]


def needed_by(lines: Sequence[Line], wanted: set[str]) -> set[str]:
    """Every name that the wanted ones depend on, through these lines."""
    found = set(wanted)
    for line in _flat(pruned(lines, wanted)):
        found |= names_in(line.text) | names_in(line.target)
    return found


def _flat(lines: Sequence[Line]) -> Iterator[Line]:
    for line in lines:
        yield line
        yield from _flat(line.body)
