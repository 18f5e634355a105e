"""A number with its noun, wherever one is said to a person."""

from __future__ import annotations


def counted(many: int, one: str, several: str = "") -> str:
    """A number with its noun, or with noun and verb; `several` where an s does not do.

    >>> counted(1, "run"), counted(1_200, "run"), counted(0, "loss is", "losses are")
    ('1 run', '1,200 runs', '0 losses are')
    """
    return f"{many:,} {one if many == 1 else several or one + 's'}"
