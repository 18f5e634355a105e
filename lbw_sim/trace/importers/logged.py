"""What every importer gives: runs as numbers in columns, read as often as needed, and what is known about them.

An importer reads and says what it could not read. It repairs nothing, decides nothing and executes nothing that stands
in a file; `record` turns what it gives into traces.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.errors import TraceError, unknown_name
from lbw_sim.trace.provenance import Provenance

SYNONYMS: dict[str, tuple[str, ...]] = {
    # first what trainers write beside a dashboard's own step, which counts calls of its log
    "step": ("train_global_step", "trainer_global_step", "step", "global_step", "train_step", "steps", "iteration",
             "iterations", "iter", "num_updates", "update"),
    "loss": ("loss", "train_loss", "training_loss", "train_loss_step", "lm_loss", "train_ce_loss", "ce_loss",
             "loss_train", "losses_train", "loss_metrics_global_avg_loss", "global_avg_loss", "train_step_loss",
             "train_lm_loss", "train_training_loss", "lm_loss_training", "reduced_train_loss"),
    "lr": ("lr", "learning_rate", "train_lr", "train_learning_rate", "optim_lr_group_0", "lr_adamw", "lr_adam",
           "lr_sgd", "lr_adamw_pg1", "lr_adam_pg1", "learning_rate_learning_rate"),
    "grad_norm": ("grad_norm", "gradient_norm", "gradnorm", "gnorm", "total_grad_norm", "train_grad_norm",
                  "optim_total_grad_norm", "grad_norm_grad_norm", "grad_2_0_norm_total"),
    "update_norm": ("update_norm", "train_update_norm"),
    "tokens": ("tokens", "tokens_per_step", "train_tokens"),
    "elapsed_s": ("elapsed_s", "elapsed", "time_s", "time", "seconds", "runtime", "wall_time", "timestamp"),
}  # fmt: skip
"""Trace column -> names under which logs know it, the likeliest first. Compared in lower case, `-`, `/`, `.` and blanks
as `_`, a leading `_` dropped."""

STEP_CHANNELS = ("loss", "lr", "grad_norm", "update_norm")
"""A row without any of these is no step: an evaluation, say."""
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
ROWS_AT_ONCE = 65_536
MOST_POINTS = 3_000_000
"""Numbers that one run may hold where a format has to be held in memory to be joined by step."""
MOST_NAMES = 10_000
"""Different tags or columns that one source may have."""
_MISSING = frozenset({"", "null", "none", "na", "n/a", "-"})


class Rows(NamedTuple):
    """Some rows of a run, in the order in which they were logged."""

    step: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    """Trace column -> numbers; nan also where nothing was measured."""
    measured: dict[str, NDArray[np.bool_]]
    """Trace column -> whether the log held a value there, nan and infinity included."""


@dataclass
class LoggedRun:
    """One run of a source."""

    run_id: str
    """A proposal; `record` checks it."""
    source: str
    """What it was read from, without folders."""
    columns: Mapping[str, str]
    """Trace column -> what the source calls it."""
    rows: Callable[[], Iterator[Rows]]
    """Reads the run from its start; called more than once. Raises TraceError."""
    facts: Provenance = field(default_factory=dict)
    """Provenance: what the format is known to do to numbers; see `limitations`."""
    lost: list[str] = field(default_factory=list)
    """What could not be read, in words; complete once `rows` has come to its end."""
    files: Sequence[Path] = ()
    """Hashed into the provenance."""


@dataclass(frozen=True, kw_only=True)
class Importer:
    """A source of runs. A module of this folder that has one offers it; there is no list to edit."""

    name: str
    reads: str
    """For help and documentation: what it reads."""
    recognises: Callable[[Path, bytes], bool]
    """Whether a file, given with its first bytes (uncompressed), is of this kind. Never raises."""
    runs: Callable[[Sequence[Path], Mapping[str, str]], Iterator[LoggedRun]]
    """The runs in the files of one unit; the mapping is the user's, trace column -> column of the source. Raises
    TraceError."""
    unit: Callable[[Path], Path] = lambda path: path
    """Files that belong together share this."""
    rank: int = 0
    """Who is asked first: higher."""
    scheme: str = ""
    """Addresses `scheme://…` are handed to `runs` as they are."""


def run_id_from(path: str | Path) -> str:
    """The run id that a file's name gives: known endings dropped, characters that an id may not have made `-`.

    Raises TraceError when nothing is left.

    >>> run_id_from("logs/my run, lr=0.001.csv.gz")
    'my-run-lr-0.001'
    """
    name = Path(path).name
    endings = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet", ".log", ".json", ".wandb", ".out", ".db")
    for ending in (*COMPRESSED, *endings):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    run_id = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:128]
    if not run_id.strip("."):
        raise TraceError(f"{path}: its name gives no run id; rename the file")
    return run_id


def plain(name: str) -> str:
    """The form in which names are compared.

    >>> plain("train/Learning Rate")
    'train_learning_rate'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def facts_of_tags(names: Iterable[str]) -> Provenance:
    """What the names tell of who logged: those of the Hugging Face Trainer stand over means of `logging_steps`.

    >>> facts_of_tags(["train/loss", "train/epoch", "train/global_step"])["loss_is"]
    'window_mean'
    """
    if {"train/loss", "train/epoch"} <= set(names):
        return {"loss_is": "window_mean", "nan_filtered": 1, "grad_norm_is": "before_clipping"}
    return {}


