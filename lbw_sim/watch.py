"""What somebody who watches a run wants to see of it, gathered row by row and drawn for a terminal.

It reads rows and judges nothing beyond what the run's own guard said. Memory is bounded however long the run is: old
rows live on as counts and as the highest loss of each stretch.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lbw_sim.score import unsafe_rows
from lbw_sim.trace.layout import journals_in, local_path, run_folder_name, run_id_of, segments_in
from lbw_sim.trace.tail import Appended, RunTail
from lbw_sim.values import UNSAFE_REGIMES, Posture, Reason, Regime, name_of
from lbw_sim.wording import counted, printable

RECENT_ROWS = 300
"""Rows in the curves of what is going on now."""
STRETCHES = 400
"""Stretches that the curve of the whole run is kept in, at most."""
LAST = 4
"""Alarms and events that are listed."""
QUIET_S = 2.0
"""A row that is not older than this shows that its writer lives, whatever can be seen of its lock."""
_BRAILLE_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


class SeenAlarm(NamedTuple):
    """A run of unsafe rows."""

    start_step: int
    end_step: int | None
    """None: it is still on."""
    regime: str
    """The one in which it began."""


class Thinned:
    """A curve of any length as the highest value of each of at most `stretches` stretches of equal length.

    >>> curve = Thinned(stretches=4)
    >>> curve.add([1.0, 5.0, 2.0, 3.0, 4.0])
    >>> curve.values, curve.rows_each
    ([5.0, 3.0, 4.0], 2)
    """

    def __init__(self, stretches: int) -> None:
        self._most = stretches
        self._filled = 0
        self.values: list[float] = []
        self.rows_each = 1

    def add(self, values: Iterable[float]) -> None:
        """Append; nan counts as nothing."""
        for value in values:
            if self._filled == 0:
                if len(self.values) == self._most:
                    pairs = zip(self.values[::2], self.values[1::2], strict=True)
                    self.values = [float(np.fmax(first, second)) for first, second in pairs]
                    self.rows_each *= 2
                self.values.append(value)
            elif not value <= self.values[-1]:
                self.values[-1] = value if value == value else self.values[-1]
            self._filled = (self._filled + 1) % self.rows_each


class RunView:
    """Follows one run. `look` takes in what is new; the rest says what is known."""

    def __init__(self, run_folder: str | Path) -> None:
        self.tail = RunTail(run_folder)
        self.rows = 0
        self.last: dict[str, Any] = {}
        """The newest row, by column."""
        self.alarm_count = 0
        self.alarms: deque[SeenAlarm] = deque(maxlen=LAST)
        self.events: deque[tuple[int, str]] = deque(maxlen=LAST)
        """(step, word) of the marks in the column `event`."""
        self.skipped = 0
        self.whole_loss = Thinned(STRETCHES)
        self.losses: deque[float] = deque(maxlen=RECENT_ROWS)
        self.scales: deque[float] = deque(maxlen=RECENT_ROWS)
        self._times_s: deque[float] = deque(maxlen=RECENT_ROWS)
        self._segment = -1
        self._unsafe = False
        self._last_event = ""
        self._row_seen_at_s = -math.inf
        self._recovered_at_s = math.inf

    def look(self) -> None:
        """Read what was appended. Raises TraceError for a file that is not a trace."""
        before = self.rows
        for part in self.tail.poll():
            self._take(part)
        if self.rows > before > 0 and self.tail.ended == "open":
            # what lay there when we came shows nothing
            self._row_seen_at_s = time.monotonic()
        if self.tail.ended != "recovered":
            self._recovered_at_s = math.inf
        elif self._recovered_at_s == math.inf:
            # nobody to wait for when it was recovered before we came
            self._recovered_at_s = time.monotonic() if before else -math.inf

    def _take(self, part: Appended) -> None:
        columns = part.columns
        steps, regimes = columns["step"], columns["regime"]
        if part.meta.segment != self._segment:
            self._segment = part.meta.segment
            self._times_s.clear()
        self.rows += len(steps)
        self.skipped += int(columns["skipped"].sum())
        self.whole_loss.add(columns["loss"].tolist())
        for kept, name in ((self.losses, "loss"), (self.scales, "scale"), (self._times_s, "elapsed_s")):
            kept.extend(columns[name][-RECENT_ROWS:].tolist())
        unsafe = unsafe_rows(regimes)
        edges = np.diff(unsafe.astype(np.int8), prepend=np.int8(self._unsafe))
        self.alarm_count += int((edges == 1).sum())
        # the alarms that will be listed lie between the last edges
        for row in np.flatnonzero(edges)[-2 * LAST - 2 :].tolist():
            if edges[row] == 1:
                self.alarms.append(SeenAlarm(int(steps[row]), None, name_of(Regime, regimes[row])))
            elif self.alarms:
                end = int(steps[row - 1]) if row else int(self.last["step"])
                self.alarms[-1] = self.alarms[-1]._replace(end_step=end)
        self._unsafe = bool(unsafe[-1])
        for row in np.flatnonzero(columns["event"] != "").tolist():
            word = str(columns["event"][row])
            # a fault that lasts is one event
            if word != (str(columns["event"][row - 1]) if row else self._last_event):
                self.events.append((int(steps[row]), word))
        self._last_event = str(columns["event"][-1])
        self.last = {name: values[-1].item() for name, values in columns.items()}

    @property
    def steps_per_s(self) -> float:
        """Over the last rows of this segment; nan before there are two."""
        spent = self._times_s[-1] - self._times_s[0] if self._times_s else 0.0
        return (len(self._times_s) - 1) / spent if spent > 0 else math.nan

    @property
    def quiet_s(self) -> float:
        """Seconds since a row was seen to come; infinite when none was."""
        return time.monotonic() - self._row_seen_at_s

    @property
    def writer(self) -> str:
        """`waiting` for a first segment, `alive`, `gone`, `unknown`, or how it finished: `closed`, `recovered`."""
        if self.tail.ended != "open":
            return self.tail.ended or "waiting"
        lives = self.tail.writer_lives()
        if lives or self.quiet_s < QUIET_S:
            return "alive"
        return "unknown" if lives is None else "gone"

    def over(self, *, patience_s: float) -> bool:
        """Whether the run has come to its end: closed; or recovered, and not resumed for so long."""
        return self.tail.ended == "closed" or time.monotonic() - self._recovered_at_s >= patience_s

    def facts(self) -> dict[str, Any]:
        """Everything as plain values."""
        meta = self.tail.meta
        names = {"regime": Regime, "posture": Posture, "reason": Reason}
        told = ("step", "loss", "lr", "effective_lr", "grad_norm", "scale", "energy", *names)
        return {
            "run_id": meta.run_id if meta else run_id_of(self.tail.folder.name),
            "guard": meta.guard_name if meta else None,
            "fingerprint": meta.fingerprint if meta else None,
            "mode": meta.mode if meta else None,
            "segment": meta.segment if meta else None,
            "writer": self.writer,
            "rows": self.rows,
            "steps_per_s": self.steps_per_s,
            "last": {
                name: name_of(names[name], self.last[name]) if name in names else self.last[name]
                for name in told
                if self.last
            },
            "skipped_steps": self.skipped,
            "alarms": self.alarm_count,
            "last_alarms": list(self.alarms),
            "last_events": [{"step": step, "event": word} for step, word in self.events],
            "damage": None if self.tail.damage is None else str(self.tail.damage),
        }


def find_run(path: Path, run_id: str | None = None) -> Path | None:
    """The folder of the run that is meant; None: it is not there yet.

    `path`: a run's folder, a file of it, or a folder of traces, of which the run written to last is taken unless
    `run_id` says which. Raises TraceError for a URI, and for a run id that cannot be one.
    """
    path = local_path(path, "runs are watched")
    if run_id is not None:
        return path / run_folder_name(run_id)
    if path.is_file():
        return path.parent
    if run_id_of(path.name):
        return path
    newest: tuple[bool, float, Path] | None = None
    for place, folders, names in os.walk(path):
        here = Path(place)
        if not (run_id_of(here.name) or segments_in(names)):
            continue
        folders.clear()
        files = [here / name for name in segments_in(names).values()]
        if files:
            candidate = (bool(journals_in(names)), max(map(_written_at, files)), here)
            newest = candidate if newest is None else max(newest, candidate)
    return None if newest is None else newest[2]


def draw(view: RunView, width: int) -> RenderableType:
    """The run as it stands, for a terminal `width` columns wide."""
    facts = view.facts()
    head = Text.assemble(
        (str(facts["run_id"]), "bold"), "  ",
        f"guard {printable(str(facts['guard']))} ({facts['fingerprint']}), {facts['mode']}",
        f"  segment {facts['segment']}" if facts["segment"] else "",
    )  # fmt: skip
    parts: list[RenderableType] = [head, _writer_line(view, facts)] if facts["guard"] else [_writer_line(view, facts)]
    if facts["damage"]:
        parts.append(Text(str(facts["damage"]), "bold red"))
    if not view.last:
        return Group(*parts)
    parts.append(_now(view, facts["last"]))
    columns = max(20, min(width, 120) - 10)
    if len(view.whole_loss.values) > 1 and view.rows > RECENT_ROWS:
        each = view.whole_loss.rows_each
        title = f"loss, all {counted(view.rows, 'row')}" + (f" (highest of every {each})" if each > 1 else "")
        parts += _curve(title, view.whole_loss.values, columns, 4)
    parts += _curve(f"loss, last {counted(len(view.losses), 'row')}", view.losses, columns, 4)
    parts += _curve(f"scale, last {counted(len(view.scales), 'row')}", view.scales, columns, 2, low=0.0, high=1.0)
    alarms = [
        f"{alarm.regime} {alarm.start_step}–{'now' if alarm.end_step is None else alarm.end_step}"
        for alarm in reversed(view.alarms)
    ]
    parts.append(Text(f"alarms  {view.alarm_count}{': ' if alarms else ''}{', '.join(alarms)}", overflow="ellipsis"))
    if view.events:
        events = ", ".join(f"{printable(word)} at {step}" for step, word in reversed(view.events))
        parts.append(Text(f"events  {events}", overflow="ellipsis"))
    return Group(*parts)


def closing_sentence(view: RunView) -> str:
    """How the run stands, for when the watching ends."""
    rows = counted(view.rows, "row")
    run = view.facts()["run_id"] or view.tail.folder
    return {
        "waiting": f"{run}: nothing recorded yet",
        "closed": f"{run}: closed by its writer after {rows}",
        "recovered": f"{run}: its writer died after {rows}, which were recovered",
        "gone": f"{run}: its writer is gone after {rows}; the next recorder or lbw command finishes the journal",
    }.get(view.writer, f"{run}: goes on; {rows} so far")


def _writer_line(view: RunView, facts: dict[str, Any]) -> Text:
    quiet = f", {view.quiet_s:.0f} s ago" if QUIET_S < view.quiet_s < math.inf else ""
    text, style = {
        "waiting": (f"waiting for {view.tail.folder}", "yellow"),
        "alive": (f"writer alive{f', last row{quiet[1:]}' if quiet else ''}", "green"),
        "unknown": (f"last row{quiet[1:]}" if quiet else "writer unknown", "yellow"),
        "gone": ("no writer holds this journal here: killed, or in another container", "bold red"),
        "closed": ("closed by its writer", "blue"),
        "recovered": ("its writer died; recovered", "yellow"),
    }[facts["writer"]]
    speed = f", {view.steps_per_s:.4g} steps/s" if view.steps_per_s == view.steps_per_s else ""
    return Text.assemble((text, style), f"   {counted(view.rows, 'row')}{speed}" if view.rows else "")


def _now(view: RunView, last: dict[str, Any]) -> Table:
    unsafe = last["regime"] in {regime.name for regime in UNSAFE_REGIMES}
    calm = "green" if last["regime"] in ("STABLE", "RECOVERY") else "yellow"
    cells: list[tuple[str, str, str]] = [
        ("step", f"{last['step']:,}", ""),
        ("loss", f"{last['loss']:.5g}", "" if math.isfinite(last["loss"]) else "bold red"),
        ("effective lr", f"{last['effective_lr']:.3g}", ""),
        ("grad norm", f"{last['grad_norm']:.3g}", ""),
        ("regime", last["regime"], "bold red" if unsafe else calm),
        ("posture", last["posture"], "" if last["posture"] == "HOLD" else "bold"),
        ("scale", f"{last['scale']:.3g}", "bold red" if last["scale"] < 1.0 else ""),
        ("energy", f"{last['energy']:.4g}", ""),
        ("reason", last["reason"], "bold red" if last["reason"].endswith("_FAULT") else ""),
        ("skipped", str(view.skipped), ""),
    ]
    table = Table.grid(padding=(0, 2))
    for start in range(0, len(cells), 5):
        row = cells[start : start + 5]
        table.add_row(*(Text.assemble((f"{name} ", "dim"), (value, style)) for name, value, style in row))
    return table


def _curve(
    title: str, values: Iterable[float], columns: int, lines: int, low: float = math.nan, high: float = math.nan
) -> list[RenderableType]:
    values = list(values)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return [Text(f"{title}: none is finite", "dim")]
    low, high = (min(finite), max(finite)) if low != low else (low, high)
    drawn = braille(values, columns, lines, low, high)
    marks = [f"{high:.4g}", *[""] * (lines - 2), f"{low:.4g}"]
    return [Text(title, "dim"), *(Text(f"{mark:>9} {line}") for mark, line in zip(marks, drawn, strict=True))]


def braille(values: Sequence[float], columns: int, lines: int, low: float, high: float) -> list[str]:
    """A curve in Braille dots, 2 × 4 to a character; what is not finite leaves a gap.

    >>> braille([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 4, 2, 0.0, 7.0)
    ['⠀⠀⡠⠊', '⡠⠊⠀⠀']
    """
    table = [[0] * columns for _ in range(lines)]
    places = min(len(values), 2 * columns)
    before = None
    for x in range(places):
        part = [v for v in values[x * len(values) // places : (x + 1) * len(values) // places] if math.isfinite(v)]
        if not part:
            before = None
            continue
        share = (max(part) - low) / (high - low) if high > low else 0.5
        level = round((4 * lines - 1) * min(1.0, max(0.0, share)))
        # up to the dot before, so that a jump is a line
        near = level if before is None else before + (level > before) - (level < before)
        for dot in range(min(level, near), max(level, near) + 1):
            row = 4 * lines - 1 - dot
            table[row // 4][x // 2] |= _BRAILLE_DOTS[row % 4][x % 2]
        before = level
    return ["".join(chr(0x2800 + dots) for dots in line) for line in table]


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # finished and taken away since it was listed
