"""The columns of a trace: name, type, unit and meaning of each, once; and what a trace says about itself.

Journal rows, Parquet columns and documentation are made from this list. It refuses names and metadata that do not fit
rather than bend them: a trace from a stranger is data to be checked.
"""

from __future__ import annotations

import re
import struct
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lbw_sim.errors import TraceError
from lbw_sim.guard.spec import GuardSpec
from lbw_sim.trace.provenance import Provenance
from lbw_sim.wording import counted

SCHEMA_VERSION = 1
SCALER_OVERFLOW = "grad_scaler_overflow"
"""Event of a step that the gradient scaler dropped: `skipped`, whatever the guard decided."""
MODES = ("shadow", "active")
MAX_META_BYTES = 4 << 20
"""Largest description of a run, in bytes of JSON; a longer one is refused unread."""
MAX_SEGMENT_ROWS = 100_000_000
"""Longest segment that is loaded: a small hostile file can claim any number of rows."""
MAX_EXTRA_CHANNELS = 1000

Role = Literal["context", "seen", "decided"]


class Column(NamedTuple):
    """One column of a trace."""

    name: str
    dtype: str
    """numpy code; rows in a journal are packed in little-endian order."""
    unit: str
    doc: str
    role: Role
    """`seen`: telemetry that the guard was shown; `decided`: what it answered; `context`: everything around it."""


BASE_COLUMNS: tuple[Column, ...] = (
    Column("step", "i8", "step", "optimizer step, counted from 0; rises within an attempt", "context"),
    Column("attempt", "i4", "", "0, and one more after every rollback within the segment", "context"),
    Column("elapsed_s", "f8", "s", "time since recording began", "context"),
    Column("loss", "f8", "nats", "mean training loss over micro-batches and ranks, weighted by tokens", "seen"),
    Column("lr", "f8", "", "learning rate before scaling, of the first parameter group", "seen"),
    Column("effective_lr", "f8", "", "learning rate with which this step was really taken", "context"),
    Column("grad_norm", "f8", "", "Euclidean norm of the whole gradient, before clipping", "seen"),
    Column("update_norm", "f8", "", "Euclidean norm of this step's parameter update; seen one step later", "seen"),
    Column("tokens", "f8", "tokens", "tokens in this step, over all ranks", "seen"),
    Column("nonfinite", "f8", "", "1: loss or gradient was measured and is nan or infinite; 0: finite", "seen"),
    Column("regime", "i1", "", "what the analyzer said the run is in: a Regime", "decided"),
    Column("posture", "i1", "", "what the envelope granted: a Posture", "decided"),
    Column("scale", "f8", "", "factor decided for the learning rate of this step", "decided"),
    Column("energy", "f8", "", "control energy so far: the sum of (1 - scale)^2", "decided"),
    Column("reason", "i1", "", "the rule that had the last word: a Reason", "decided"),
    Column("skipped", "u1", "", "whether this step's update was really dropped", "context"),
    Column(
        "rolled_back_to", "i8", "step", "step to which the run really went back after this row; -1: none", "context"
    ),
    Column("event", "S24", "", "injected fault or other mark; empty: none", "context"),
    Column("crc32", "u4", "", "checksum of this row, as it was written when the step was taken", "context"),
)
"""Without the extra channels, which stand between `nonfinite` and `regime`."""

_NAMES = frozenset(column.name for column in BASE_COLUMNS)
_FIRST_DECIDED = next(i for i, column in enumerate(BASE_COLUMNS) if column.role == "decided")
_STRUCT_CODES = {"i8": "q", "i4": "i", "i1": "b", "u1": "?", "f8": "d", "S24": "24s"}
_CHANNEL = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{0,63}")


