"""Finds what the files of a folder declare: adding a workload or a method is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Protocol, TypeVar


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


Declared = TypeVar("Declared", bound=Named)


def declared_in(package: ModuleType, kind: type[Declared]) -> dict[str, Declared]:
    """Every object of type `kind` that a module of `package` holds as a constant of its own, or in a tuple, by name."""
    found: dict[str, Declared] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        for value in vars(module).values():
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, kind):
                    twice = found.setdefault(one.name, one) is not one
                    assert not twice, f"{module.__name__}: {kind.__name__} {one.name!r} exists already"
    return dict(sorted(found.items()))
