"""Components and their parameters: a class with declared ranges becomes a frozen, checked, named dataclass.

One declaration per parameter: its range is checked at construction, printed by the command line and searched by
tuning. A component holds no state; its `init()` returns the state and its `step(state, ...)` the next one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar, dataclass_transform

from lbw_sim.errors import ComponentError, ParameterError, unknown_name
from lbw_sim.values import Signals, Telemetry

T = TypeVar("T")


class ParamInfo(NamedTuple):
    """The declared range of one parameter."""

    default: float
    low: float
    """Least allowed value, inclusive."""
    high: float
    """Largest allowed value, inclusive."""
    unit: str
    doc: str
    log: bool
    """Search it on a logarithmic scale."""
    limit: bool = False
    """Evidence has to exceed it: with a larger value the rule alarms less. A sweep of all limits gives its curve of
    recall against false alarms."""
    choice: bool = False
    """Its numbers are names, and none is more or less of anything: a search leaves it as it is."""

    @property
    def integer(self) -> bool:
        """Whether only whole numbers are allowed: true when the default is one."""
        return isinstance(self.default, int)


class ComponentMeta(NamedTuple):
    """What a component class declares about itself."""

    kind: str
    """`sensor`, `analyzer`, `policy`, `envelope` or `plant`."""
    name: str
    """The class name in snake case: what a spec file calls it."""
    version: int
    """Raised whenever any decision on any trace can change."""
    needs: tuple[str, ...]
    """Telemetry channels (of a sensor) or signals (of an analyzer) without which it cannot work."""
    uses: tuple[str, ...]
    """Those that it reads when they are there."""
    emits: tuple[str, ...]
    """Signals that a sensor fills; telemetry channels that a plant delivers."""
    extra: tuple[str, ...]
    """Further telemetry channels, by name, that a sensor finds in `Telemetry.extra`, in this order."""


def param(
    default: float,
    *,
    low: float,
    high: float,
    doc: str,
    unit: str = "",
    log: bool = False,
    limit: bool = False,
    choice: bool = False,
) -> Any:  # Any: dataclass fields are typed by their annotation
    """Declare one parameter: its default, its inclusive range, its unit and its meaning.

    An integer default makes an integer parameter. Raises ValueError when the default lies outside the range.
    """
    if not (low <= default <= high):
        raise ValueError(f"default {default} is outside [{low}, {high}]")
    info = ParamInfo(default, low, high, unit, doc, log, limit, choice)
    return dataclasses.field(default=default, metadata={"param": info})


def part(default_factory: Callable[..., Any], *, doc: str) -> Any:
    """Declare a component that this one wraps."""
    return dataclasses.field(default_factory=default_factory, metadata={"part": doc})


def _component(
    kind: str,
    version: int,
    needs: tuple[str, ...],
    uses: tuple[str, ...],
    emits: tuple[str, ...],
    extra: tuple[str, ...],
) -> Callable[[type[T]], type[T]]:
    def decorate(cls: type[T]) -> type[T]:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        for method in ("init", "step"):
            if not callable(getattr(cls, method, None)):
                raise ComponentError(f"{kind} {name!r} has no method {method}(); every component has init and step")
        if type(version) is not int:
            raise ComponentError(f"{kind} {name!r}: version={version!r} is not a whole number")
        for what, names in (("needs", needs), ("uses", uses), ("emits", emits), ("extra", extra)):
            if isinstance(names, str):
                raise ComponentError(f"{kind} {name!r}: {what}={names!r} is a text and no tuple: write ({names!r},)")
        for signal in (() if kind == "plant" else emits) + (needs + uses if kind == "analyzer" else ()):
            if signal not in Signals._fields:
                raise ComponentError(f"{kind} {name!r}: " + unknown_name("signal", signal, Signals._fields))

        if kind == "sensor":
            channels = (*(name for name in Telemetry._fields if name != "extra"), *extra)
            for channel in needs + uses:
                if channel not in channels:
                    told = unknown_name("telemetry channel", channel, channels)
                    raise ComponentError(
                        f"{kind} {name!r}: {told} One of its own is declared with extra=({channel!r},)"
                    )

        def __post_init__(self: Any) -> None:
            _check(self)

        cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
        made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        # a spec file would set one, and its fingerprint would not show it
        fields = dataclasses.fields(made)  # type: ignore[arg-type]
        if undeclared := [f.name for f in fields if not {"param", "part"} & f.metadata.keys()]:
            raise ComponentError(
                f"{kind} {name!r}: {', '.join(undeclared)} must be declared: "
                f"{undeclared[0]}: float = param(DEFAULT, low=, high=, doc=), or part(...) for a component in it; "
                "what never changes needs no type, or is a ClassVar"
            )
        made.__component__ = ComponentMeta(kind, name, version, needs, uses, emits, extra)  # type: ignore[attr-defined]
        return made

    return decorate


@dataclass_transform(frozen_default=True, kw_only_default=True)
def sensor(
    *,
    version: int,
    emits: tuple[str, ...],
    needs: tuple[str, ...] = ("loss",),
    uses: tuple[str, ...] = (),
    extra: tuple[str, ...] = (),
) -> Callable[[type[T]], type[T]]:
    """Make a sensor: `step(state, telemetry) -> (state, Signals)`."""
    return _component("sensor", version, needs, uses, emits, extra)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def analyzer(*, version: int, needs: tuple[str, ...] = (), uses: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Make an analyzer: `step(state, signals) -> (state, Assessment)`."""
    return _component("analyzer", version, needs, uses, (), ())


