"""A step as lines of arithmetic, read on bounds of the numbers of its state that the step itself keeps.

The bounds make the lines: what can never be zero needs no test, and what is always whole no rounding. Whether a
candidate's own start lies within them is for the caller to see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lbw_sim.replay.inlining import Inliner
from lbw_sim.replay.symbolic import CannotInline, Num, Record, Window, inf
from lbw_sim.replay.writing import Writer

Bound = tuple[float, float, bool]
"""Least, largest, whole."""


def numbers_of(state: Any) -> Iterator[float]:
    """The numbers of a state, depth first, windows left out."""
    if isinstance(state, tuple):
        if hasattr(state, "_fields"):
            for item in state:
                yield from numbers_of(item)
    else:
        yield state


def number_places(state: Any) -> dict[str, int]:
    """Field of the state that is one number -> its place among `numbers_of`."""
    places, place = {}, 0
    for name, value in zip(state._fields, state, strict=True):
        if not isinstance(value, tuple):
            places[name] = place
        place += sum(1 for _ in numbers_of(value))
    return places


def windows_of(state: Any) -> Iterator[tuple[float, ...]]:
    """The windows of a state, depth first."""
    if isinstance(state, tuple):
        if hasattr(state, "_fields"):
            for item in state:
                yield from windows_of(item)
        else:
            yield state


class Read(NamedTuple):
    """One step, read on an assumption about the state."""

    writer: Writer
    parameters: dict[str, Num]
    """Dotted path -> number."""
    before: list[Num]
    """The numbers of the state, depth first."""
    after: list[Num]
    """The same behind the step."""
    windows: list[Window]
    """Those of the state behind the step."""
    output: dict[str, Num]
    """The wanted fields of what the step gives."""


def settled(start: Any, reader: Callable[[Sequence[Bound]], Read]) -> tuple[Read, list[Bound]]:
    """A step read on bounds of the state's numbers that the step itself keeps, from those of the first state on."""
    bounds = [(float(n), float(n), isinstance(n, int)) for n in numbers_of(start)]
    for attempt in range(6):
        read = reader(bounds)
        widened = [_widened(old, new, attempt) for old, new in zip(bounds, read.after, strict=True)]
        if widened == bounds:
            return read, bounds
        bounds = widened
    bounds = [(-inf, inf, False)] * len(bounds)
    return reader(bounds), bounds


def _widened(old: Bound, new: Num, attempt: int) -> Bound:
    """An assumption about one number of the state that the step just read does not break."""
    low = old[0] if new.low >= old[0] else new.low if attempt == 0 else -inf
    high = old[1] if new.high <= old[1] else new.high if attempt == 0 else inf
    return (low, high, old[2] and new.whole)


def read_step(start: Any, bounds: Sequence[Bound], call: Callable[[Inliner, Any], Any], wanted: Sequence[str]) -> Read:
    """Read a step that gives (state, output) once; `wanted`: fields of the output."""
    inliner = Inliner()
    before: list[Num] = []
    windows = 0

    def abstract(value: Any) -> Any:
        nonlocal windows
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return Record(type(value), tuple(abstract(item) for item in value))
        if isinstance(value, tuple):
            windows += 1
            return Window(windows - 1)
        low, high, whole = bounds[len(before)]
        before.append(Num(f"s{len(before)}", whole, low, high))
        return before[-1]

    state = abstract(start)
    result = call(inliner, state)
    state_after, output = result.values
    after: list[Num] = []
    after_windows: list[Window] = []

    def collect(value: Any, template: Any, where: str) -> None:
        if isinstance(template, Record):
            if not isinstance(value, Record) or value.cls is not template.cls:
                raise CannotInline(f"{where}: the state changes its shape")
            for name, item, inner in zip(template.cls._fields, value.values, template.values, strict=True):  # type: ignore[attr-defined]
                collect(item, inner, f"{where}.{name}")
        elif isinstance(template, Window):
            if not isinstance(value, Window) or value.field != template.field:
                raise CannotInline(f"{where}: a window may be kept, or moved by one: window[1:] + (x,)")
            after_windows.append(value)
        else:
            after.append(inliner.out.number(value))

    collect(state_after, state, "state")
    fields = dict(zip(output.cls._fields, output.values, strict=True))
    numbers = {name: inliner.out.number(fields[name]) for name in wanted}
    return Read(inliner.out, inliner.parameters, before, after, after_windows, numbers)