def find_columns(
    there: Sequence[str], wanted: Mapping[str, str], where: object, *, needed: Sequence[str] = ("step", "loss")
) -> dict[str, str]:
    """Trace column -> one of the names `there`, by `wanted` or by `SYNONYMS`. Raises TraceError, all problems at once.

    >>> find_columns(["_step", "train/loss", "train/lr"], {}, "run.csv")
    {'step': '_step', 'loss': 'train/loss', 'lr': 'train/lr'}
    """
    known: dict[str, list[str]] = {}
    for name in there:
        known.setdefault(plain(name), []).append(name)
    problems = [unknown_name("trace column", name, SYNONYMS) for name in wanted if name not in SYNONYMS]
    problems += [unknown_name("column", column, list(there)[:100]) for column in wanted.values() if column not in there]
    mapping = {}
    for name, synonyms in SYNONYMS.items():
        column = wanted.get(name) or next((known[s][0] for s in synonyms if s in known), None)
        if column is not None:
            mapping[name] = column
            if list(there).count(column) > 1:
                problems.append(f"column {column!r} is there {list(there).count(column)} times")
        elif name in needed:
            names = ", ".join(str(found)[:60] for found in list(there)[:40]) or "none"
            problems.append(f"no column looks like the {name}: it has {names}. Name it by --{name}")
    if problems:
        raise TraceError(f"{where}: {'; '.join(problems)}")
    return mapping


def find_series(there: Iterable[str], wanted: Mapping[str, str], where: object) -> dict[str, str]:
    """As `find_columns`, where each number brings its own step and time: these are no columns of their own.

    >>> find_series(["train/loss", "wall_time"], {}, "events")
    {'loss': 'train/loss'}
    """
    mapping = find_columns(["step", *there], wanted, where)
    return {name: column for name, column in mapping.items() if name not in ("step", "elapsed_s")}


def names_in(history: Iterable[Mapping[str, Any]], where: object) -> list[str]:
    """Every name that occurs in rows which need not hold the same ones, in the order of appearance. Raises TraceError.

    >>> names_in([{"step": 1, "loss": 2.5}, {"step": 1, "lr": 0.1}], "run")
    ['step', 'loss', 'lr']
    """
    names: dict[str, None] = {}
    for row in history:
        names |= dict.fromkeys(row)
        if len(names) > MOST_NAMES:
            raise TraceError(f"{where}: more than {MOST_NAMES} different names were logged")
    return list(names)


def number(cell: Any, where: str) -> float | None:
    """A cell as a number; None when it is empty. Raises TraceError."""
    if cell is None:
        return None
    try:
        if isinstance(cell, str):
            text = cell.strip()
            if text.lower() in _MISSING:
                return None
            # Python would read 1_000 as a thousand
            return float(text.replace("_", "?"))
        if not isinstance(cell, (bool, bytes)):
            return float(cell)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TraceError(f"{where}: {str(cell)[:60]!r} is not a number")


