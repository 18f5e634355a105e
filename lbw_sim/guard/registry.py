"""Finds components by scanning folders: adding one is adding a file.

A user's own components come from a Python file or folder that the user names (`--plugin my_rules.py`), or from an
installed package that offers them under the entry-point group `lbw_sim.components`, one entry per module; nothing is
ever imported because a trace or a spec file asks for it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from lbw_sim.errors import ComponentError, unknown_name
from lbw_sim.params import ComponentMeta

logger = logging.getLogger("lbw_sim")
_FOLDERS = {
    "sensor": "lbw_sim.guard.sensors",
    "analyzer": "lbw_sim.guard.analyzers",
    "policy": "lbw_sim.guard.policies",
    # by name: plants stand on a higher floor, and are imported only when somebody asks for them
    "plant": "lbw_sim.simulate.plants",
}
_plugins: dict[str, dict[str, type]] = {kind: {} for kind in _FOLDERS}


def _components_in(module: ModuleType) -> Iterator[tuple[ComponentMeta, type]]:
    for value in vars(module).values():
        found = getattr(value, "__component__", None)
        if isinstance(value, type) and isinstance(found, ComponentMeta) and value.__module__ == module.__name__:
            yield found, value


@cache
def _built_in(kind: str) -> dict[str, type]:
    package = importlib.import_module(_FOLDERS[kind])
    found = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        for info, cls in _components_in(module):
            found[info.name] = cls
    return found


@cache
def _installed() -> tuple[ComponentMeta, ...]:
    """Register what installed packages offer, once."""
    registered: list[ComponentMeta] = []
    for entry in importlib.metadata.entry_points(group="lbw_sim.components"):
        try:
            registered += _register(entry.load(), f"package entry point {entry.name!r}")
        except Exception as error:
            # somebody's broken package must not take the built-in guards away
            logger.warning("lbw-sim: components of entry point %r are left out: %s", entry.name, error)
    return tuple(registered)


def components(kind: str) -> dict[str, type]:
    """All components of a kind (`sensor`, `analyzer`, `policy`, `plant`) by name: built in, installed and plugged in.

    >>> "never" in components("analyzer")
    True
    """
    _installed()
    return dict(sorted({**_built_in(kind), **_plugins[kind]}.items()))


def component(kind: str, name: str) -> type:
    """One component class. Raises ComponentError with the known names when there is none of that name."""
    known = components(kind)
    if name not in known:
        raise ComponentError(unknown_name(kind, name, known))
    return known[name]


def load_plugin(path: str | Path) -> list[ComponentMeta]:
    """Import a user's Python file, or every `*.py` of a folder, and register the components defined in it.

    This runs the user's code: call it only with a path that the user gave. A component may not take the name of a
    built-in one. Returns what was registered. Raises ComponentError.
    """
    path = Path(path)
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    if not files or not files[0].is_file() or files[0].suffix != ".py":
        raise ComponentError(f"plugin {path}: no such Python file, or a folder without one")
    registered: list[ComponentMeta] = []
    for file in files:
        name = f"lbw_plugin_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except ComponentError as error:
            raise ComponentError(f"plugin {file}: {error}") from error
        except (Exception, SystemExit) as error:
            raise ComponentError(f"plugin {file}: {type(error).__name__}: {error}") from error
        registered += _register(module, f"plugin {file}")
    if not registered:
        raise ComponentError(
            f"plugin {path}: defines no component; decorate a class with @sensor, @analyzer, @policy or @plant"
        )
    return registered


def _register(module: ModuleType, where: str) -> list[ComponentMeta]:
    """Register the components that a module defines. Raises ComponentError."""
    registered = []
    for info, cls in _components_in(module):
        if info.kind not in _FOLDERS:
            raise ComponentError(f"{where}: a {info.kind} cannot be plugged in; kinds: {', '.join(_FOLDERS)}")
        if info.name in _built_in(info.kind):
            raise ComponentError(f"{where}: {info.kind} {info.name!r} exists already; choose another name")
        _plugins[info.kind][info.name] = cls
        registered.append(info)
    return registered
