"""Imports the `metrics.csv` of Lightning's CSVLogger: one line per call of a logger, most of its cells empty.

Lines of one step are joined. The logger writes every `log_every_n_steps`; epoch means are not taken for losses of steps
as long as the step's own loss is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lbw_sim.trace.importers.csv import names_of, run_of
from lbw_sim.trace.importers.logged import Importer, LoggedRun, find_columns, run_id_from
from lbw_sim.trace.provenance import Provenance


def _recognises(path: Path, head: bytes) -> bool:
    names = head.split(b"\n", 1)[0].strip().split(b",")
    return path.name == "metrics.csv" and {b"epoch", b"step"} <= set(names)


def _runs(files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    for path in files:
        names = names_of(path, "csv")
        mapping = find_columns(names, columns, path)
        facts: Provenance = {}
        if mapping["loss"].endswith("_epoch") or (
            mapping["loss"] == "train_loss" and "train_loss_epoch" in names and "train_loss_step" not in names
        ):
            facts["loss_is"] = "window_mean"
        # the file is always called metrics.csv: its folder is version_0, that one's is the name of the experiment
        version = path.resolve().parent
        run_id = run_id_from(f"{version.parent.name}-{version.name}")
        yield run_of(path, "csv", mapping, run_id, facts=facts)


LIGHTNING = Importer(
    name="lightning",
    reads="metrics.csv of Lightning's CSVLogger",
    recognises=_recognises,
    runs=_runs,
    rank=5,
)
