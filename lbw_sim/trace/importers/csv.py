"""Imports logged runs: CSV, TSV, JSON lines or Parquet, one file per run, or several told apart by a column `run_name`.

An empty cell is "not measured", `nan` is a loss that was nan. Rows without loss, learning rate and norms (an
evaluation, say) are left out, as are those that a column `split` keeps apart from training, and lines that share a step
and no value become one row. It does not repair a log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lbw_sim.errors import TraceError
from lbw_sim.trace.importers.logged import (
    COMPRESSED,
    STEP_CHANNELS,
    SYNONYMS,
    Importer,
    LoggedRun,
    Rows,
    facts_of_tags,
    find_columns,
    joined,
    number,
    plain,
    run_id_from,
    steps_only,
)
from lbw_sim.trace.provenance import Provenance

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
RUN_COLUMNS = ("run_name", "run_id", "run_uuid", "run")
"""Columns by which a file tells several runs apart."""
SPLIT_COLUMNS = ("split", "phase", "stage", "mode", "subset", "type")
"""Columns by which a file tells training from evaluation."""
TRAINING = ("train", "training")
EVALUATION = ("eval", "evaluation", "val", "valid", "validation", "dev", "test")
MOST_RUNS = 1000
TORN = "the last line was cut short"
_ROWS_AT_ONCE = 65_536
_LONGEST_LINE = 1 << 20
_LONGEST_HEADER = 1 << 16


def kind_of(path: Path, head: bytes) -> str:
    """`csv`, `jsonl` or `parquet`, by content; empty: none of them.

    >>> kind_of(Path("x"), b"step,loss\\n1,2.5\\n"), kind_of(Path("x"), b'{"step": 1}'), kind_of(Path("x"), b"hello")
    ('csv', 'jsonl', '')
    """
    if head[:4] == b"PAR1":
        return "parquet"
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:_LONGEST_HEADER].split(b"\n", 1)[0].strip()
    if b"\0" in head[:4096] or first[:1] == b"[":
        return ""
    if first[:1] == b"{" and first[-1:] == b"}":
        # other programs write their messages as JSON lines
        return "jsonl" if re.search(rb'"[^"]{0,40}(?:step|iter|update)[^"]{0,40}":', head[:_LONGEST_HEADER]) else ""
    names = [name.strip(b' "').lower() for name in first.split(_delimiter(first).encode())]
    # a header: words, the step among them
    bare = [name.strip(b"_").replace(b" ", b"_") for name in names]
    wordy = any(name[:1].isalpha() or name[:1] == b"_" for name in names)
    stepped = any(b"step" in name or name.startswith((b"iter", b"num_updates", b"update")) for name in bare)
    known = "".join(path.suffixes[-2:]).lower().removesuffix(path.suffix if path.suffix in COMPRESSED else "")
    return "csv" if len(names) > 1 and wordy and (stepped or known.endswith((".csv", ".tsv"))) else ""


def open_runs(path: Path, columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    """The runs in a file. Raises TraceError."""
    kind = _format(path)
    there = names_of(path, kind)
    if panels := {} if columns else _panels(there):
        for title, mapping in panels.items():
            facts: Provenance = {"sampled": int(any(n.endswith("__MIN") for n in there))}
            yield run_of(path, kind, mapping, run_id_from(title), facts=facts)
        return
    mapping = find_columns(there, columns, path)
    training: dict[str, Collection[str]] = {}
    split = _one_of(there, SPLIT_COLUMNS)
    if split is not None and split not in mapping.values():
        training = {split: kept} if (kept := _of_training(_distinct(path, kind, split))) else {}
    by = _one_of(there, RUN_COLUMNS)
    names = _distinct(path, kind, by) if by is not None else []
    for name in names if by is not None and len(names) > 1 else [None]:
        only = training if by is None or name is None else {**training, by: [name]}
        run_id = run_id_from(path if name is None else name.replace("/", "-"))
        yield run_of(path, kind, mapping, run_id, only=only, facts=facts_of_tags(there))


def run_of(
    path: Path, kind: str, mapping: Mapping[str, str], run_id: str, *,
    only: Mapping[str, Collection[str]] | None = None, facts: Provenance | None = None,
) -> LoggedRun:  # fmt: skip
    """The run whose rows `read_rows` reads."""
    lost: list[str] = []
    rows = partial(read_rows, path, kind, mapping, only=only, lost=lost)
    return LoggedRun(run_id, path.name, mapping, rows, facts=facts or {}, lost=lost, files=[path])


def _one_of(there: Sequence[str], known: Sequence[str]) -> str | None:
    """The first column that has one of the known names, and is there once."""
    return next((name for name in there if plain(name) in known and there.count(name) == 1), None)


def read_rows(
    path: Path,
    kind: str,
    mapping: Mapping[str, str],
    *,
    only: Mapping[str, Collection[str]] | None = None,
    lost: list[str] | None = None,
) -> Iterator[Rows]:
    """The rows of a file; `only` those in which each of these columns holds one of these texts. A last line that was
    cut short is told in `lost`. Raises TraceError."""
    only, lost = only or {}, [] if lost is None else lost
    lost.clear()
    wanted = [*mapping.values(), *only]

    def each() -> Iterator[Rows]:
        row = 1
        for cells in _batches(path, kind, wanted, lost):
            values, measured = {}, {}
            for name, column in mapping.items():
                read = _times if name == "elapsed_s" else _numbers
                values[name], measured[name] = read(cells(column), str(path), row, column)
            size = len(values["step"])
            for column, held in only.items():
                # in the place of rows left out: no step, so that they are dropped with the evaluations
                mine = np.array([text in held for text in _texts(cells(column))], bool)
                measured = {name: there & mine for name, there in measured.items()}
            yield steps_only(values, measured, str(path), row)
            row += size

    return joined(each())


def _panels(there: Sequence[str]) -> dict[str, dict[str, str]]:
    """Run -> columns, in the layout in which W&B exports a panel: a column `<run> - <metric>` for every run.

    >>> _panels(["Step", "owl-1 - train/loss", "owl-1 - train/loss__MIN", "fox-2 - train/loss"])
    {'owl-1': {'step': 'Step', 'loss': 'owl-1 - train/loss'}, 'fox-2': {'step': 'Step', 'loss': 'fox-2 - train/loss'}}
    """
    found: dict[str, dict[str, str]] = {}
    step = next((name for name in there if plain(name) in SYNONYMS["step"]), None)
    for name in there:
        title, dash, metric = name.rpartition(" - ")
        trace_name = next((own for own in STEP_CHANNELS if plain(metric) in SYNONYMS[own]), None)
        if step is not None and dash and trace_name is not None:
            found.setdefault(title, {"step": step}).setdefault(trace_name, name)
    return {title: mapping for title, mapping in found.items() if "loss" in mapping}


def _of_training(texts: Sequence[str]) -> list[str]:
    """Of the texts in a column that may tell training from evaluation, those on rows of training; empty: it does not.

    >>> _of_training(["Train", "val"]), _of_training(["", "eval"]), _of_training(["a", "b"]), _of_training(["test"])
    (['Train'], [''], [], [])
    """
    if training := [text for text in texts if plain(text) in TRAINING]:
        return training
    others = [text for text in texts if plain(text) not in EVALUATION]
    return others if len(others) < len(texts) else []


def _distinct(path: Path, kind: str, column: str) -> list[str]:
    """The texts in a column, in the order of appearance; too many of them are no names of runs."""
    found: dict[str, None] = {}
    for cells in _batches(path, kind, [column], []):
        found |= dict.fromkeys(_texts(cells(column)))
        if len(found) > MOST_RUNS:
            return []
    return list(found)


def _texts(cells: Any) -> list[str]:
    listed = cells.to_pylist() if isinstance(cells, pa.Array) else cells
    return ["" if cell is None else str(cell)[:200] for cell in listed]


def _times(cells: Any, where: str, row: int, column: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The same for a column of times, which may be written as dates. What is neither is not measured."""
    if isinstance(cells, pa.Array) and pa.types.is_timestamp(cells.type):
        cells = cells.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).cast(pa.float64(), safe=False)
        values, there = _numbers(cells, where, row, column)
        return values / 1e6, there
    try:
        return _numbers(cells, where, row, column)
    except TraceError:
        found = [_seconds(text) for text in _texts(cells)]
    return np.array(found, np.float64), np.array([second == second for second in found], bool)


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return float("nan")