def rows_from_cells(cells: Mapping[str, Sequence[Any]], where: str, first_row: int, names: Mapping[str, str]) -> Rows:
    """Columns of cells as rows: evaluations are dropped. Raises TraceError that names row and column.

    `cells`: trace column -> cells; `names`: what the source calls these columns; `first_row` counts from 1.
    """
    values: dict[str, NDArray[np.float64]] = {}
    measured: dict[str, NDArray[np.bool_]] = {}
    for name, column in cells.items():
        if isinstance(column, np.ndarray):
            values[name], measured[name] = column, np.ones(len(column), bool)
            continue
        found = [number(cell, f"{where} row {first_row + i}, column {names[name]!r}") for i, cell in enumerate(column)]
        measured[name] = np.array([cell is not None for cell in found], bool)
        values[name] = np.array([np.nan if cell is None else cell for cell in found], np.float64)
    return steps_only(values, measured, where, first_row)


def rows_of(
    history: Callable[[], Iterable[Mapping[str, Any]]], mapping: Mapping[str, str], where: str
) -> Iterator[Rows]:
    """Rows as mappings -> rows of a trace. `history()` gives them from the start. Raises TraceError."""

    def each() -> Iterator[Rows]:
        row = 1
        for cells in _in_columns(history(), mapping):
            yield rows_from_cells(cells, where, row, mapping)
            row += len(cells["step"])

    return joined(each())


def _in_columns(history: Iterable[Mapping[str, Any]], mapping: Mapping[str, str]) -> Iterator[dict[str, list[Any]]]:
    cells: dict[str, list[Any]] = {name: [] for name in mapping}
    for row in history:
        for name, column in mapping.items():
            cells[name].append(row.get(column))
        if len(cells["step"]) == ROWS_AT_ONCE:
            yield cells
            cells = {name: [] for name in mapping}
    if cells["step"]:
        yield cells


def steps_only(
    values: dict[str, NDArray[np.float64]], measured: dict[str, NDArray[np.bool_]], where: str, first_row: int
) -> Rows:
    """Drop the rows that are no steps and take the step out of the columns. Raises TraceError for a bad step."""
    step, there = values["step"], measured["step"]
    keep = np.zeros(len(step), bool)
    for name in STEP_CHANNELS:
        if name in measured:
            keep |= measured[name]
    with np.errstate(invalid="ignore"):
        bad = keep & ~(there & (step >= 0.0) & (step < 2.0**53) & (step == np.floor(step)))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        at = f"{where} row {first_row + row}"
        if not there[row]:
            raise TraceError(f"{at}: no step there. If another column counts steps, name it by --step")
        raise TraceError(f"{at}: step {float(step[row])} is not a whole number from 0 on")
    others = [name for name in values if name != "step"]
    if keep.all():
        return Rows(step.astype(np.int64), {n: values[n] for n in others}, {n: measured[n] for n in others})
    return Rows(
        step[keep].astype(np.int64), {n: values[n][keep] for n in others}, {n: measured[n][keep] for n in others}
    )


def joined(chunks: Iterable[Rows]) -> Iterator[Rows]:
    """Neighbouring rows of one step become one row where no channel stands in two of them; others stay apart.

    So that a log which writes the loss on one line and the learning rate on the next has one row per step.
    """
    pending: Rows | None = None
    for chunk in chunks:
        rows = chunk if pending is None else concat([pending, chunk])
        if not len(rows.step):
            continue
        # the last step may go on in the next chunk
        last = int(np.flatnonzero(rows.step != rows.step[-1])[-1]) + 1 if (rows.step != rows.step[-1]).any() else 0
        if last == 0 and len(rows.step) < ROWS_AT_ONCE:
            pending = rows
            continue
        last = last or len(rows.step)
        yield _join(_part(rows, slice(0, last)))
        pending = _part(rows, slice(last, None))
    if pending is not None and len(pending.step):
        yield _join(pending)


def _part(rows: Rows, which: Any) -> Rows:
    return Rows(
        rows.step[which], {n: v[which] for n, v in rows.values.items()}, {n: v[which] for n, v in rows.measured.items()}
    )


