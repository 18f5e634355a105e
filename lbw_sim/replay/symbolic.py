"""What a name of Python stands for while a step is read: a number of each candidate, or something known already.

No value holds a number of any one candidate; those come when the generated code runs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

inf = math.inf


class CannotInline(Exception):
    """A construct that has no compiled form. The text names it; the candidate is replayed in plain Python."""


class Num(NamedTuple):
    """A number of each candidate: a name in the generated code."""

    code: str
    whole: bool = False
    low: float = -inf
    """Bound that holds unless the value is nan."""
    high: float = inf
    truth: bool = False
    """A boolean."""
    if_true: frozenset[str] = frozenset()
    """Names that cannot be zero where this boolean is true."""
    if_false: frozenset[str] = frozenset()
    real: bool = False
    """Never nan, so that the bounds hold."""


class Const(NamedTuple):
    """Known while reading: a number, an enumeration member, a text, None."""

    value: Any


class Record(NamedTuple):
    """A NamedTuple; `values` in the order of its fields."""

    cls: type
    values: tuple[Any, ...]


class Items(NamedTuple):
    """A tuple of known length."""

    values: tuple[Any, ...]


class Known(NamedTuple):
    """A Python object that is no number: a module, class, function or collection of constants."""

    value: Any


class Part(NamedTuple):
    """A component, or the guard; its parameters are numbers of each candidate."""

    value: Any
    path: str


class Method(NamedTuple):
    """A method with its object."""

    function: Any
    owner: Any


class Replace(NamedTuple):
    """`record._replace`."""

    record: Record


class Nothing(NamedTuple):
    """The value on a path that raises."""


class Window(NamedTuple):
    """A tuple of numbers in the state, of any fixed length, as it is or with its oldest number dropped and one added.

    `added` is the new number; `moved` says, as a boolean in the code, whether it counts.
    """

    field: int
    added: Num | None = None
    moved: str = "False"


class View(NamedTuple):
    """Consecutive numbers of a window: from `start` (whole number in the code, oldest first), `length` of them."""

    window: Window
    start: str
    length: str
    length_is: str
    """The same length as a number of the candidate."""


def is_truth(value: Any) -> bool:
    """Whether it is a boolean, known or of each candidate."""
    return (isinstance(value, Num) and value.truth) or (isinstance(value, Const) and isinstance(value.value, bool))


def described(value: Any) -> str:
    """What it is, for people who read why a step was refused."""
    match value:
        case Const(value=found):
            return repr(found)
        case Num():
            return "a number"
        case Record(cls=cls):
            return f"a {cls.__name__}"
        case Items(values=values):
            return f"a tuple of {len(values)}"
        case Window() | View():
            return "a window"
        case Known(value=found):
            return getattr(found, "__qualname__", None) or type(found).__name__
        case Part(value=found):
            return f"component {type(found).__name__}"
    return type(value).__name__.lower()
