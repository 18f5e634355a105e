"""Imports the `trainer_state.json` of the Hugging Face Trainer.

Its losses are means over `logging_steps`, and by default a nan is left out of them: both are said. Of several
checkpoints of one run the last one holds everything, and only that is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lbw_sim.errors import TraceError
from lbw_sim.trace.importers.logged import Importer, LoggedRun, find_columns, rows_of, run_id_from

MAX_BYTES = 64 << 20


def _unit(path: Path) -> Path:
    folder = path.parent
    return folder.parent if folder.name.startswith("checkpoint-") else folder


def _load(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise TraceError(f"{path}: longer than {MAX_BYTES} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path} is not JSON: {str(error)[:200]}") from None
    history = found.get("log_history") if isinstance(found, dict) else None
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise TraceError(f"{path}: holds no log_history, a list of objects")
    return dict(found)


def _last(files: Sequence[Path]) -> Path:
    """The file of the checkpoint with the most steps."""

    def step(path: Path) -> tuple[int, str]:
        number = path.parent.name.removeprefix("checkpoint-")
        # the folder of the run itself is written last
        return (int(number) if number.isdigit() and len(number) < 16 else 1 << 60, str(path))

    return max(files, key=step)


def _runs(files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    path = _last(files)
    state = _load(path)
    # the summary at the end repeats the step of the last row
    history = [entry for entry in state["log_history"] if "train_runtime" not in entry]
    names = list(dict.fromkeys(name for entry in history for name in entry))
    mapping = find_columns(names, columns, path)
    every = state.get("logging_steps")
    facts: dict[str, str | int | float | None] = {
        "loss_is": "step" if every == 1 else "window_mean",
        "nan_filtered": 1,
        "grad_norm_is": "before_clipping",
    }
    run_id = run_id_from(_unit(path.resolve()))
    rows = partial(rows_of, lambda: iter(history), mapping, str(path))
    yield LoggedRun(run_id, path.name, mapping, rows, facts=facts, files=[path])


HUGGING_FACE = Importer(
    name="hugging_face",
    reads="trainer_state.json of the Hugging Face Trainer",
    recognises=lambda path, head: head.lstrip()[:1] == b"{" and b'"log_history"' in head,
    runs=_runs,
    unit=_unit,
    rank=10,
)
