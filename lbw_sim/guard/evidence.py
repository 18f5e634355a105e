"""The back-test report of a guard: what stands between watching a run and acting on it.

`lbw backtest` writes it, active mode asks for it. Reading one checks that it is whole, of a known format and of the
very guard that wants to act. It does not judge whether the evidence is good, and a fingerprint is no signature: whoever
rewrites a report together with its fingerprint is not found out.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from lbw_sim.errors import EvidenceError, LbwError
from lbw_sim.guard.spec import GuardSpec
from lbw_sim.whole_file import write_whole

FORMAT = 2
"""Format 1 has no simulated effects; it is still read, and still counts as it did."""
MOST_PROBLEMS = 20
"""After so many a report is not read any further."""
MAX_BYTES = 8 << 20
"""Largest report, in bytes; some 10,000 runs. A longer file is refused unread."""

OPEN_LOOP = (
    "Open loop: the guard was shown recorded losses, which happened under other decisions. This report says what it "
    "would have seen and asked for on these records. It does not say what the loss would have been, nor that acting "
    "helps."
)
"""The caveat that every report carries."""
CLOSED_LOOP = (
    "Simulated effects are statements about plants, models of training fitted to other runs: each holds within the "
    "range and the error that stand beside it, and none is evidence of what acting does to a real run."
)
"""The caveat of a report with simulated effects, behind the other one."""


class ReplayedRun(NamedTuple):
    """One recorded run that the guard was tried on, and what the guard asked for there."""

    run_id: str
    family: str
    """Runs of one family are correlated; the part of the id before the first `_` or `-`."""
    telemetry_sha256: str
    """Of the numbers that a guard can see, in order: equal for equal records, however they are stored."""
    labels_sha256: str
    rows: int
    first_step: int
    last_step: int
    labelled_events: int
    """Events of high or medium confidence that lie in the recorded steps."""
    labels: int
    """All labels, benign spans and low confidence included; 0: every row counts as clean."""
    mode: str
    """`shadow` or `active`: whether some guard acted while it was recorded."""
    imported: bool
    """From a log, in which steps may be missing and numbers rounded."""
    energy: float
    """Control energy asked for: the sum of (1 - scale)^2."""
    damped_steps: int
    """Rows with scale below 1."""
    lowest_scale: float
    skips: int
    """Skips that the envelope would have granted."""
    rollbacks: int
    """Rollbacks that the envelope would have granted."""


class Detection(NamedTuple):
    """One line of the detection table: a guard over some of the runs. None: undefined, never 0."""

    guard: str
    group: str
    """`all` (pooled), `family mean` (recalls only), or the name of a family."""
    runs: int | None
    rows: int | None
    events: int | None
    detected: int | None
    recall: float | None
    recall_low: float | None
    """Ends of the 95 % bootstrap interval over runs."""
    recall_high: float | None
    high_recall: float | None
    """Recall of events of high confidence."""
    startup_recall: float | None
    later_recall: float | None
    median_delay_steps: float | None
    false_alarms: int | None
    clean_rows: int | None
    false_alarms_per_10k: float | None
    false_alarms_per_10k_low: float | None
    false_alarms_per_10k_high: float | None
    baited: int | None
    """Alarms on spans that are labelled benign."""
    latched_share: float | None
    """Share of clean rows spent in alarm."""


class SimulatedEffect(NamedTuple):
    """What acting did to the final loss of one calibrated plant at one learning rate. Losses in nats, expected."""

    plant: str
    plant_fingerprint: str
    kind: str
    """`healthy` or `too high`: the learning rate, by what is best for this plant without a guard."""
    peak_lr: float
    """Of a warm-up and a cosine."""
    steps: int
    seeds: int
    """Of the noise; each flown with the guard and without."""
    fits: int
    """Fits of the plant to resampled runs that were flown, each with every seed; 1: the plant itself."""
    rollouts: int
    """Seeds x fits."""
    cut: int
    """Left out, because the guard was granted a rollback, which no plant can fly."""
    loss_without: float | None
    """Mean final loss without a guard. None: every rollout was cut."""
    loss_with: float | None
    effect: float | None
    """With less without: below 0 the guard helps."""
    effect_low: float | None
    """Ends of the 95 % interval, over fits and seeds."""
    effect_high: float | None
    lost_without: int
    """Rollouts that diverged or were damaged for good."""
    lost_with: int
    left_range_without: float
    """Share of rollouts that left what the plant was calibrated on: nothing was measured there."""
    left_range_with: float
    energy: float
    """Mean control energy: the sum of (1 - scale)^2."""
    held_out_runs: int
    """Recorded runs on which the plant was tried without having been fitted to them."""
    held_out_rmse: float | None
    """Its error on these, root mean square over runs; an effect that is smaller may be this error."""


class BacktestReport(NamedTuple):
    """What one guard saw, missed and asked for on recorded runs, what it did to plants, and what it was not tested on.

    >>> spec = GuardSpec.load("default")
    >>> run = ReplayedRun("a", "a", "00", "00", 100, 0, 99, 0, 0, "shadow", False, 0.0, 0, 1.0, 0, 0)
    >>> report = BacktestReport(
    ...     spec.name, spec.fingerprint, spec.to_toml(), (run,), (), OPEN_LOOP, ("No event.",), {}, "2026-01-01")
    >>> BacktestReport.from_json(report.to_json()) == report
    True
    >>> require_backtest(spec, report) is report
    True
    """

    guard: str
    """Name of the guard, for people."""
    guard_fingerprint: str
    spec_toml: str
    """The guard, whole."""
    runs: tuple[ReplayedRun, ...]
    detection: tuple[Detection, ...]
    """The guard's lines, then those of the reference `never`."""
    caveat: str
    not_tested_on: tuple[str, ...]
    """What these runs cannot say about the guard, one sentence each."""
    versions: dict[str, str]
    """Of lbw-sim, Python and what computed the figures."""
    made_at: str
    """ISO 8601, UTC."""
    simulated: tuple[SimulatedEffect, ...] = ()
    """Empty: no plant was given, and no effect was simulated."""
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that the report says, as canonical JSON."""
        text = json.dumps(self._document(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def _document(self) -> dict[str, Any]:
        document = {"lbw_backtest": self.format, **self._asdict()}
        del document["format"]
        for name in ("runs", "detection", "simulated"):
            document[name] = [line._asdict() for line in getattr(self, name)]
        if self.format == 1:
            del document["simulated"]
        return document

    def to_json(self) -> str:
        """The file's text; `from_json` gives an equal report back."""
        return json.dumps({**self._document(), "fingerprint": self.fingerprint}, indent=1, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the file, replacing what was there. Raises EvidenceError."""
        text = self.to_json()
        if len(text.encode()) > MAX_BYTES:
            raise EvidenceError(
                f"{path}: a report of {len(self.runs)} runs takes {len(text.encode())} bytes and no reader takes more "
                f"than {MAX_BYTES}; back-test fewer runs at once"
            )
        try:
            write_whole(path, text)
        except OSError as error:
            raise EvidenceError(f"{path}: the report cannot be written: {error}") from None

    @classmethod
    def load(cls, path: str | Path) -> BacktestReport:
        """A report from its file. Raises EvidenceError when it is not one, or not whole."""
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise EvidenceError(
                f"{str(path)!r} cannot be read as a back-test report: {why}. `lbw backtest GUARD TRACES` writes one"
            ) from None
        return cls.from_json(data, where=str(path))

    @classmethod
    def from_json(cls, data: str | bytes, where: str = "back-test report") -> BacktestReport:
        """Parse and check; `where` names the source in errors. Raises EvidenceError, all problems at once."""
        if len(data) > MAX_BYTES:
            raise EvidenceError(f"{where}: more than {MAX_BYTES} bytes are no back-test report")
        try:
            found = json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
        except (ValueError, RecursionError) as error:
            raise EvidenceError(f"{where} is not JSON: {str(error)[:200]}") from None
        if not isinstance(found, dict) or "lbw_backtest" not in found:
            raise EvidenceError(f"{where} is not a back-test report: `lbw backtest GUARD TRACES` writes one")
        version = found.pop("lbw_backtest")
        if type(version) is not int or not 1 <= version <= FORMAT:
            raise EvidenceError(
                f"{where}: back-test format {_shown(version)}; this release reads 1 to {FORMAT}. Back-test the guard "
                f"again: lbw backtest GUARD TRACES"
            )
        claimed = found.pop("fingerprint", None)
        foreign = ("format", "simulated") if version == 1 else ("format",)
        problems = [f"{name} is unknown" for name in foreign if name in found]
        report = _record(cls, {**({"simulated": []} if version == 1 else {}), **found, "format": version}, "", problems)
        if problems:
            more = "; and more" if len(problems) > 5 else ""
            raise EvidenceError(f"{where}: {'; '.join(problems[:5])}{more}")
        assert isinstance(report, cls)
        if report.fingerprint != claimed:
            raise EvidenceError(
                f"{where}: its fingerprint is {_shown(claimed)} and its content has {report.fingerprint}: the report "
                f"was changed or damaged after it was written. Back-test the guard again"
            )
        return report

    def for_guard(self, spec: GuardSpec, where: str = "back-test report") -> BacktestReport:
        """This report, when it is of the guard `spec`, whatever either is called. Raises EvidenceError otherwise."""
        if self.guard_fingerprint != spec.fingerprint:
            raise EvidenceError(
                f"{where}: is of guard {self.guard!r:.60} ({self.guard_fingerprint:.60}), not of {spec.name!r} "
                f"({spec.fingerprint}): another guard's evidence says nothing about this one. Back-test this one: "
                f"lbw backtest GUARD.toml TRACES"
            )
        if not any(run.rows for run in self.runs):
            raise EvidenceError(
                f"{where}: tells of no recorded row. Back-test the guard: lbw backtest GUARD.toml TRACES"
            )
        try:
            held = GuardSpec.from_toml(self.spec_toml, where=where).fingerprint
        except (LbwError, RecursionError) as error:
            raise EvidenceError(f"{where}: the guard that it holds cannot be read: {str(error)[:200]}") from None
        if held != self.guard_fingerprint:
            raise EvidenceError(
                f"{where}: claims guard {self.guard_fingerprint} and holds guard {held}: it was not written by one "
                f"back-test. Back-test the guard again"
            )
        return self


def require_backtest(spec: GuardSpec, source: BacktestReport | str | Path) -> BacktestReport:
    """The report that lets `spec` act: read from its file, or as it is, whole, and of this very guard.

    Raises EvidenceError.
    """
    if isinstance(source, BacktestReport):
        return source.for_guard(spec)
    if not isinstance(source, (str, Path)):
        raise EvidenceError(f"backtest={_shown(source)}: the path of a back-test report is needed, or a BacktestReport")
    return BacktestReport.load(source).for_guard(spec, str(source))


_NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", type(None): "null"}


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # a reader sees the first of two, JSON takes the last: a figure could be put in front of the one that counts
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:60]!r} stands there twice")
        found[name] = value
    return found


def _shown(value: Any) -> str:
    """A value of JSON in an error; not what is nested, which could be deep."""
    return f"{value!r:.80}" if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Field -> type of a NamedTuple."""
    return {name: hint for name, hint in get_type_hints(cls).items() if name in cls._fields}  # type: ignore[attr-defined]


def _record(cls: type, found: Any, at: str, problems: list[str]) -> Any:
    """A NamedTuple of plain values from JSON, each of its declared type; None when there are problems."""
    if not isinstance(found, dict):
        problems.append(f"{at or 'report'} is {_shown(found)}, not a JSON object")
        return None
    dot = at and f"{at}."
    before = len(problems)
    problems += [f"{dot}{str(key)[:60]} is unknown" for key in found if key not in _hints(cls)]
    problems += [f"{dot}{name} is missing" for name in _hints(cls) if name not in found]
    values = {
        name: _value(hint, found[name], f"{dot}{name}", problems) for name, hint in _hints(cls).items() if name in found
    }
    return cls(**values) if len(problems) == before else None


def _value(hint: Any, found: Any, at: str, problems: list[str]) -> Any:
    if len(problems) > MOST_PROBLEMS:
        return None
    kinds = [get_origin(kind) or kind for kind in get_args(hint)] if get_origin(hint) is UnionType else [hint]
    if get_origin(hint) is tuple and isinstance(found, list):
        inner = get_args(hint)[0]
        return tuple(_value(inner, item, f"{at}[{i}]", problems) for i, item in enumerate(found))
    if get_origin(hint) is dict and isinstance(found, dict):
        return {key: _value(str, item, f"{at}.{key[:60]}", problems) for key, item in found.items()}
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        return _record(hint, found, at, problems)
    if float in kinds and type(found) is int:
        found = float(found) if abs(found) < 1 << 53 else math.inf
    # type, not isinstance: True is no count; a number like 1e999 is no figure
    if type(found) not in kinds or (isinstance(found, float) and not math.isfinite(found)):
        problems.append(f"{at}={_shown(found)} is not {' or '.join(_NAMES.get(kind, 'a list') for kind in kinds)}")
        return None
    return found
