"""Hand labels of many runs in one file: `{run id: [{start_step, end_step, kind, …}, …], …}`.

It checks everything before anything is written, and changes no boundary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lbw_sim.errors import TraceError
from lbw_sim.trace.labels import FORMAT, MAX_BYTES, Label, parse_labels

_STEPS = ("start_step", "peak_step", "end_step")


def read_hand_labels(path: str | Path) -> dict[str, tuple[Label, ...]]:
    """Run id -> its labels, of source `hand` unless they say otherwise. Whole steps may be written as 50.0.

    Raises TraceError.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        found: Any = json.loads(data) if len(data) <= MAX_BYTES else None
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path} is not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict) or not all(isinstance(entries, list) for entries in found.values()):
        raise TraceError(f'{path}: expected {{"run id": [{{"start_step": 1, "end_step": 2, "kind": "spike"}}, …], …}}')
    labels = {}
    for run_id, entries in found.items():
        plain = [{"source": "hand", **_whole_steps(entry)} if isinstance(entry, dict) else entry for entry in entries]
        text = json.dumps({"lbw_labels": FORMAT, "labels": plain}).encode()
        labels[run_id] = parse_labels(text, f"{path}, run {str(run_id)[:60]!r}")
    return labels


def _whole_steps(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        name: int(value) if name in _STEPS and isinstance(value, float) and value.is_integer() else value
        for name, value in entry.items()
    }
