"""GuardSpec: a guard as a TOML file, and its fingerprint.

`lbw replay`, the live run and every trace read the same file. A spec names components and gives parameters; it never
holds code, and reading one never imports anything that it asks for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from lbw_sim.errors import LbwError, SpecError
from lbw_sim.guard.document import fingerprint_of, tables_of, text_of
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.guard import Guard
from lbw_sim.guard.registry import component
from lbw_sim.notebook import facts
from lbw_sim.params import build, meta, params_of, parts_of
from lbw_sim.whole_file import write_whole

FORMAT = 1
_TABLES = ("sensor", "analyzer", "policy", "envelope")


@dataclasses.dataclass(frozen=True)
class GuardSpec:
    """A guard, written down: every component, version and parameter, with nothing left to a default.

    >>> spec = GuardSpec.load("default")
    >>> GuardSpec.from_toml(spec.to_toml()) == spec
    True
    >>> spec.with_changes({"envelope.min_scale": 0.2}).fingerprint == spec.fingerprint
    False
    """

    name: str
    """For people; not part of the fingerprint."""
    tables: dict[str, Any]
    """`delay_steps` and one table per part, complete and checked."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits: equal exactly when two specs take the same decisions by construction.

        SHA-256 over components, versions, every parameter and the delay; the name does not count.
        """
        return fingerprint_of(self.tables)

    @classmethod
    def of(cls, guard: Guard, name: str) -> GuardSpec:
        """The spec of a guard that was built in Python."""
        tables: dict[str, Any] = {"delay_steps": guard.delay_steps}
        for table in _TABLES:
            tables[table] = _describe(getattr(guard, table))
        del tables["envelope"]["name"]  # there is only one
        return cls(name, tables)

    @classmethod
    def load(cls, source: str | Path) -> GuardSpec:
        """A spec by preset name (`default`, `never`, …) or from a TOML file. Raises SpecError.

        >>> GuardSpec.load("default").build().delay_steps
        0
        """
        if isinstance(source, str) and source in preset_names():
            text = (resources.files("lbw_sim.guard") / "presets" / f"{source}.toml").read_text(encoding="utf-8")
            return cls.from_toml(text, where=f"preset {source}")
        text = text_of(Path(source), "guard preset", preset_names(), SpecError)
        return cls.from_toml(text, where=str(source))

    @classmethod
    def from_toml(cls, text: str, where: str = "guard spec") -> GuardSpec:
        """Parse, complete with defaults, and check. `where` names the source in errors. Raises SpecError."""
        raw = tables_of(
            text, where, mark="lbw_spec", format_number=FORMAT, allowed=("delay_steps", *_TABLES), required=_TABLES[:3],
            error=SpecError,
        )  # fmt: skip
        problems = []
        parts: dict[str, Any] = {}
        for kind in _TABLES:
            try:
                parts[kind] = _construct(kind, raw.get(kind, {}))
            except LbwError as error:
                problems.append(f"[{kind}] {error}")
        if problems:
            raise SpecError(f"{where}: {'; '.join(problems)}")
        try:
            guard = Guard(**parts, delay_steps=raw.get("delay_steps", 0))
        except LbwError as error:
            raise SpecError(f"{where}: {error}") from None
        return cls.of(guard, str(raw.get("name", "unnamed")))

    def to_toml(self) -> str:
        """The file's text; `from_toml` gives an equal spec back."""
        return tomli_w.dumps({"lbw_spec": FORMAT, "name": self.name, **self.tables})

    def save(self, path: str | Path) -> None:
        """Write the TOML file, replacing what was there."""
        write_whole(path, self.to_toml())

    def build(self) -> Guard:
        """The guard itself. Raises SpecError when a component is unknown here, or of another version."""
        try:
            parts = {kind: _construct(kind, self.tables[kind]) for kind in _TABLES}
        except LbwError as error:
            raise SpecError(f"guard {self.name!r}: {error}") from None
        return Guard(**parts, delay_steps=self.tables["delay_steps"])

    def with_changes(self, changes: dict[str, object], name: str | None = None) -> GuardSpec:
        """A copy with some values replaced, by dotted path such as `envelope.min_scale`. Raises SpecError."""
        tables = json.loads(json.dumps(self.tables))
        for path, value in changes.items():
            *way, last = path.split(".")
            table = tables
            for key in way:
                table = table.get(key) if isinstance(table, dict) else None
            if not isinstance(table, dict) or last not in table:
                raise SpecError(f"guard {self.name!r} has nothing at {path!r}")
            table[last] = value
        changed = GuardSpec(name or self.name, tables)
        return GuardSpec.of(changed.build(), changed.name)

    def with_limits_times(self, factor: float) -> GuardSpec:
        """A copy whose analyzer limits are all multiplied, within their ranges: less sensitive above 1, more below.

        >>> GuardSpec.load("zscore").with_limits_times(2.0).tables["analyzer"]["limit_sd"]
        6.0
        """
        changes = {}
        waiting = [("analyzer", self.build().analyzer)]
        while waiting:
            path, part = waiting.pop()
            waiting += [(f"{path}.{name}", getattr(part, name)) for name in parts_of(part)]
            for name, info in params_of(part).items():
                if info.limit:
                    value = min(info.high, max(info.low, getattr(part, name) * factor))
                    changes[f"{path}.{name}"] = round(value) if info.integer else value
        return self.with_changes(changes, f"{self.name} x {factor:g}")

    def differences(self, other: GuardSpec) -> list[tuple[str, object, object]]:
        """(dotted path, value here, value there) of everything that differs; None where one has nothing there.

        >>> ours = GuardSpec.load("zscore")
        >>> ours.differences(ours.with_changes({"envelope.min_scale": 0.2}))
        [('envelope.min_scale', 0.1, 0.2)]
        """
        ours, theirs = _flat(self.tables), _flat(other.tables)
        paths = dict.fromkeys([*ours, *theirs])
        return [(p, ours.get(p), theirs.get(p)) for p in paths if ours.get(p) != theirs.get(p)]

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def _repr_html_(self) -> str:
        """For notebooks: every parameter."""
        return facts(f"guard {self.name}, fingerprint {self.fingerprint}", _flat(self.tables).items())

    def __rich_repr__(self) -> Iterator[tuple[str, object]]:
        yield "name", self.name
        yield "fingerprint", self.fingerprint
        yield from self.tables.items()


