"""Imports the `trainer_state.json` of the Hugging Face Trainer.

Its losses are means over `logging_steps`, and by default a nan is left out of them: both are said. Of several
checkpoints of one run the last one holds everything, and only that is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lbw_sim.errors import TraceError
from lbw_sim.trace.importers.logged import MOST_NAMES, Facts, Importer, LoggedRun, find_columns, rows_of, run_id_from

MAX_BYTES = 64 << 20
_WINDOW = 1 << 18
"""Longest entry, in characters."""
# a quote inside of a JSON text has a backslash before it
_HISTORY = re.compile(r'(?<!\\)"log_history"\s{0,20}:\s{0,20}\[')
_LOGGING_STEPS = re.compile(r'(?<!\\)"logging_steps"\s{0,20}:\s{0,20}(\d{1,12}(?:\.\d{1,12})?)')
_GLOBAL_STEP = re.compile(r'(?<!\\)"global_step"\s{0,20}:\s{0,20}(\d{1,15})')
_HEAD_BYTES = 1 << 14
"""In which the trainer has written `global_step`, before its history."""
_BETWEEN = re.compile(r"[\s,]*")


def _unit(path: Path) -> Path:
    folder = path.parent
    return folder.parent if folder.name.startswith("checkpoint-") else folder


def _text(path: Path) -> tuple[str, int]:
    """The file, and where its history begins. Raises TraceError."""
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise TraceError(f"{path}: longer than {MAX_BYTES} bytes")
    text = data.decode("utf-8", "replace")
    match = _HISTORY.search(text)
    if match is None:
        raise TraceError(f"{path}: holds no log_history, a list of objects")
    return text, match.end()


def entries(text: str, start: int, where: str, lost: list[str]) -> Iterator[dict[str, Any]]:
    """The entries of the history, one at a time, so that a big file is not a big heap of objects. Raises TraceError.

    >>> list(entries('[{"step": 1, "loss": NaN}, {"step": 2}', 1, "x", []))
    [{'step': 1, 'loss': nan}, {'step': 2}]
    """
    decode = json.JSONDecoder().raw_decode
    lost.clear()
    window, at = text[start : start + _WINDOW], 0
    while True:
        at = _BETWEEN.match(window, at).end()  # type: ignore[union-attr]
        if at < len(window) and window[at] == "]":
            return
        try:
            entry, at = decode(window, at)
        except (ValueError, RecursionError) as error:
            if at:
                # the window ends within an entry
                start += at
                window, at = text[start : start + _WINDOW], 0
                continue
            if len(text) - start < _WINDOW and "]" not in window:
                lost.append(f"{where}: it ends within its history")
                return
            raise TraceError(f"{where} is not JSON at character {start}: {str(error)[:200]}") from None
        if not isinstance(entry, dict):
            raise TraceError(f"{where}: its log_history holds {str(entry)[:40]!r} where an object belongs")
        # the summary at the end repeats the step of the last row
        if "train_runtime" not in entry:
            yield entry


def _last(files: Sequence[Path]) -> Path:
    """The file with the most steps: in a run that was resumed and died the folder's own may be an old one."""

    def steps(path: Path) -> tuple[int, bool, str]:
        number = path.parent.name.removeprefix("checkpoint-")
        of_checkpoint = number.isdigit() and len(number) < 16
        with open(path, "rb") as file:
            found = _GLOBAL_STEP.search(file.read(_HEAD_BYTES).decode("utf-8", "replace"))
        taken = int(found[1]) if found else int(number) if of_checkpoint else 1 << 60
        return taken, not of_checkpoint, str(path)

    return max(files, key=steps)


def _runs(files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    path = _last(files)
    text, start = _text(path)
    lost: list[str] = []
    history = partial(entries, text, start, str(path), lost)
    names: dict[str, None] = {}
    for entry in history():
        names |= dict.fromkeys(entry)
        if len(names) > MOST_NAMES:
            raise TraceError(f"{path}: more than {MOST_NAMES} different names were logged")
    mapping = find_columns(list(names), columns, path)
    every = _LOGGING_STEPS.search(text)
    facts: Facts = {
        "loss_is": "step" if every is not None and float(every[1]) == 1.0 else "window_mean",
        "nan_filtered": 1,
        "grad_norm_is": "before_clipping",
    }
    run_id = run_id_from(_unit(path.resolve()))
    rows = partial(rows_of, history, mapping, str(path))
    yield LoggedRun(run_id, path.name, mapping, rows, facts=facts, lost=lost, files=[path])


HUGGING_FACE = Importer(
    name="hugging_face",
    reads="trainer_state.json of the Hugging Face Trainer",
    recognises=lambda path, head: head.lstrip()[:1] == b"{" and b'"log_history"' in head,
    runs=_runs,
    unit=_unit,
    rank=10,
)
