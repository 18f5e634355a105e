"""Turns a logged run into a trace: two readings, one to learn what the numbers look like, one to write them.

No guard watched such a run, so it is recorded under the guard `never`, in shadow, with `imported` = 1 in its
provenance. What a log does not say is not made up: a value that was not logged is "not measured".
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

import lbw_sim
from lbw_sim.errors import TraceError
from lbw_sim.guard import GuardSpec
from lbw_sim.trace.importers.logged import LoggedRun, Rows
from lbw_sim.trace.labels import Label, write_labels
from lbw_sim.trace.layout import local_path, run_folder_name, segment_name
from lbw_sim.trace.limitations import limitations
from lbw_sim.trace.parquet import write_segment
from lbw_sim.trace.provenance import Provenance
from lbw_sim.trace.schema import MAX_SEGMENT_ROWS, SegmentMeta, check_description, describe, row_fields
from lbw_sim.values import Telemetry, nan

MOST_FALLS = 20
"""Resumptions that any run may hold; beyond 1 % of its rows it is no run in order."""
_MOST_DISTANCES = 10_000
_MOST_DECIMALS = 9
# seconds since 1970 rather than since the start of a run
_UNIX_TIME = 1e8


class Imported(NamedTuple):
    """What became of one run."""

    run_id: str
    rows: int
    cadence_steps: float
    """Median distance between logged steps; nan with fewer than two rows."""
    suspicions: tuple[str, ...]
    """What a reader should know before trusting the numbers: the texts of its `limitations`."""
    path: Path
    importer: str
    """Who read it."""


def record(
    run: LoggedRun, out: str | Path, *, importer: str, run_id: str | None = None, labels: Sequence[Label] | None = None
) -> Imported:
    """Write a logged run as a new run of the folder `out`.

    A loss that is nan or infinite gets `nonfinite` = 1, a finite one 0; one that was not logged is not measured, except
    in a run without a single loss, where the writer has left nan blank. As in any recording, a step that does not rise
    starts a new attempt and the last attempt at a step counts; a run whose steps fall all the time is refused.

    Raises TraceError, and leaves nothing then.
    """
    run_id = run.run_id if run_id is None else run_id
    folder = local_path(out, "runs are imported") / run_folder_name(run_id)
    there_already = TraceError(
        f"{run.source}: run {run_id!r} is in {out} already; remove {folder} or import into another folder"
    )
    if folder.exists():
        raise there_already
    survey = _Survey()
    for rows in run.rows():
        survey.see(rows)
    if survey.rows == 0:
        raise TraceError(
            f"{run.source}: holds no row with a loss, a learning rate or a norm"
            + (f" ({'; '.join(run.lost)})" if run.lost else "")
            + f". Read were {', '.join(f'{column!r} as {name}' for name, column in run.columns.items())}: where "
            f"another column holds it, name that one by --loss, --lr or --grad-norm"
        )
    if survey.falls > max(MOST_FALLS, 0.01 * survey.rows):
        raise TraceError(
            f"{run.source}: the step does not rise at {survey.falls} of {survey.rows} rows, first at "
            f"{survey.first_fall}. Not one run in order? Sort it, or give each run a file of its own"
        )
    provenance: Provenance = {
        "imported": 1,
        "importer": importer,
        "source": run.source,
        "source_sha256": _sha256(run.files),
        "source_columns": ", ".join(f"{name}={column}" for name, column in run.columns.items()),
        **survey.facts(),
        **run.facts,
        # a nan that is there was not filtered
        **({"nan_filtered": 0} if survey.broken_losses else {}),
        "lost": "; ".join(run.lost) or None,
        "lbw_sim": lbw_sim.__version__,
    }
    rows_source = _Segment(run, run_id, survey, provenance)
    path = folder / segment_name(0)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        # somebody else's since the first reading began: not ours to take away
        raise there_already from None
    except OSError as error:
        raise TraceError(f"{run.source} cannot be imported into {out}: {error}") from None
    try:
        ending = {"ended": "closed", "rows": survey.rows, "lost_rows": 0, "failure": None, "damage": None}
        write_segment(rows_source, path, ending)
        if rows_source.written != survey.rows:
            raise TraceError(
                f"{run.source}: {survey.rows} rows at first and {rows_source.written} when read again; a file that is "
                f"still being written?"
            )
        if labels is not None:
            write_labels(folder, labels)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise TraceError(f"{run.source} cannot be imported into {out}: {error}") from None
    except BaseException:
        # also for an interrupt: part of a run would look like a whole one
        shutil.rmtree(folder, ignore_errors=True)
        raise
    found = tuple(limitation.text for limitation in limitations(provenance))
    return Imported(run_id, survey.rows, survey.cadence_steps, found, path, importer)


class _Segment:
    """The second reading, as the rows of a finished segment."""

    def __init__(self, run: LoggedRun, run_id: str, survey: _Survey, provenance: Provenance) -> None:
        spec = GuardSpec.load("never")
        description = describe(
            run_id=run_id, segment=0, spec=spec, mode="shadow", extra_channels=(), guard_state=None,
            provenance=provenance,
        )  # fmt: skip
        seed = crc32(json.dumps(description).encode())
        self.description: dict[str, Any] = description | {"crc32_seed": seed}
        self.meta: SegmentMeta = check_description(self.description, run.source)
        self.written = 0
        self._run, self._survey, self._seed = run, survey, seed
        guard = spec.build()
        # `never` and `hold` answer the same at every step, so one step of the guard gives the decision of all rows;
        # `lbw verify` steps it along every row
        self._decision = guard.step(guard.init(), Telemetry(0))[1]

    def chunks(self) -> Iterator[NDArray[np.void]]:
        survey, start_s = self._survey, self._survey.first_s if self._survey.first_s > _UNIX_TIME else 0.0
        attempt, step_before = 0, -1
        dtype = np.dtype(row_fields(()))
        for rows in self._run.rows():
            count = len(rows.step)
            if not count:
                continue
            block = np.zeros(count, dtype)
            falls = np.concatenate([[rows.step[0] <= step_before], rows.step[1:] <= rows.step[:-1]])
            block["step"] = rows.step
            block["attempt"] = attempt + np.cumsum(falls)
            attempt, step_before = int(block["attempt"][-1]), int(rows.step[-1])
            for name in ("loss", "lr", "grad_norm", "update_norm", "tokens"):
                block[name] = _column(rows, name)
            block["effective_lr"] = block["lr"]
            block["elapsed_s"] = _column(rows, "elapsed_s") - start_s
            block["nonfinite"] = 1.0 if survey.finite_losses == 0 else _nonfinite(rows)
            for name in ("regime", "posture", "scale", "energy", "reason"):
                block[name] = getattr(self._decision, name)
            block["rolled_back_to"] = -1
            data, size = memoryview(block.tobytes()), dtype.itemsize
            body = size - dtype["crc32"].itemsize
            first = self._seed + self.written
            block["crc32"] = [
                crc32(data[at : at + body], (first + i) & 0xFFFFFFFF) for i, at in enumerate(range(0, len(data), size))
            ]
            self.written += count
            yield block


def _column(rows: Rows, name: str) -> NDArray[np.float64]:
    found = rows.values.get(name)
    if found is None:
        return np.full(len(rows.step), nan)
    return np.where(rows.measured[name], found, nan)


def _nonfinite(rows: Rows) -> NDArray[np.float64]:
    """1 where loss or gradient norm was logged as nan or infinite; nan where no loss was logged; 0 elsewhere."""
    broken = np.zeros(len(rows.step), bool)
    for name in ("loss", "grad_norm"):
        if name in rows.values:
            broken |= rows.measured[name] & ~np.isfinite(rows.values[name])
    there = rows.measured.get("loss", np.zeros(len(rows.step), bool))
    return np.where(broken, 1.0, np.where(there, 0.0, nan))


@dataclass
class _Survey:
    """The first reading: what the numbers look like, in bounded memory."""

    rows: int = 0
    finite_losses: int = 0
    broken_losses: int = 0
    """Losses that were logged as nan or infinite."""
    nonfinite_losses: int = 0
    """Rows whose loss or gradient norm was."""
    missing_losses: int = 0
    zero_losses: int = 0
    repeated_losses: int = 0
    decimals: int = 0
    """Most decimals of any loss."""
    bfloat16: bool = True
    single: bool = True
    """Every loss so far is a single-precision number."""
    decimals_of_single: int = 0
    falls: int = 0
    """Rows whose step does not lie after the one before."""
    restarts: int = 0
    """Of these, the ones that go back to the run's first step."""
    first_fall: str = ""
    tokens_rise: bool = True
    first_s: float = nan
    first_step: int = 0
    step: int = -1
    loss: float = nan
    tokens: float = nan
    distances: Counter[int] = field(default_factory=Counter)

    def see(self, rows: Rows) -> None:
        """Some rows."""
        count = len(rows.step)
        if not count:
            return
        if self.rows == 0:
            self.first_step, self.first_s = int(rows.step[0]), float(_column(rows, "elapsed_s")[0])
        distance = np.diff(rows.step, prepend=self.step)[1 if self.rows == 0 else 0 :]
        if len(falls := np.flatnonzero(distance <= 0)):
            if not self.first_fall:
                at = int(falls[0]) + (self.rows == 0)
                before = self.step if at == 0 else int(rows.step[at - 1])
                self.first_fall = f"row {self.rows + at + 1}: step {before} -> {int(rows.step[at])}"
            self.falls += len(falls)
            self.restarts += int((rows.step[falls + (self.rows == 0)] <= self.first_step).sum())
        for one, times in zip(*np.unique(distance[distance > 0], return_counts=True), strict=True):
            if len(self.distances) < _MOST_DISTANCES or int(one) in self.distances:
                self.distances[int(one)] += int(times)
        self._see_losses(rows)
        tokens = _column(rows, "tokens")
        rise = np.diff(tokens, prepend=self.tokens)[1 if self.rows == 0 else 0 :]
        self.tokens_rise = self.tokens_rise and bool((rise > 0).all())
        self.rows += count
        if self.rows > MAX_SEGMENT_ROWS:
            raise TraceError(f"more than {MAX_SEGMENT_ROWS} rows in one run")
        self.step, self.tokens = int(rows.step[-1]), float(tokens[-1])

    def _see_losses(self, rows: Rows) -> None:
        there = rows.measured.get("loss", np.zeros(len(rows.step), bool))
        loss = _column(rows, "loss")
        broken = _nonfinite(rows) == 1.0
        finite = loss[there & np.isfinite(loss)]
        self.broken_losses += int((there & ~np.isfinite(loss)).sum())
        self.nonfinite_losses += int(broken.sum())
        self.missing_losses += int((~there & ~broken).sum())
        self.finite_losses += len(finite)
        self.zero_losses += int((finite == 0.0).sum())
        self.repeated_losses += int((np.diff(loss, prepend=self.loss) == 0.0).sum())
        self.loss = float(loss[-1])
        with np.errstate(over="ignore"):
            single = finite.astype(np.float32)
        self.single = self.single and bool((single == finite).all())
        self.bfloat16 = self.bfloat16 and self.single and not bool((single.view(np.uint32) & 0xFFFF).any())
        self.decimals = _decimals(finite, self.decimals)
        if self.single:
            self.decimals_of_single = _decimals(single, self.decimals_of_single)

    @property
    def loss_decimals(self) -> int | None:
        """Most decimals of any loss; None: more than nine, so not rounded."""
        # a loss that was rounded and then logged in single precision has many decimals when read in double
        found = min(self.decimals, self.decimals_of_single) if self.single else self.decimals
        return found if found <= _MOST_DECIMALS else None

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

    def facts(self) -> Provenance:
        """Everything that `limitations` should know."""
        rounded = self.bfloat16 and self.finite_losses >= 20 and (self.loss_decimals or 9) > 2
        return {
            "rows": self.rows,
            "cadence_steps": None if self.cadence_steps != self.cadence_steps else self.cadence_steps,
            "cadence": self.cadence(),
            "first_step": self.first_step,
            "attempts": self.falls + 1,
            "first_fall": self.first_fall or None,
            "restarts": self.restarts or None,
            "loss_decimals": self.loss_decimals,
            "loss_precision": "bfloat16" if rounded else None,
            "finite_losses": self.finite_losses,
            "nonfinite_losses": self.nonfinite_losses,
            "missing_losses": self.missing_losses,
            "zero_losses": self.zero_losses,
            "repeated_losses": self.repeated_losses,
            "tokens_are": "total" if self.rows > 10 and self.tokens_rise else None,
        }


def _decimals(numbers: NDArray[Any], at_least: int) -> int:
    """Fewest decimals, from `at_least` on, with which all numbers can be written; ten when nine are not enough.

    >>> _decimals(np.array([2.5, 3.25]), 0), _decimals(np.array([1 / 3]), 0)
    (2, 10)
    """
    # larger ones have no decimals, and rounding them would overflow
    numbers = numbers[np.abs(numbers) < 1e9]
    for decimals in range(at_least, _MOST_DECIMALS + 1):
        if bool((np.round(numbers, decimals) == numbers).all()):
            return decimals
        # most logs are not rounded at all: a few numbers tell
        few = numbers[:32]
        if decimals == at_least and not bool((np.round(few, _MOST_DECIMALS) == few).all()):
            break
    return _MOST_DECIMALS + 1


def _sha256(files: Sequence[Path]) -> str | None:
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