@dataclass_transform(frozen_default=True, kw_only_default=True)
def policy(*, version: int) -> Callable[[type[T]], type[T]]:
    """Make a policy: `step(state, assessment, scale) -> (state, Request)`, `scale` being the one now in force."""
    return _component("policy", version, (), (), (), ())


@dataclass_transform(frozen_default=True, kw_only_default=True)
def envelope(*, version: int) -> Callable[[type[T]], type[T]]:
    """Make an envelope: `step(state, regime, request) -> (state, Decision)`. There is one, `guard/envelope.py`."""
    return _component("envelope", version, (), (), (), ())


@dataclass_transform(frozen_default=True, kw_only_default=True)
def plant(*, version: int, emits: tuple[str, ...] = ("loss",)) -> Callable[[type[T]], type[T]]:
    """Make a plant, a model of training: `step(state, action, noise) -> (state, Measured)`.

    The step takes the update that `action` says and shows the loss of the next batch on the weights that came of it.
    """
    return _component("plant", version, (), (), emits, ())


def meta(component: object) -> ComponentMeta:
    """What a component, or its class, declares about itself. Raises ComponentError for anything else."""
    found = getattr(component, "__component__", None)
    if not isinstance(found, ComponentMeta):
        raise ComponentError(
            f"{component!r} is not a component; decorate its class with @sensor, @analyzer, @policy or @plant"
        )
    return found


def params_of(component: object) -> dict[str, ParamInfo]:
    """The declared parameters of a component or its class, by name, in the order of declaration."""
    return dict(_declared(component if isinstance(component, type) else type(component), "param"))


def parts_of(component: object) -> dict[str, str]:
    """The wrapped components that a component or its class declares: name -> meaning."""
    return dict(_declared(component if isinstance(component, type) else type(component), "part"))


@cache
def _declared(cls: type, what: str) -> dict[str, Any]:
    """Field -> what its metadata hold, once per class: a search builds thousands of guards."""
    return {f.name: f.metadata[what] for f in dataclasses.fields(cls) if what in f.metadata}


def build(cls: type[T], values: dict[str, object]) -> T:
    """Construct a component from values read from a file; unknown names and bad values are told all at once.

    Raises ParameterError.
    """
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [unknown_name(f"parameter of {cls.__name__}", name, known) for name in values if name not in known]
    if unknown:
        raise ParameterError("; ".join(unknown))
    return cls(**values)


def _check(component: Any) -> None:
    """Refuse values outside their range, all problems in one message; make every value its declared type."""
    problems = []
    for name, info in params_of(component).items():
        value = getattr(component, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            problems.append(f"{name}={value!r} is not a number")
        elif info.integer and (not math.isfinite(value) or value != int(value)):
            problems.append(f"{name}={value} is not a whole number")
        elif not (info.low <= value <= info.high):
            problems.append(
                f"{name}={value} is outside [{info.low}, {info.high}]{' ' + info.unit if info.unit else ''}"
            )
        else:
            # 3 for a float parameter would make integer arithmetic, and another fingerprint, of the same guard
            object.__setattr__(component, name, int(value) if info.integer else float(value))
    if problems:
        raise ParameterError(f"{type(component).__name__}: {'; '.join(problems)}")
