"""How a spec stands in a TOML file: guards and plants are read, named in errors and fingerprinted in one way.

It knows nothing of what a spec means, and reading one never imports anything that it asks for.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lbw_sim.errors import LbwError, unknown_name


def text_of(path: Path, kind: str, names: Collection[str], error: type[LbwError]) -> str:
    """The text of a file. `kind`, such as "guard", and the `names` that need no file stand in the `error` raised."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(unknown_name(f"{kind} or TOML file", str(path), names)) from None
    # ValueError: a text that is not UTF-8, or a name that no file can have
    except (OSError, ValueError) as reason:
        raise error(f"{str(path)!r} cannot be read as a {kind}: {reason}") from None


def tables_of(
    text: str,
    where: str,
    *,
    mark: str,
    format_number: int,
    allowed: Collection[str],
    required: Collection[str],
    error: type[LbwError],
) -> dict[str, Any]:
    """The tables and keys of a document, nothing unknown among them and every `required` table there.

    `mark`: the key that says what the document is, and in which format. `where` names the source in the `error` raised.

    >>> tables_of("lbw_x = 1", "x.toml", mark="lbw_x", format_number=1, allowed=[], required=[], error=LbwError)
    {'lbw_x': 1}
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as reason:
        raise error(f"{where} is not TOML: {reason}") from None
    if raw.get(mark) != format_number:
        came = f"{mark}={raw[mark]!r}" if mark in raw else f"the line {mark} = {format_number} is missing"
        raise error(f"{where}: {came}; this version reads {mark} = {format_number}")
    known = {mark, "name", *allowed}
    problems = [] if isinstance(raw.get("name", ""), str) else [f"name={raw['name']!r} is not text"]
    problems += [unknown_name("table or key", key, known) for key in raw if key not in known]
    problems += [f"table [{key}] is missing" for key in required if key not in raw]
    if problems:
        raise error(f"{where}: {'; '.join(problems)}")
    return raw


def fingerprint_of(content: object) -> str:
    """16 hexadecimal digits of the SHA-256 of plain values: equal for equal content.

    >>> fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