def columns(extra_channels: Sequence[str] = ()) -> tuple[Column, ...]:
    """All columns of a trace with these extra channels, in file order.

    Raises TraceError when a channel name is taken, comes twice or is not a plain word.

    >>> [column.name for column in columns(["probe_gain"])][9:12]
    ['nonfinite', 'probe_gain', 'regime']
    """
    problems = []
    if len(extra_channels) > MAX_EXTRA_CHANNELS:
        raise TraceError(f"{len(extra_channels)} extra channels; at most {MAX_EXTRA_CHANNELS} are allowed")
    for i, name in enumerate(extra_channels):
        if not isinstance(name, str) or not _CHANNEL.fullmatch(name):
            problems.append(f"{name!r} is not a channel name: a letter, then up to 63 of A-Z a-z 0-9 _ . / -")
        elif name in _NAMES or name == "run_id":
            problems.append(f"{name!r} is a column that every trace has")
        elif name in extra_channels[:i]:
            problems.append(f"{name!r} comes twice")
    if problems:
        raise TraceError(f"extra channels: {'; '.join(problems)}")
    extra = tuple(Column(name, "f8", "", "extra telemetry channel", "seen") for name in extra_channels)
    return BASE_COLUMNS[:_FIRST_DECIDED] + extra + BASE_COLUMNS[_FIRST_DECIDED:]


def row_struct(extra_channels: Sequence[str] = ()) -> struct.Struct:
    """The packing of one row, without its checksum, which is the last column."""
    return struct.Struct("<" + "".join(_STRUCT_CODES[column.dtype] for column in columns(extra_channels)[:-1]))