def preset_names() -> list[str]:
    """Names of the guards that ship with the package.

    >>> {"default", "never"} <= set(preset_names())
    True
    """
    folder = resources.files("lbw_sim.guard") / "presets"
    return sorted(entry.name[: -len(".toml")] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def _flat(table: dict[str, Any], at: str = "") -> dict[str, object]:
    """Dotted path -> value of nested tables."""
    flat: dict[str, object] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{at}{key}.") if isinstance(value, dict) else {f"{at}{key}": value}
    return flat


def _describe(part: object) -> dict[str, Any]:
    """Name, version, parameters and wrapped components of one component, as a TOML table."""
    info = meta(part)
    table: dict[str, Any] = {"name": info.name, "version": info.version}
    table |= {name: getattr(part, name) for name in params_of(part)}
    table |= {name: _describe(getattr(part, name)) for name in parts_of(part)}
    return table


def _construct(kind: str, table: object) -> Any:
    """The inverse of `_describe`. A missing version or parameter means today's default."""
    if not isinstance(table, dict):
        raise SpecError(f"is {table!r}, not a table")
    values = dict(table)
    if kind == "envelope":
        cls: type = Envelope
    else:
        name = values.pop("name", None)
        if not isinstance(name, str):
            raise SpecError(f"has no name; say which {kind} it is")
        cls = component(kind, name)
    version = values.pop("version", meta(cls).version)
    if version != meta(cls).version:
        raise SpecError(
            f"{meta(cls).name} version {version} was asked for and version {meta(cls).version} is installed: its "
            f"decisions may differ. Install the release that has it, or remove the version to take today's"
        )
    for name in parts_of(cls):
        if name in values:
            values[name] = _construct(kind, values[name])
    return build(cls, values)
