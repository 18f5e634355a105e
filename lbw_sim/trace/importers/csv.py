"""Imports a logged run: CSV, TSV, JSON lines or Parquet, one file per run.

What a log does not say is not made up: an empty cell is "not measured", and a run that no guard watched is recorded
under the guard `never`, in shadow, with `imported` = 1 in its provenance. It does not repair a log; what looks
filtered, rounded or thinned out is said in the provenance as a suspicion.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

import lbw_sim
from lbw_sim.errors import TraceError, unknown_name
from lbw_sim.guard import GuardSpec
from lbw_sim.trace.labels import Label, write_labels
from lbw_sim.trace.layout import run_folder_name
from lbw_sim.trace.recorder import ClosedTrace, Recorder
from lbw_sim.values import Telemetry, nan

SYNONYMS: dict[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "trainer_global_step", "train_global_step", "train_step", "steps", "iteration",
             "iterations", "iter", "num_updates", "update"),
    "loss": ("loss", "train_loss", "training_loss", "lm_loss", "train_ce_loss", "ce_loss", "loss_train"),
    "lr": ("lr", "learning_rate", "train_lr", "train_learning_rate"),
    "grad_norm": ("grad_norm", "gradient_norm", "gradnorm", "gnorm", "total_grad_norm", "train_grad_norm"),
    "update_norm": ("update_norm", "train_update_norm"),
    "tokens": ("tokens", "tokens_per_step", "train_tokens"),
    "elapsed_s": ("elapsed_s", "elapsed", "time_s", "time", "seconds", "runtime", "wall_time", "timestamp"),
}  # fmt: skip
"""Trace column -> names under which logs know it, the likeliest first. Compared in lower case, `-`, `/`, `.` and blanks
as `_`, a leading `_` dropped."""

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_MISSING = frozenset({"", "null", "none", "na", "n/a", "-"})
_ROWS_AT_ONCE = 8192
_LONGEST_LINE = 1 << 20
_MOST_DISTANCES = 10_000
MOST_FALLS = 20
"""Resumptions that any file may hold; beyond 1 % of its rows it is no run in order."""
# seconds since 1970 rather than since the start of a run
_UNIX_TIME = 1e8

Cells = Mapping[str, Sequence[Any]]


class Imported(NamedTuple):
    """What became of one file."""

    run_id: str
    rows: int
    cadence_steps: float
    """Median distance between logged steps; nan with fewer than two rows."""
    suspicions: tuple[str, ...]
    """What a reader should know before trusting the numbers."""
    path: Path


def run_id_from(path: str | Path) -> str:
    """The run id that a file's name gives: known endings dropped, characters that an id may not have made `-`.

    Raises TraceError when nothing is left.

    >>> run_id_from("logs/my run, lr=0.001.csv.gz")
    'my-run-lr-0.001'
    """
    name = Path(path).name
    for ending in (*_COMPRESSED, *SUFFIXES):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    run_id = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")[:128]
    if not run_id.strip("."):
        raise TraceError(f"{path}: its name gives no run id; rename the file")
    return run_id


def import_csv(
    path: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[Label] | None = None,
) -> Imported:
    """Record a logged run as a new run of the folder `out`; its id is the file's name.

    `columns`: trace column -> the file's column, for names that `SYNONYMS` does not know. `labels` are written beside
    the trace. A loss that is nan or infinite gets `nonfinite` = 1, a finite one 0; an empty cell is not measured,
    except in a file without a single loss, where the writer has left nan blank. Rows without loss, learning rate and
    norms (an evaluation, say) are no steps and are left out. As in any recording, a step that does not rise starts a
    new attempt and the last attempt at a step counts; a file whose steps fall all the time is refused.

    The file is read twice and never held in memory. Raises TraceError, before anything is written, when it is no such
    file, a column cannot be found or a cell cannot be read; it names the row (counted from 1, without the header).
    """
    path = Path(path)
    run_id = run_id_from(path)
    folder = Path(out) / run_folder_name(run_id)
    if folder.exists():
        raise TraceError(f"{path}: run {run_id!r} is in {out} already; remove {folder} or import into another folder")
    try:
        mapping = _mapping(path, columns or {})
        survey = _Survey()
        for telemetry, elapsed_s in _rows(path, mapping):
            survey.see(telemetry, elapsed_s)
        if survey.rows == 0:
            raise TraceError(f"{path}: holds no row with a loss, a learning rate or a norm")
        if survey.falls > max(MOST_FALLS, 0.01 * survey.rows):
            raise TraceError(
                f"{path}: the step does not rise at {survey.falls} of {survey.rows} rows, first at "
                f"{survey.first_fall}. Not one run in order? Sort it, or give each run a file of its own"
            )
        provenance = survey.provenance() | {
            "imported": 1,
            "source": path.name,
            "source_sha256": _sha256(path),
            "source_columns": ", ".join(f"{name}={column}" for name, column in mapping.items()),
            "lbw_sim": lbw_sim.__version__,
        }
        try:
            closed = _record(path, out, run_id, mapping, survey, provenance)
            if closed.rows != survey.rows:
                raise TraceError(
                    f"{path}: {closed.rows} of {survey.rows} rows were recorded; a full disk, or a file that is still "
                    f"being written?"
                )
            if labels is not None:
                write_labels(folder, labels)
        except BaseException:
            # also for an interrupt: part of a run would look like a whole one
            shutil.rmtree(folder, ignore_errors=True)
            raise
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise TraceError(f"{path} cannot be read: {str(error)[:300]}") from None
    return Imported(run_id, closed.rows, survey.cadence_steps, tuple(survey.suspicions()), closed.path)


def _record(
    path: Path,
    out: str | Path,
    run_id: str,
    mapping: Mapping[str, str],
    survey: _Survey,
    provenance: dict[str, str | int | float | None],
) -> ClosedTrace:
    """The second reading: every row through the guard that never acts."""
    spec = GuardSpec.load("never")
    guard = spec.build()
    state, before = guard.init(), guard.not_yet
    start_s = survey.first_s if survey.first_s > _UNIX_TIME else 0.0
    with Recorder.open(out, run_id, spec=spec, mode="shadow", provenance=provenance) as recorder:
        for now, elapsed_s in _rows(path, mapping):
            if survey.finite_losses == 0 and now.nonfinite != 1.0:
                now = now._replace(nonfinite=1.0)
            state, decision = guard.step(state, guard.seen(now, before))
            before = now
            recorder.append(now, decision, elapsed_s=elapsed_s - start_s, effective_lr=now.lr)
    return recorder.close()


@dataclass
class _Survey:
    """The first reading: what the numbers look like, in bounded memory."""

    rows: int = 0
    finite_losses: int = 0
    nonfinite_losses: int = 0
    missing_losses: int = 0
    zero_losses: int = 0
    repeated_losses: int = 0
    decimals: int = 0
    """Most decimals of any loss."""
    falls: int = 0
    """Rows whose step does not lie after the one before."""
    first_fall: str = ""
    tokens_rose: bool = True
    first_s: float = nan
    first_step: int = 0
    step: int = -1
    previous: Telemetry = field(default_factory=lambda: Telemetry(-1))
    distances: Counter[int] = field(default_factory=Counter)

    def see(self, now: Telemetry, elapsed_s: float) -> None:
        """One row."""
        if self.rows == 0:
            self.first_step, self.first_s = now.step, elapsed_s
        elif now.step <= self.step:
            self.first_fall = self.first_fall or f"row {self.rows + 1}: step {self.step} -> {now.step}"
            self.falls += 1
        elif len(self.distances) < _MOST_DISTANCES or now.step - self.step in self.distances:
            self.distances[now.step - self.step] += 1
        self.rows += 1
        loss = now.loss
        if now.nonfinite == 1.0:
            self.nonfinite_losses += 1
        elif loss != loss:
            self.missing_losses += 1
        else:
            self.finite_losses += 1
            self.zero_losses += loss == 0.0
            self.repeated_losses += loss == self.previous.loss
            self.decimals = max(self.decimals, -min(0, int(Decimal(repr(loss)).normalize().as_tuple().exponent)))
        if self.rows > 1 and not (now.tokens > self.previous.tokens):
            self.tokens_rose = False
        self.step, self.previous = now.step, now

    @property
    def cadence_steps(self) -> float:
        """Median distance between logged steps."""
        middle, seen = (self.distances.total() + 1) // 2, 0
        for distance in sorted(self.distances):
            seen += self.distances[distance]
            if seen >= middle:
                return float(distance)
        return nan

    def cadence(self) -> str:
        """The same in words."""
        if not self.distances:
            return "unknown"
        usual = self.distances[int(self.cadence_steps)] / self.distances.total()
        every = "every step" if self.cadence_steps == 1 else f"every {int(self.cadence_steps)} steps"
        return every if usual == 1.0 else f"mostly {every}" if usual > 0.9 else "irregular"

    def suspicions(self) -> Iterator[str]:
        """What may be wrong with the log, in sentences."""
        if self.cadence_steps > 1:
            yield f"logged {self.cadence()}: what happened between is not seen"
        if self.falls:
            yield f"the step does not rise at {self.first_fall} ({self.falls} in all): the last row of a step counts"
        if self.finite_losses >= 20 and self.decimals <= 4:
            yield f"losses have at most {self.decimals} decimals: noise below that is rounding"
        if self.zero_losses:
            yield f"{self.zero_losses} losses are exactly 0: a nan may have been logged as 0"
        if self.repeated_losses > max(2.0, 0.01 * self.rows) and self.decimals > 4:
            yield f"{self.repeated_losses} losses repeat the one before: a filter may hide nan, or losses are held"
        if self.finite_losses == 0:
            yield "no loss is a number: empty ones are taken for nan that the writer left blank"
        elif self.missing_losses:
            yield f"{self.missing_losses} rows have no loss"
        if self.rows > 10 and self.tokens_rose:
            yield "tokens rise at every row: a running total rather than tokens per step"

    def provenance(self) -> dict[str, str | int | float | None]:
        """Everything a reader of the trace should know."""
        return {
            "cadence_steps": None if self.cadence_steps != self.cadence_steps else self.cadence_steps,
            "cadence": self.cadence(),
            "first_step": self.first_step,
            "attempts": self.falls + 1,
            "loss_decimals": self.decimals,
            "nonfinite_losses": self.nonfinite_losses,
            "missing_losses": self.missing_losses,
            "zero_losses": self.zero_losses,
            "repeated_losses": self.repeated_losses,
            "suspicions": "; ".join(self.suspicions()),
        }


def _mapping(path: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """Trace column -> column of the file. Raises TraceError, all problems at once."""
    there = _names(path)
    known: dict[str, list[str]] = {}
    for name in there:
        known.setdefault(re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"), []).append(name)
    problems = [unknown_name("trace column", name, SYNONYMS) for name in wanted if name not in SYNONYMS]
    problems += [unknown_name("column", column, there) for column in wanted.values() if column not in there]
    mapping = {}
    for name, synonyms in SYNONYMS.items():
        column = wanted.get(name) or next((known[s][0] for s in synonyms if s in known), None)
        if column is not None:
            mapping[name] = column
            if there.count(column) > 1:
                problems.append(f"column {column!r} is there {there.count(column)} times")
        elif name in ("step", "loss"):
            problems.append(f"no column looks like the {name}: it has {', '.join(there[:40])}. Name it by --{name}")
    if problems:
        raise TraceError(f"{path}: {'; '.join(problems)}")
    return mapping


def _rows(path: Path, mapping: Mapping[str, str]) -> Iterator[tuple[Telemetry, float]]:
    """Telemetry and elapsed seconds of each row that is a step."""
    row = 0
    for cells in _batches(path, list(mapping.values())):
        for values in zip(*(cells[column] for column in mapping.values()), strict=True):
            row += 1
            found = {
                name: _number(cell, f"{path} row {row}, column {mapping[name]!r}")
                for name, cell in zip(mapping, values, strict=True)
            }
            if all(found.get(name) is None for name in ("loss", "lr", "grad_norm", "update_norm")):
                continue
            step = found["step"]
            if step is None or not (0.0 <= step < 2.0**53) or step != int(step):
                raise TraceError(f"{path} row {row}: step {step} is not a whole number from 0 on")
            measured = [value for value in (found["loss"], found.get("grad_norm")) if value is not None]
            broken = any(not (abs(value) < float("inf")) for value in measured)
            nonfinite = nan if found["loss"] is None and not broken else float(broken)
            loss, lr, grad_norm, update_norm, tokens, elapsed_s = (
                nan if (value := found.get(name)) is None else value
                for name in ("loss", "lr", "grad_norm", "update_norm", "tokens", "elapsed_s")
            )
            yield Telemetry(int(step), loss, lr, grad_norm, update_norm, tokens, nonfinite), elapsed_s


def _number(cell: Any, where: str) -> float | None:
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


def _format(path: Path) -> str:
    names = [ending.lower() for ending in path.suffixes[-2:]]
    ending = names[-2] if len(names) == 2 and names[-1] in _COMPRESSED else names[-1] if names else ""
    if ending not in SUFFIXES:
        raise TraceError(f"{path}: a file that ends in {', '.join(SUFFIXES)} is needed; .gz behind it is fine")
    return SUFFIXES[ending]


def _csv(path: Path, convert: arrow_csv.ConvertOptions | None) -> arrow_csv.CSVStreamingReader:
    delimiter = "\t"
    if _format(path) == "csv":
        with pa.input_stream(str(path), compression="detect") as stream:
            head = stream.read(1 << 16).split(b"\n", 1)[0]
        # a header with no comma at all was written for a country that uses it in numbers, or is TSV
        delimiter = next((d for d in (",", ";", "\t") if d.encode() in head), ",")
    return arrow_csv.open_csv(
        pa.input_stream(str(path), compression="detect"),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter),
        convert_options=convert,
    )


def _names(path: Path) -> list[str]:
    kind = _format(path)
    if kind == "jsonl":
        names: dict[str, None] = {}
        for number, record in enumerate(_records(path)):
            names |= dict.fromkeys(record)
            # evaluations and summaries have other keys than steps
            if number == 1000:
                break
        return list(names)
    if kind == "parquet":
        return list(pq.ParquetFile(path).schema_arrow.names)
    # everything as text: a column that we do not want may be anything
    return list(_csv(path, None).schema.names)


def _batches(path: Path, names: list[str]) -> Iterator[Cells]:
    kind = _format(path)
    if kind == "jsonl":
        cells: dict[str, list[Any]] = {name: [] for name in names}
        for record in _records(path):
            for name in names:
                cells[name].append(record.get(name))
            if len(cells[names[0]]) == _ROWS_AT_ONCE:
                yield cells
                cells = {name: [] for name in names}
        yield cells
        return
    if kind == "parquet":
        source: Any = pq.ParquetFile(path).iter_batches(batch_size=_ROWS_AT_ONCE, columns=names)
    else:
        # text, so that a cell that is no number is named with its row
        convert = arrow_csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        )
        source = _csv(path, convert)
    for batch in source:
        yield {name: batch.column(name).to_pylist() for name in names}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    with pa.input_stream(str(path), compression="detect") as raw:
        pending, number = b"", 0
        while True:
            block = raw.read(1 << 20)
            *lines, pending = (pending + block).split(b"\n")
            if not block:
                lines.append(pending)
            if len(pending) > _LONGEST_LINE:
                raise TraceError(f"{path} line {number + len(lines) + 1}: longer than {_LONGEST_LINE} bytes")
            for line in lines:
                number += 1
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise TraceError(f"{path} line {number} is not JSON: {str(error)[:200]}") from None
                if not isinstance(record, dict):
                    raise TraceError(f"{path} line {number}: a JSON object is needed")
                yield record
            if not block:
                return


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