def concat(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, which have the same columns."""
    return Rows(
        np.concatenate([part.step for part in parts]),
        {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
        {name: np.concatenate([part.measured[name] for part in parts]) for name in parts[0].measured},
    )


def _join(rows: Rows) -> Rows:
    starts = np.flatnonzero(np.concatenate([[True], rows.step[1:] != rows.step[:-1]]))
    if len(starts) == len(rows.step):
        return rows
    sizes = np.diff(np.append(starts, len(rows.step)))
    clash = np.zeros(len(starts), bool)
    for name in STEP_CHANNELS:
        if name in rows.measured:
            clash |= np.add.reduceat(rows.measured[name].astype(np.int64), starts) > 1
    group = np.repeat(np.arange(len(starts)), sizes)
    apart = clash[group]
    first = np.zeros(len(rows.step), bool)
    first[starts] = True
    keep = first | apart
    values, measured = {}, {}
    for name, column in rows.values.items():
        there = rows.measured[name]
        # the first measured row of each group; the group's first row when there is none
        at = np.minimum.reduceat(np.where(there, np.arange(len(column)), len(column)), starts)
        at = np.where(at < len(column), at, starts)
        values[name] = np.where(apart, column, column[at][group])[keep]
        measured[name] = np.where(apart, there, there[at][group])[keep]
    return Rows(rows.step[keep], values, measured)


class Series:
    """Numbers of one name, in the order of logging, packed."""

    def __init__(self) -> None:
        self.segment, self.step, self.value, self.time = array("q"), array("q"), array("d"), array("d")

    def add(self, segment: int, step: int, value: float, time_s: float) -> None:
        """One number; `segment` counts restarts of the writer."""
        self.segment.append(segment)
        self.step.append(step)
        self.value.append(value)
        self.time.append(time_s)

    def __len__(self) -> int:
        return len(self.step)


def rows_by_step(series: Mapping[str, Series], where: str) -> Rows:
    """Series of several names, joined: one row per segment, attempt and step. An empty series counts for nothing.

    A step that falls within a series starts a new attempt of it. The row's time is the earliest of its numbers. Raises
    TraceError.
    """
    series = {name: one for name, one in series.items() if len(one)}
    attempts = {name: _attempts(one) for name, one in series.items()}
    sizes = [(max(one.segment) + 1, int(attempts[name].max()) + 1, max(one.step) + 1) for name, one in series.items()]
    if not sizes:
        raise TraceError(f"{where}: holds no number of a training step")
    most_segments, most_attempts, most_steps = (max(size) for size in zip(*sizes, strict=True))
    if most_segments * most_attempts * most_steps >= 1 << 62:
        raise TraceError(f"{where}: steps up to {most_steps - 1} fall {most_attempts - 1} times; that is no run")
    # one number for each place: sorting rows of three costs ten times as much
    packed = [
        (np.frombuffer(one.segment, np.int64) * most_attempts + attempts[name]) * most_steps
        + np.frombuffer(one.step, np.int64)
        for name, one in series.items()
    ]
    del attempts
    every, inverse = np.unique(np.concatenate(packed), return_inverse=True)
    del packed
    step = every % most_steps
    inverse = inverse.reshape(-1)
    count, values, measured, start = len(step), {}, {}, 0
    elapsed = np.full(count, np.inf)
    for name, one in series.items():
        at = inverse[start : start + len(one)]
        start += len(one)
        column, there = np.full(count, np.nan), np.zeros(count, bool)
        column[at], there[at] = np.frombuffer(one.value), True
        values[name], measured[name] = column, there
        np.minimum.at(elapsed, at, np.frombuffer(one.time))
    values["elapsed_s"], measured["elapsed_s"] = elapsed, np.ones(count, bool)
    return Rows(step, values, measured)


def _attempts(one: Series) -> NDArray[np.int64]:
    """How often the step has fallen before each number, within the number's own segment."""
    step, segment = np.frombuffer(one.step, np.int64), np.frombuffer(one.segment, np.int64)
    within = segment[1:] == segment[:-1]
    falls = np.concatenate([[0], np.cumsum((step[1:] <= step[:-1]) & within)])
    first = np.flatnonzero(np.concatenate([[True], ~within]))
    return np.asarray(falls - np.repeat(falls[first], np.diff(np.append(first, len(step)))), np.int64)


def pieces(rows: Rows) -> Iterator[Rows]:
    """The same in chunks."""
    for start in range(0, len(rows.step), ROWS_AT_ONCE):
        yield _part(rows, slice(start, start + ROWS_AT_ONCE))
