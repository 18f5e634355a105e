"""What is searched: the parameters of a guard, within the ranges that its components declare.

There is no second declaration of any range. It refuses to widen one: whoever wants more edits the component.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.errors import TuneError, unknown_name
from lbw_sim.guard import GuardSpec
from lbw_sim.params import ParamInfo, params_of, parts_of

DIGITS = 4
"""Significant digits of a value that is tried: more would suggest a precision that no tuning has."""


class Dimension(NamedTuple):
    """One parameter that is searched."""

    path: str
    """As `GuardSpec.with_changes` takes it, such as `analyzer.spike_sd`."""
    info: ParamInfo
    start: float
    """Its value in the guard that the search starts from."""

    def value(self, unit: float) -> float:
        """The value at a place in [0, 1] of the range.

        >>> Dimension("x", ParamInfo(10, 1, 1000, "", "", True), 10).value(0.5)
        32
        """
        low, high = self.info.low, self.info.high
        at = min(1.0, max(0.0, unit))
        if self.info.log and low > 0.0:
            found = math.exp(math.log(low) + at * (math.log(high) - math.log(low)))
        else:
            found = low + at * (high - low)
        return round(found) if self.info.integer else min(high, max(low, float(f"{found:.{DIGITS}g}")))

    def unit(self, value: float) -> float:
        """The place in [0, 1] of a value of the range."""
        low, high = self.info.low, self.info.high
        if self.info.log and low > 0.0:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)


class Space(NamedTuple):
    """The start of a search and the dimensions in which it may move."""

    start: GuardSpec
    dimensions: tuple[Dimension, ...]

    @property
    def start_unit(self) -> NDArray[np.float64]:
        """Where the start lies in the unit cube."""
        return np.array([dimension.unit(dimension.start) for dimension in self.dimensions])

    def values(self, unit: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the unit cube, one per row, as values of the parameters."""
        return np.array(
            [[d.value(at) for d, at in zip(self.dimensions, point, strict=True)] for point in unit.tolist()]
        ).reshape(len(unit), len(self.dimensions))

    @property
    def start_values(self) -> NDArray[np.float64]:
        """The start's own values, exactly."""
        return np.array([dimension.start for dimension in self.dimensions], dtype=np.float64)

    def changes(self, values: Iterable[float]) -> dict[str, object]:
        """What one row of values changes in the start."""
        return {
            d.path: int(value) if d.info.integer else float(value)
            for d, value in zip(self.dimensions, values, strict=True)
            if value != d.start
        }


def search_space(start: GuardSpec, *, flown: bool, only: Iterable[str] = (), fix: Iterable[str] = ()) -> Space:
    """The parameters to search.

    Without `only`: all of sensor and analyzer, and of the policy where plants are `flown`. On recorded runs alone a
    policy changes nothing but the energy it asks for, and the search would find that asking for nothing is cheapest.
    The envelope is what its owner promises to the run: it is searched only where `only` names it.

    `only`, `fix`: dotted paths, a table such as `analyzer`, or patterns such as `*.limit_sd`. `fix` wins;
    `path=value` also sets the value. Raises TuneError.

    >>> space = search_space(GuardSpec.load("zscore"), flown=False, fix=["sensor"])
    >>> [dimension.path for dimension in space.dimensions]
    ['analyzer.limit_sd', 'analyzer.hold_steps', 'analyzer.warmup_steps']
    """
    only, fixed = list(only), []
    settings: dict[str, object] = {}
    known = {path: (info, value) for path, info, value in _declared(start)}
    for item in fix:
        name, equals, text = item.partition("=")
        fixed.append(name)
        if equals:
            settings[name] = _number(name, text, known)
    if settings:
        start = start.with_changes(settings)
        known = {path: (info, value) for path, info, value in _declared(start)}
    problems = [
        unknown_name("parameter or table of this guard", name, known) for name in [*only, *fixed]
        if not any(_names(name, path) for path in known)
    ]  # fmt: skip
    if problems:
        raise TuneError("; ".join(problems))
    tables = ("sensor", "analyzer", *(("policy",) if flown else ()))
    dimensions = [
        Dimension(path, info, value)
        for path, (info, value) in known.items()
        if info.high > info.low
        and not any(_names(name, path) for name in fixed)
        and (any(_names(name, path) for name in only) if only else path.partition(".")[0] in tables)
        and (not info.choice or path in only)
    ]
    if not dimensions:
        raise TuneError(
            f"guard {start.name!r} has nothing to tune: no parameter of {', '.join(only or tables)} is left free. "
            f"It has {', '.join(known) or 'none'}"
        )
    return Space(start, tuple(dimensions))


def _declared(spec: GuardSpec) -> list[tuple[str, ParamInfo, float]]:
    """Every parameter of a guard, wrapped components included: path, range, value; in the order of declaration."""
    guard, found = spec.build(), []

    def visit(path: str, part: Any) -> None:
        for name, info in params_of(part).items():
            found.append((f"{path}.{name}", info, getattr(part, name)))
        for name in parts_of(part):
            visit(f"{path}.{name}", getattr(part, name))

    for table in ("sensor", "analyzer", "policy", "envelope"):
        visit(table, getattr(guard, table))
    return found


def _names(name: str, path: str) -> bool:
    return path == name or path.startswith(f"{name}.") or fnmatchcase(path, name)


def _number(name: str, text: str, known: Mapping[str, tuple[ParamInfo, float]]) -> float:
    if name not in known:
        raise TuneError(unknown_name("parameter of this guard", name, known))
    try:
        value = float(text)
    except ValueError:
        raise TuneError(f"{name}={text!r} is not a number; say {name}=NUMBER") from None
    return int(value) if known[name][0].integer and value == int(value) else value