def _numbers(cells: Any, where: str, row: int, column: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A column as numbers, and which of its cells are not empty. Raises TraceError that names the row."""
    if isinstance(cells, pa.Array) and (pa.types.is_floating(cells.type) or pa.types.is_integer(cells.type)):
        there = cells.is_valid().to_numpy(zero_copy_only=False)
        return cells.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False), there
    if isinstance(cells, pa.Array) and pa.types.is_string(cells.type):
        try:
            full = pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
            return _numbers(full.cast(pa.float64()), where, row, column)
        except pa.ArrowInvalid:
            pass  # cell by cell, which also knows "N/A" and can name the row
    listed = cells.to_pylist() if isinstance(cells, pa.Array) else cells
    found = [number(cell, f"{where} row {row + i}, column {column!r}") for i, cell in enumerate(listed)]
    there = np.array([cell is not None for cell in found], bool)
    return np.array([np.nan if cell is None else cell for cell in found], np.float64), there


def _format(path: Path) -> str:
    """By the ending where it says so, else by content."""
    with pa.input_stream(str(path), compression="detect") as stream:
        head = stream.read(_LONGEST_HEADER)
    names = [ending.lower() for ending in path.suffixes[-2:]]
    ending = names[-2] if len(names) == 2 and names[-1] in COMPRESSED else names[-1] if names else ""
    found = SUFFIXES.get(ending) or kind_of(path, head)
    if not found:
        raise TraceError(
            f"{path}: neither a header with a step, JSON lines nor Parquet; a file that ends in "
            f"{', '.join(SUFFIXES)} is taken for what it says, .gz behind it is fine"
        )
    return found


def _delimiter(header: bytes) -> str:
    # a header with no comma at all was written for a country that uses it in numbers, or is TSV
    return next((d for d in (",", ";", "\t") if d.encode() in header), ",")


def _whole_lines(path: Path, header: bytes, delimiter: str) -> int | None:
    """Bytes of a file up to the line in which its writer died or is at work: a last one without an end that has fewer
    cells than the header or, since half of a number is another number, a shorter last cell than the line before it.

    None: there is no such line, or the file is compressed.
    """
    if path.suffix in COMPRESSED:
        return None
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - _LONGEST_HEADER))
        *_, before, last = (b"", *file.read().split(b"\n"))
    cells = delimiter.encode()
    ends = [len(line.strip(b"\r").rpartition(cells)[2]) for line in (before, last)]
    torn = last.count(cells) < header.count(cells) or (ends[1] < ends[0] and before != header)
    return size - len(last) if last and torn else None


def _csv(
    path: Path, kind: str, convert: arrow_csv.ConvertOptions | None, lost: list[str]
) -> arrow_csv.CSVStreamingReader:
    with pa.input_stream(str(path), compression="detect") as stream:
        header = stream.read(_LONGEST_HEADER).split(b"\n", 1)[0]
    delimiter = _delimiter(header) if kind == "csv" else "\t"
    source = pa.input_stream(str(path), compression="detect")
    if whole := _whole_lines(path, header, delimiter):
        lost.append(TORN)
        source = pa.BufferReader(pa.memory_map(str(path)).read_buffer(whole))
    return arrow_csv.open_csv(
        source, parse_options=arrow_csv.ParseOptions(delimiter=delimiter), convert_options=convert
    )  # fmt: skip


def names_of(path: Path, kind: str) -> list[str]:
    """What the columns are called. Raises TraceError."""
    if kind == "jsonl":
        names: dict[str, None] = {}
        for number_, record in enumerate(_records(path, [])):
            names |= dict.fromkeys(record)
            # evaluations and summaries have other keys than steps
            if number_ == 1000:
                break
        return list(names)
    if kind == "parquet":
        return list(pq.ParquetFile(path).schema_arrow.names)
    # everything as text: a column that we do not want may be anything
    return list(_csv(path, kind, None, []).schema.names)


def _batches(path: Path, kind: str, names: list[str], lost: list[str]) -> Iterator[Callable[[str], Any]]:
    """Chunks of rows, each a function from column to cells."""
    if kind == "jsonl":
        cells: dict[str, list[Any]] = {name: [] for name in names}
        for record in _records(path, lost):
            for name in names:
                cells[name].append(record.get(name))
            if len(cells[names[0]]) == _ROWS_AT_ONCE:
                yield cells.__getitem__
                cells = {name: [] for name in names}
        yield cells.__getitem__
        return
    if kind == "parquet":
        source: Any = pq.ParquetFile(path).iter_batches(batch_size=_ROWS_AT_ONCE, columns=names)
    else:
        # text, so that a cell that is no number is named with its row
        convert = arrow_csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        )
        source = _csv(path, kind, convert, lost)
    for batch in source:
        yield batch.column


def _records(path: Path, lost: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; without the last line where that was cut short."""
    with pa.input_stream(str(path), compression="detect") as raw:
        pending, line_number = b"", 0
        while True:
            block = raw.read(1 << 20)
            *lines, pending = (pending + block).split(b"\n")
            if not block:
                lines.append(pending)
            if len(pending) > _LONGEST_LINE:
                raise TraceError(f"{path} line {line_number + len(lines) + 1}: longer than {_LONGEST_LINE} bytes")
            for place, line in enumerate(lines, start=1):
                line_number += 1
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    if not block and place == len(lines) and line_number > 1:
                        lost.append(TORN)
                        return
                    raise TraceError(f"{path} line {line_number} is not JSON: {str(error)[:200]}") from None
                if not isinstance(record, dict):
                    raise TraceError(f"{path} line {line_number}: a JSON object is needed")
                yield record
            if not block:
                return


def _runs(files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    for path in files:
        yield from open_runs(path, columns)


CSV = Importer(
    name="csv",
    reads="CSV, TSV, JSON lines or Parquet, one file per run; columns found by their usual names",
    recognises=lambda path, head: bool(kind_of(path, head)),
    runs=_runs,
    rank=-10,
)
