"""Imports MLflow's file store: `mlruns/<experiment>/<run>/metrics/<name>`, lines of time, value and step.

The files of one run's `metrics` folder are one run. The YAML beside them is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lbw_sim.errors import TraceError
from lbw_sim.trace.importers.logged import (
    MOST_POINTS,
    Importer,
    LoggedRun,
    Series,
    find_series,
    pieces,
    rows_by_step,
    run_id_from,
)
from lbw_sim.wording import counted

_LINE = re.compile(rb"(\d{1,18}) (\S{1,40}) (\d{1,15})(?: \S*)*\s*\Z")
_LONGEST_LINE = 4096


def _run_folder(path: Path) -> Path | None:
    """The folder of the run that a file of metrics belongs to. Names of metrics may hold slashes."""
    for parent in list(path.parents)[:5]:
        if parent.name == "metrics" and (parent.parent / "meta.yaml").is_file():
            return parent.parent
    return None


def _recognises(path: Path, head: bytes) -> bool:
    return bool(_LINE.match(head.split(b"\n", 1)[0])) and _run_folder(path) is not None


def _runs(files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    folder = _run_folder(files[0])
    if folder is None:
        raise TraceError(f"{files[0]}: does not lie in the metrics folder of an MLflow run")
    tags = {str(path.relative_to(folder / "metrics")): path for path in sorted(files)}
    mapping = find_series(tags, columns, folder.name)
    lost: list[str] = []
    series = {name: _read(tags[tag], lost) for name, tag in mapping.items()}
    rows = rows_by_step(series, folder.name)
    used = [tags[tag] for tag in mapping.values()]
    yield LoggedRun(run_id_from(folder), folder.name, mapping, lambda: pieces(rows), lost=lost, files=used)


def _read(path: Path, lost: list[str]) -> Series:
    one = Series()
    strange = beyond = 0
    with open(path, "rb") as file:
        while line := file.readline(_LONGEST_LINE):
            match = _LINE.match(line)
            try:
                if match is None:
                    strange += 1
                elif len(one) >= MOST_POINTS:
                    beyond += 1
                else:
                    one.add(0, int(match[3]), float(match[2]), int(match[1]) / 1000.0)
            except ValueError:
                strange += 1
    if strange:
        lost.append(f"{path.name}: {counted(strange, 'line is', 'lines are')} not time, value and step")
    if beyond:
        lost.append(f"{path.name}: {counted(beyond, 'number')} after the first {MOST_POINTS:,} not read")
    return one


MLFLOW_FILES = Importer(
    name="mlflow_files",
    reads="MLflow's file store, a folder mlruns",
    recognises=_recognises,
    runs=_runs,
    unit=lambda path: _run_folder(path) or path,
    rank=5,
)
