"""Yes or no from a user: a bool and nothing else, for the text "no" counts as true. It knows no flag's meaning."""

from __future__ import annotations

from lbw_sim.errors import LiveError


def flag(value: object, name: str) -> bool:
    """The flag, when it is a bool. Raises LiveError that calls it `name`.

    >>> flag(False, "unproven")
    False
    """
    if not isinstance(value, bool):
        raise LiveError(f"{name}={value!r} is neither True nor False: give one of the two, no text and no number")
    return value
