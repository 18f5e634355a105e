"""Copies traces without what tells where they were made: host, paths, time, environment, free text.

What is kept is a list, so a key that nobody thought of is left out. Rows, checksums, guard and labels stay equal to the
bit, and the copy verifies like the original. It does not hide what the numbers themselves or the run ids tell.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from lbw_sim.errors import TraceError
from lbw_sim.trace import parquet
from lbw_sim.trace.labels import Label, write_labels
from lbw_sim.trace.layout import local_path, run_folder_name, segment_name
from lbw_sim.trace.provenance import Provenance
from lbw_sim.trace.schema import SegmentMeta, check_description, columns
from lbw_sim.trace.store import Trace

KEPT = frozenset(
    {
        "lbw_sim", "python", "numpy", "torch", "seed", "world_size", "device", "optimizer", "imported", "importer",
        "source_scalars", "rows", "cadence_steps", "cadence", "first_step", "attempts", "first_fall", "restarts",
        "loss_decimals", "loss_precision", "finite_losses", "nonfinite_losses", "missing_losses", "zero_losses",
        "repeated_losses", "tokens_are", "loss_is", "nan_filtered", "sampled", "grad_norm_is",
        "forked_from", "forked_at_step", "fork_branch",
    }
)  # fmt: skip
"""Provenance that says how a run was measured and nothing about where."""


class Scrubbed(NamedTuple):
    """What became of one run."""

    run_id: str
    rows: int
    removed: tuple[str, ...]
    """Keys of the provenance that the copy lacks."""


def scrub(trace: Trace, out: str | Path, *, keep: Iterable[str] = ()) -> Scrubbed:
    """Copy a run into the folder of traces `out` without what identifies its maker; `keep` names keys to keep as well.

    Notes of labels go, except those of injected faults. Raises TraceError, and leaves nothing then; a run that is in
    `out` already stays as it is.
    """
    folder = local_path(out, "copies are written") / run_folder_name(trace.run_id)
    if folder.exists():
        raise TraceError(f"run {trace.run_id!r} is in {out} already; remove {folder} or name another folder")
    kept = KEPT | set(keep)
    removed: dict[str, None] = {}
    rows = 0
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise TraceError(f"run {trace.run_id!r} cannot be written to {out}: {error}") from None
    try:
        for segment in trace.segments:
            meta = segment.meta
            provenance = {key: value for key, value in meta.provenance.items() if key in kept}
            if meta.provenance.get("lost") is not None and "lost" not in kept:
                # that something is missing has to stay known
                provenance["lost"] = "details were removed"
            removed |= dict.fromkeys(key for key in meta.provenance if key not in provenance)
            description = _description(meta, provenance)
            # of an earlier release's segment it stays unknown: whether rows were cut off, nobody can tell
            description["rows"] = segment.rows if meta.ended == "open" else meta.rows
            check_description(description, f"run {trace.run_id!r}")
            parquet.write_tables(segment.parts(), description, meta.extra_channels, folder / segment_name(meta.segment))
            rows += segment.rows
        if trace.labels:
            write_labels(folder, [_plain(label) for label in trace.labels])
    except BaseException as error:
        # part of a run would look like a whole one
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise TraceError(f"run {trace.run_id!r} cannot be written to {out}: {error}") from None
        raise
    return Scrubbed(trace.run_id, rows, tuple(removed))


def _description(meta: SegmentMeta, provenance: Provenance) -> dict[str, Any]:
    return {
        "schema_version": meta.schema_version,
        "run_id": meta.run_id,
        "segment": meta.segment,
        "mode": meta.mode,
        "fingerprint": meta.fingerprint,
        "spec_toml": meta.spec_toml,
        "extra_channels": list(meta.extra_channels),
        "guard_state": meta.guard_state,
        "provenance": provenance,
        "columns": [column._asdict() for column in columns(meta.extra_channels)],
        "crc32_seed": meta.crc32_seed,
        "ended": "recovered" if meta.ended == "open" else meta.ended,
        "lost_rows": meta.lost_rows,
        # an operating system's message names the file that it could not write
        "failure": None if meta.failure is None else "removed",
        "damage": None if meta.damage is None else list(meta.damage),
    }


def _plain(label: Label) -> Label:
    return label if label.source == "injected" else label._replace(note="")