def row_fields(extra_channels: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The same, checksum included, as fields of a numpy structured type."""
    return [(column.name, "<" + column.dtype) for column in columns(extra_channels)]


class Damage(NamedTuple):
    """Where a journal stopped being readable. Rows before it are whole and kept."""

    good_rows: int
    bad_row: int | None
    """Number of the row that fails its checksum; None: the file ends within a row, as a crash leaves it."""
    leftover_bytes: int
    """Bytes from there to the end of the journal, which are not used."""

    def __str__(self) -> str:
        why = f"row {self.bad_row} fails its checksum" if self.bad_row is not None else "the last row is cut short"
        good = counted(self.good_rows, "row before it is good", "rows before it are good")
        return f"{why}; {good}, {counted(self.leftover_bytes, 'byte from there is', 'bytes from there are')} not used"


@dataclass(frozen=True, kw_only=True)
class SegmentMeta:
    """What a segment says about itself: everything needed to judge its rows and to fly its guard again."""

    run_id: str
    segment: int
    """0 for the start of a run, one more for every resumption."""
    schema_version: int
    spec_toml: str
    """The guard as text. `spec` builds it."""
    fingerprint: str
    """Of the guard that flew, as it was when it flew."""
    mode: str
    """`shadow`: recorded, never acted; `active`: acted."""
    extra_channels: tuple[str, ...]
    guard_state: Any
    """`state_to_data` of the guard's state before the first row; None: `guard.init()`."""
    provenance: Provenance
    lost_rows: int | None
    """Rows that could not be recorded; None: the writer died, or still lives, and has not said."""
    ended: str
    """`closed` by its writer; `recovered` from the journal of a writer that died; `open`: read from the journal."""
    damage: Damage | None = None
    failure: str | None = None
    """Why rows were lost, when the writer could say."""
    rows: int | None = None
    """How many there were when the segment was finished; None: it is not, or an earlier release finished it."""
    crc32_seed: int = 0
    """Where the checksum of row 0 starts from; that of row n starts from it plus n."""

    @property
    def spec(self) -> GuardSpec:
        """The guard that flew. Raises SpecError when this installation does not have its components and versions."""
        return GuardSpec.from_toml(self.spec_toml, where=f"guard of run {self.run_id!r} segment {self.segment}")

    @property
    def guard_name(self) -> str:
        """What the guard is called, for people; readable without the guard's components."""
        return str(tomllib.loads(self.spec_toml).get("name", "unnamed"))

    @property
    def delay_steps(self) -> int:
        """By how many steps the guard saw measured channels late; readable without the guard's components."""
        return int(tomllib.loads(self.spec_toml).get("delay_steps", 0))


_FIELDS: dict[str, type] = {
    "run_id": str,
    "segment": int,
    "spec_toml": str,
    "fingerprint": str,
    "mode": str,
    "extra_channels": list,
    "provenance": dict,
    "columns": list,
}


def describe(
    *,
    run_id: str,
    segment: int,
    spec: GuardSpec,
    mode: str,
    extra_channels: Sequence[str],
    guard_state: object,
    provenance: Provenance,
) -> dict[str, Any]:
    """The JSON description that opens a journal and travels in the Parquet file."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "segment": segment,
        "mode": mode,
        "fingerprint": spec.fingerprint,
        "spec_toml": spec.to_toml(),
        "extra_channels": list(extra_channels),
        "guard_state": guard_state,
        "provenance": provenance,
        "columns": [column._asdict() for column in columns(extra_channels)],
    }


def check_description(found: Any, where: str) -> SegmentMeta:
    """Check a description that came out of a file. Raises TraceError that names the file and the fault.

    Not checked here: whether the guard's components are installed, so that a run of any guard stays readable.
    """
    if not isinstance(found, dict):
        raise TraceError(f"{where}: its description is not a JSON object")
    version = found.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise TraceError(f"{where}: schema_version={version!r:.60}; this release reads {SCHEMA_VERSION}")
    problems = []
    for key, wanted_type in _FIELDS.items():
        value = found.get(key)
        if not isinstance(value, wanted_type) or isinstance(value, bool):
            problems.append(f"{key} is missing" if key not in found else f"{key}={value!r:.60} is of a wrong type")
    if problems:
        raise TraceError(f"{where}: {'; '.join(problems)}")
    if found["mode"] not in MODES:
        raise TraceError(f"{where}: mode={found['mode']!r:.60} is not {' or '.join(MODES)}")
    try:
        wanted = columns(found["extra_channels"])
    except TraceError as error:
        raise TraceError(f"{where}: {error}") from None
    names = [(c.get("name"), c.get("dtype")) if isinstance(c, dict) else None for c in found["columns"]]
    if names != [(column.name, column.dtype) for column in wanted]:
        raise TraceError(f"{where}: its columns are not those of schema_version {SCHEMA_VERSION}")
    for key, value in found["provenance"].items():
        if value is not None and not isinstance(value, (str, int, float)):
            raise TraceError(f"{where}: provenance {key!r:.60} is neither text nor a number")
    try:
        delay = tomllib.loads(found["spec_toml"]).get("delay_steps", 0)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: its guard spec is not TOML: {str(error)[:200]}") from None
    if delay not in (0, 1):
        raise TraceError(f"{where}: its guard spec has delay_steps={delay!r:.60}, which is not 0 or 1")
    lost, ended, failure = found.get("lost_rows"), found.get("ended", "open"), found.get("failure")
    if not (lost is None or (isinstance(lost, int) and lost >= 0)) or ended not in ("closed", "recovered", "open"):
        raise TraceError(f"{where}: lost_rows={lost!r:.60}, ended={ended!r:.60} do not describe an ending")
    if not (failure is None or isinstance(failure, str)):
        raise TraceError(f"{where}: failure is not text")
    rows = found.get("rows")
    if not (rows is None or (type(rows) is int and rows >= 0)):
        raise TraceError(f"{where}: rows={str(rows)[:60]!r} is not a number of rows")
    seed = found.get("crc32_seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 32:
        raise TraceError(f"{where}: crc32_seed={str(seed)[:60]!r} is not a 32-bit number")
    return SegmentMeta(
        run_id=found["run_id"],
        segment=found["segment"],
        schema_version=version,
        spec_toml=found["spec_toml"],
        fingerprint=found["fingerprint"],
        mode=found["mode"],
        extra_channels=tuple(found["extra_channels"]),
        guard_state=found.get("guard_state"),
        provenance=found["provenance"],
        lost_rows=lost,
        ended=ended,
        damage=_damage(found.get("damage"), where),
        failure=failure,
        rows=rows,
        crc32_seed=seed,
    )


def _damage(found: Any, where: str) -> Damage | None:
    if found is None:
        return None
    numbers = found if isinstance(found, list) and len(found) == 3 else [None, None, None]
    good, bad, leftover = numbers
    if not (isinstance(good, int) and isinstance(leftover, int) and (bad is None or isinstance(bad, int))):
        raise TraceError(f"{where}: damage={found!r:.60} is not three numbers")
    return Damage(good, bad, leftover)
