"""Labels: what is known to have happened in a run, and how it is known.

They lie beside the trace in `_labels.json` and count steps of its final lineage. A label says whether it was planted,
set by hand or found with hindsight; it never says what a guard should have done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lbw_sim.errors import TraceError, unknown_name
from lbw_sim.trace.layout import LABELS, local_path
from lbw_sim.whole_file import write_whole

FORMAT = 1
MAX_BYTES = 16 << 20
EVENT_KINDS = ("spike", "divergence", "oscillation", "nonfinite")
"""What a detector should find."""
BENIGN_KINDS = ("benign_shift", "benign_outlier")
"""What looks like an event and is none: an alarm here is a false one."""
KINDS = EVENT_KINDS + BENIGN_KINDS
CONFIDENCES = ("high", "medium", "low")
SOURCES = ("injected", "hand", "hindsight")


class Label(NamedTuple):
    """One stretch of a run that is known to be something."""

    start_step: int
    """First step of the event; an injected fault starts where it was injected."""
    end_step: int
    """Last step, inclusive."""
    kind: str
    """One of `KINDS`."""
    confidence: str = "high"
    """`high`, `medium`, or `low`: scorers do not count a low one either way."""
    source: str = "hand"
    """`injected` (exact), `hand`, or `hindsight` (found by a rule that looks ahead)."""
    peak_step: int | None = None
    """Where the loss was worst; None: not known."""
    note: str = ""


def read_labels(run_folder: str | Path) -> tuple[Label, ...]:
    """The labels of a run, in the order of the file; none when there is no file. Raises TraceError."""
    path = Path(run_folder) / LABELS
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error}") from None
    return parse_labels(data, str(path))


def write_labels(run_folder: str | Path, labels: Iterable[Label]) -> None:
    """Replace the labels of a run, at one stroke. Raises TraceError, all problems at once, and writes nothing then."""
    path = local_path(run_folder, "labels are written") / LABELS
    labels = [Label(*label) for label in labels]
    _refuse_bad(labels, str(path))
    text = json.dumps({"lbw_labels": FORMAT, "labels": [label._asdict() for label in labels]}, indent=1)
    try:
        write_whole(path, text + "\n")
    except OSError as error:
        raise TraceError(f"{path}: labels cannot be written: {error}") from None


def parse_labels(data: bytes, where: str) -> tuple[Label, ...]:
    """Labels from the bytes of a file; `where` names it in errors. Raises TraceError."""
    if len(data) > MAX_BYTES:
        raise TraceError(f"{where}: more than {MAX_BYTES} bytes are not labels")
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where} is not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict) or found.get("lbw_labels") != FORMAT or not isinstance(found.get("labels"), list):
        raise TraceError(f'{where}: expected {{"lbw_labels": {FORMAT}, "labels": [...]}}')
    labels = []
    # numbered as `lbw label` shows them
    for i, entry in enumerate(found["labels"], start=1):
        if not isinstance(entry, dict):
            raise TraceError(f"{where}: label {i} is not a JSON object")
        problems = [unknown_name("field", str(key)[:60], Label._fields) for key in entry if key not in Label._fields]
        problems += [f"{key} is missing" for key in Label._fields[:3] if key not in entry]
        if problems:
            raise TraceError(f"{where}: label {i}: {'; '.join(problems)}")
        labels.append(Label(**entry))
    _refuse_bad(labels, where)
    return tuple(labels)


def _refuse_bad(labels: Sequence[Label], where: str) -> None:
    problems = []
    for i, label in enumerate(labels, start=1):
        wrong = []
        steps = [label.start_step, label.end_step, *([] if label.peak_step is None else [label.peak_step])]
        if any(isinstance(step, bool) or not isinstance(step, int) for step in steps):
            wrong.append("start_step, end_step and peak_step are whole numbers")
        elif not 0 <= label.start_step <= label.end_step:
            wrong.append(f"steps {label.start_step} to {label.end_step} are no stretch of a run")
        elif label.peak_step is not None and not label.start_step <= label.peak_step <= label.end_step:
            wrong.append(f"peak_step={label.peak_step} is outside [{label.start_step}, {label.end_step}]")
        for name, allowed in (("kind", KINDS), ("confidence", CONFIDENCES), ("source", SOURCES)):
            if getattr(label, name) not in allowed:
                wrong.append(unknown_name(name, str(getattr(label, name))[:60], allowed))
        if not isinstance(label.note, str):
            wrong.append("note is not text")
        problems += [f"label {i}: {text}" for text in wrong]
    if problems:
        raise TraceError(f"{where}: {'; '.join(problems)}")
