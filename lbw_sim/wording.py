"""Numbers with their nouns, lists of names, commands to type and texts of strangers, said to a person.

Numbers and lists are for sentences only: tables and JSON hold plain values.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def counted(many: int, one: str, several: str = "") -> str:
    """A number with its noun, or with noun and verb; `several` where an s does not do.

    >>> counted(1, "run"), counted(1_200, "run"), counted(0, "loss is", "losses are")
    ('1 run', '1,200 runs', '0 losses are')
    """
    return f"{many:,} {one if many == 1 else several or one + 's'}"


def some(names: Sequence[str], most: int) -> str:
    """The first names, at most so many, and how many more there are.

    >>> some(["a", "b"], 2), some(["a", "b", "c", "d"], 2)
    ('a, b', 'a, b and 2 more')
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def typed(argument: object) -> str:
    """A path or another argument as it is typed into a shell.

    >>> typed("traces"), typed("my traces")
    ('traces', "'my traces'")
    """
    return shlex.quote(str(argument))


def printable(text: str) -> str:
    """A text from a file as a terminal may have it: what would move its cursor or change its colours is spelled out.

    >>> print(printable("mine" + chr(27) + "[31m"))
    mine\\x1b[31m
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
