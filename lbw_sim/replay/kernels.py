"""One compiled kernel for all guards of one structure: the time loop outside, candidates side by side inside.

The kernel's source is generated from `Guard.seen` and `Guard.step` themselves and everything that they call, and
written to a file named by the hash of that very text. So a kernel can never be stale: whatever is edited, in whichever
file, either changes the text, and with it the name, or changes nothing. Compiled code is kept beside the text.

What decides whether the loop vectorises, each failing silently by 4 to 10 times: one flat buffer with row offsets known
when compiling, choices instead of branches and conditional stores. Fast-math stays off and nothing is contracted to a
fused multiply-add: every candidate gets the bits that Python gets. What then costs by a half: pieces too long for a
core to see the next lanes beyond them (`LONGEST_PIECE`), values that wait long for their reader, and the masked stores
that LLVM makes of a choice between a new value and the old one (`opaque`): microcode on many AMD cores.
"""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.guard import Guard
from lbw_sim.guard.guard import GuardState
from lbw_sim.params import meta
from lbw_sim.replay.inlining import (
    CannotInline,
    Const,
    Inliner,
    Items,
    Line,
    Num,
    Part,
    Record,
    Window,
    inf,
    names_in,
    needed_by,
    pruned,
)
from lbw_sim.values import UNSAFE_REGIMES, Posture, Regime, Telemetry, nan

_BOOLEAN = re.compile(r" ([<>]=?|[=!]=|[&|]) |^not ")
GENERATOR = 3
"""Stands in every kernel's text, and so in its name."""
WORD_ROWS = 48
"""Rows whose unsafe bits share one float64: whole numbers below 2**53 are exact."""
LONGEST_PIECE = 60
"""Lines of a step beyond which it is cut into pieces: so few that a core works on several lanes' at once, so many that
few values cross; measured in `benchmarks/rollout.py`."""
LARGEST_BUFFER = 24 * 1024
"""Bytes of state of all lanes, beyond which half as many fly: together with a step's inputs they stay in a core's first
cache, 32 KiB on many. Measured: 10 to 20 % of a step."""
LARGEST_CODE = 127
"""Enumeration codes are stored as int8."""
SUMMARY = ("fault", "unsafe_bits", "first_regime", "previous_regime", "switches", "active_steps", "min_scale", "energy",
           "skips", "rollbacks")  # fmt: skip
SUMMARY_START = {"first_regime": -1.0, "previous_regime": -1.0, "switches": -1.0, "min_scale": 1.0}
"""Where it is not 0. The first row is no switch."""
CHANNELS = tuple(name for name in Telemetry._fields if name != "extra")


class Layout(NamedTuple):
    """What stands where in a kernel's flat buffer: row r of candidate c is at r × lanes + c."""

    lanes: int
    parameters: tuple[str, ...]
    """Dotted paths, from row 0 on."""
    state: tuple[int, ...]
    """Which of the state's numbers, in depth-first order; those that no decision depends on are left out."""
    bounds: tuple[tuple[float, float, bool], ...]
    """Of these numbers at the start: least, largest, whole. The text was made on that assumption."""
    windows: int
    """How many windows the state holds."""
    derived: int
    """Rows for what the kernel itself computes from parameters alone, once and not at every step."""
    summary: tuple[str, ...] = SUMMARY
    """Rows for what the kernel sums up."""
    spilled: int = 0
    """Rows for what crosses from one piece of a long step to another."""
    inputs: tuple[str, ...] = ()
    """What a step of a loop reads of what it is handed."""
    results: tuple[int, ...] = ()
    """Rows of what is read at the end of a loop."""

    @property
    def rows(self) -> int:
        """Rows of the buffer."""
        return len(self.parameters) + len(self.state) + len(self.summary) + self.derived + self.spilled

    def summary_row(self, name: str) -> int:
        """The row of one entry of `summary`."""
        return len(self.parameters) + len(self.state) + self.summary.index(name)


class Source(NamedTuple):
    """A kernel before it is compiled."""

    text: str
    layout: Layout


def structure(guard: Guard) -> tuple[Any, ...]:
    """What guards have in common that share a kernel: component classes, delay and the shape of the state."""
    return (guard.delay_steps, *(class_tree(getattr(guard, k)) for k in GuardState._fields), _shape(guard.init()))


def class_tree(part: Any) -> tuple[Any, ...]:
    """Class, wrapped components and fixed fields of a component: alike for two that can share a kernel."""
    found: list[Any] = [type(part)]
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if hasattr(value, "__component__"):
            found.append((field.name, class_tree(value)))
        elif "param" not in field.metadata:
            found.append((field.name, repr(value)))
    return tuple(found)


def _shape(state: Any) -> Any:
    if not isinstance(state, tuple):
        return "number"
    if hasattr(state, "_fields"):
        return (type(state), *map(_shape, state))
    return "window"


def numbers_of(state: Any) -> Iterator[float]:
    """The numbers of a state, depth first, windows left out."""
    if isinstance(state, tuple):
        if hasattr(state, "_fields"):
            for item in state:
                yield from numbers_of(item)
    else:
        yield state


def number_places(state: Any) -> dict[str, int]:
    """Field of the state that is one number -> its place among `numbers_of`."""
    places, place = {}, 0
    for name, value in zip(state._fields, state, strict=True):
        if not isinstance(value, tuple):
            places[name] = place
        place += sum(1 for _ in numbers_of(value))
    return places


def windows_of(state: Any) -> Iterator[tuple[float, ...]]:
    """The windows of a state, depth first."""
    if isinstance(state, tuple):
        if hasattr(state, "_fields"):
            for item in state:
                yield from windows_of(item)
        else:
            yield state


class _Read(NamedTuple):
    """One step, read on an assumption about the state."""

    inliner: Inliner
    before: list[Num]
    after: list[Num]
    windows: list[Window]
    decision: dict[str, Num]
    """The wanted fields of what the step gives."""


_Bound = tuple[float, float, bool]


def source(guard: Guard, lanes: int, rows: bool) -> Source:
    """The kernel of a guard's structure. Raises CannotInline, naming the component and the construct.

    `lanes`: at most; `rows`: also write every decision, not only what they add up to.
    """
    read, bounds = _settled(guard.init(), lambda bounds: _read(guard, bounds))
    return _write(guard, read, bounds, lanes if not read.windows else 1, rows)


def _settled(start: Any, reader: Callable[[Sequence[_Bound]], _Read]) -> tuple[_Read, list[_Bound]]:
    """A step read on bounds of the state's numbers that the step itself keeps, from those of the first state on."""
    bounds = [(float(n), float(n), isinstance(n, int)) for n in numbers_of(start)]
    for attempt in range(6):
        read = reader(bounds)
        widened = [_widened(old, new, attempt) for old, new in zip(bounds, read.after, strict=True)]
        if widened == bounds:
            return read, bounds
        bounds = widened
    bounds = [(-inf, inf, False)] * len(bounds)
    return reader(bounds), bounds


def _widened(old: _Bound, new: Num, attempt: int) -> _Bound:
    """An assumption about one number of the state that the step just read does not break."""
    low = old[0] if new.low >= old[0] else new.low if attempt == 0 else -inf
    high = old[1] if new.high <= old[1] else new.high if attempt == 0 else inf
    return (low, high, old[2] and new.whole)


def _read(guard: Guard, bounds: Sequence[_Bound]) -> _Read:
    """Read `Guard.seen` and `Guard.step` once."""
    extra = meta(guard.sensor).extra
    if extra and guard.delay_steps:
        raise CannotInline(f"sensor {meta(guard.sensor).name!r}: extra channels with delay_steps = 1")
    now, earlier = (
        Record(
            Telemetry,
            (
                *(Num(f"{prefix}{i}", name == "step") for i, name in enumerate(CHANNELS)),
                Items(tuple(Num(f"{prefix}{len(CHANNELS) + i}") for i in range(len(extra)))),
            ),
        )
        for prefix in ("now", "before")
    )
    whole_guard = Part(guard, "")

    def call(inliner: Inliner, state: Any) -> Any:
        seen = inliner.call(Guard.seen, [whole_guard, now, earlier])  # type: ignore[arg-type]
        return inliner.call(Guard.step, [whole_guard, state, seen])  # type: ignore[arg-type]

    return _read_step(guard.init(), bounds, call, ("regime", "posture", "scale", "energy", "reason"))


def _read_step(
    start: Any, bounds: Sequence[_Bound], call: Callable[[Inliner, Any], Any], wanted: Sequence[str]
) -> _Read:
    """Read a step that gives (state, output) once; `wanted`: fields of the output."""
    inliner = Inliner()
    before: list[Num] = []
    windows = 0

    def abstract(value: Any) -> Any:
        nonlocal windows
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return Record(type(value), tuple(abstract(item) for item in value))
        if isinstance(value, tuple):
            windows += 1
            return Window(windows - 1)
        low, high, whole = bounds[len(before)]
        before.append(Num(f"s{len(before)}", whole, low, high))
        return before[-1]

    state = abstract(start)
    result = call(inliner, state)
    state_after, output = result.values
    after: list[Num] = []
    after_windows: list[Window] = []

    def collect(value: Any, template: Any, where: str) -> None:
        if isinstance(template, Record):
            if not isinstance(value, Record) or value.cls is not template.cls:
                raise CannotInline(f"{where}: the state changes its shape")
            for name, item, inner in zip(template.cls._fields, value.values, template.values, strict=True):  # type: ignore[attr-defined]
                collect(item, inner, f"{where}.{name}")
        elif isinstance(template, Window):
            if not isinstance(value, Window) or value.field != template.field:
                raise CannotInline(f"{where}: a window may be kept, or moved by one: window[1:] + (x,)")
            after_windows.append(value)
        else:
            after.append(inliner.number(value))

    collect(state_after, state, "state")
    fields = dict(zip(output.cls._fields, output.values, strict=True))
    return _Read(
        inliner,
        before,
        after,
        after_windows,
        {name: inliner.number(fields[name]) for name in wanted},
    )


def _write(guard: Guard, read: _Read, bounds: Sequence[_Bound], lanes: int, rows: bool) -> Source:
    inliner, decision = read.inliner, read.decision
    for name in ("regime", "posture", "reason"):
        whole, code = decision[name].whole, decision[name].code
        if not (whole and decision[name].low >= 0.0 and decision[name].high <= LARGEST_CODE):
            within = inliner.emit(f"({code} >= 0.0) & ({code} <= {LARGEST_CODE}.0)")
            inliner.faults.append(inliner.emit(f"not {within}"))
            inliner.faults.append(inliner.emit(f"round_trunc({code}) != {code}"))
    summary = _summary(inliner, decision)
    types = {name: "float64" if name in ("scale", "energy") else "int8" for name in (decision if rows else ())}
    outputs = {name: (decision[name].code, kind) for name, kind in types.items()}
    made = _in_cache(lanes, lambda lanes: _arranged(read, bounds, lanes, summary, outputs, wanted=set()))
    lanes = made.layout.lanes
    telemetry = [
        f"{prefix}{i} = seen[{i}, row{' + 1' if prefix == 'now' else ''}]"
        for prefix in ("now", "before")
        for i in range(len(CHANNELS) + len(meta(guard.sensor).extra))
        if f"{prefix}{i}" in made.used
    ]
    names = [part.name for part in (meta(guard.sensor), meta(guard.analyzer), meta(guard.policy))]
    bits = made.layout.summary_row("unsafe_bits")
    word = [f"words[{_at('word', lanes)}] = buffer[{_at(bits, lanes)}]", f"buffer[{_at(bits, lanes)}] = 0.0"]
    body = [
        *_over_lanes([made.prologue], lanes),
        "word = 0",
        f"for start in range(begin, end, {WORD_ROWS}):",
        f"    for row in range(start, min(start + {WORD_ROWS}, end)):",
        *_indented(_indented([*telemetry, *_over_lanes(made.bodies, lanes)])),
        *_indented([*_over_lanes([word], lanes), "word = word + 1"]),
    ]
    arguments = {
        "seen": "float64[:, ::1]", "begin": "int64", "end": "int64", "buffer": "float64[::1]", "words": "float64[::1]",
        "win": "float64[::1]", "place": "int64[::1]", **{name: f"{kind}[::1]" for name, kind in types.items()},
    }  # fmt: skip
    return Source(_text(", ".join(names), lanes, arguments, body), made.layout)


class _Arranged(NamedTuple):
    """A step as lines on one flat buffer."""

    layout: Layout
    prologue: list[str]
    """Run once per candidate, before the first step."""
    bodies: list[list[str]]
    """Run per step, each over all candidates before the next one."""
    used: set[str]
    """Every name that something asked for depends on, inputs included."""


def _in_cache(lanes: int, arranged: Callable[[int], _Arranged]) -> _Arranged:
    """A step for as many lanes as wanted, or for half of them."""
    made = arranged(lanes)
    return made if made.layout.rows * lanes * 8 <= LARGEST_BUFFER else arranged(max(1, lanes // 2))


def _arranged(
    read: _Read,
    bounds: Sequence[_Bound],
    lanes: int,
    summary: dict[str, str],
    outputs: dict[str, tuple[str, str]],
    wanted: set[str],
    kept: Sequence[int] = (),
    inputs: Mapping[str, str] = MappingProxyType({}),
) -> _Arranged:
    """Keep what is asked for, and give everything its place.

    `summary`: entry -> its new value; `outputs`: array written at every step -> value and type; `wanted`: further names
    that are asked for; `kept`: numbers of the state that stay in the buffer whether or not a step reads them; `inputs`:
    name -> text by which a candidate loads it.
    """
    inliner = read.inliner
    # a number of the state is needed when something that is asked for depends on it, through any number of steps
    wanted = wanted | {*summary.values(), *(code for code, _ in outputs.values())}
    for window in read.windows:
        wanted |= {window.moved} | ({window.added.code} if window.added else set())
    live: set[int] = set(kept)
    while True:
        needed = needed_by(inliner.lines, wanted | {read.after[i].code for i in live})
        found = {i for i, number in enumerate(read.before) if number.code in needed}
        if found <= live:
            break
        live |= found
    state = tuple(sorted(live))
    wanted |= {read.after[i].code for i in state}
    lines = pruned(inliner.lines, wanted)
    used = needed_by(inliner.lines, wanted)
    parameters = {path: number.code for path, number in inliner.parameters.items() if number.code in used}
    derived, prologue = _derived(lines, set(parameters.values()), wanted)
    start_bounds = tuple(bounds[i] for i in state)
    layout = Layout(lanes, tuple(parameters), state, start_bounds, len(read.windows), len(derived), tuple(summary))
    lines = pruned([line for line in lines if line.target not in derived], wanted)

    places = {code: row for row, code in enumerate(parameters.values())}
    places |= {name: layout.rows - len(derived) + i for i, name in enumerate(derived)}
    places |= {read.before[i].code: row for row, i in enumerate(state, start=len(parameters))}
    places |= {f"old_{name}0": layout.summary_row(name) for name in summary}
    # text, names that it reads, name whose place it overwrites
    stores: list[_Store] = []
    for i in state:
        before, after = read.before[i].code, read.after[i].code
        if after != before:
            stores.append(_Store(f"buffer[{_at(places[before], lanes)}] = opaque({after})", {after}, before))
    for name, text in summary.items():
        stores.append(
            _Store(f"buffer[{_at(layout.summary_row(name), lanes)}] = opaque({text})", {text}, f"old_{name}0")
        )
    for name, (code, kind) in outputs.items():
        cast = code if kind == "float64" else f"{kind}({code})"
        stores.append(_Store(f"{name}[{_at('row', lanes)}] = {cast}", {code}, ""))
    whole = lanes == 1 or bool(read.windows) or any(line.body for line in lines)
    pieces = [lines] if whole else _pieces(_close_together(lines))
    # of a single candidate, parameters and what follows from them stay where they are from step to step
    fixed = {*parameters.values(), *derived} if lanes == 1 else set()
    loaded = {name: row for name, row in places.items() if name not in fixed}
    bodies, spilled = _bodies(pieces, stores, loaded, inputs, layout.rows, lanes)
    for k, window in enumerate(read.windows):
        bodies[0][:0] = [
            f"base{k} = place[{3 * k}]",
            f"length{k} = place[{3 * k + 1}]",
            f"first{k} = place[{3 * k + 2}]",
        ]
        if window.moved != "False" and window.added is not None:
            bodies[0] += [
                f"if {window.moved}:",
                f"    win[first{k}] = {window.added.code}",
                f"    win[first{k} + length{k}] = {window.added.code}",
                f"    place[{3 * k + 2}] = first{k} + 1 if first{k} + 1 < base{k} + length{k} else base{k}",
            ]
    before_all = [f"{name} = buffer[{_at(places[name], lanes)}]" for name in parameters.values()]
    before_all += _rendered(prologue)
    before_all += [f"buffer[{_at(places[name], lanes)}] = {name}" for name in derived if name not in fixed]
    return _Arranged(layout._replace(spilled=spilled), before_all, bodies, used)


class _Store(NamedTuple):
    """One line that writes a value to its place."""

    text: str
    reads: set[str]
    overwrites: str
    """Name that is loaded from that place at the start of a step; empty: none."""


def _close_together(lines: Sequence[Line]) -> list[Line]:
    """The lines in an order in which few values wait for their last reader: those beyond a core's registers are stored
    and loaded again.

    Of the lines that can be next, the one that leaves the fewest values waiting; of several, the first.
    """
    defined = {line.target for line in lines}
    reads = [names_in(line.text) & defined for line in lines]
    readers: dict[str, list[int]] = {name: [] for name in defined}
    for i, names in enumerate(reads):
        for name in names:
            readers[name].append(i)
    unread = {name: len(those) for name, those in readers.items()}
    missing = [len(names) for names in reads]
    ready = [i for i, count in enumerate(missing) if count == 0]
    order = []
    while ready:
        following = min(
            ready, key=lambda i: (bool(unread[lines[i].target]) - sum(unread[name] == 1 for name in reads[i]), i)
        )
        ready.remove(following)
        order.append(lines[following])
        for name in reads[following]:
            unread[name] -= 1
        for i in readers[lines[following].target]:
            missing[i] -= 1
            if missing[i] == 0:
                ready.append(i)
    return order


def _pieces(lines: Sequence[Line]) -> list[Sequence[Line]]:
    """A long step in pieces, each a loop over the lanes of its own, cut where the fewest values have to cross.

    A step is one long chain of results that wait for each other. A core looks some 250 instructions ahead: the shorter
    the piece, the more lanes it works on meanwhile. Beyond some 700 lines the compiler gives up on lanes altogether.
    """
    count = -(-len(lines) // LONGEST_PIECE)
    last_read = {name: i for i, line in enumerate(lines) for name in names_in(line.text)}
    defined = {line.target: i for i, line in enumerate(lines)}
    cuts = [0]
    for piece in range(1, count):
        ideal, slack = len(lines) * piece // count, len(lines) // (4 * count)
        crossing = {
            cut: sum(at < cut <= last_read.get(name, -1) for name, at in defined.items())
            for cut in range(ideal - slack, ideal + slack + 1)
        }
        cuts.append(min(crossing, key=crossing.__getitem__))
    return [lines[first:end] for first, end in zip(cuts, [*cuts[1:], len(lines)], strict=True)]


def _bodies(
    pieces: Sequence[Sequence[Line]],
    stores: Sequence[_Store],
    places: Mapping[str, int],
    inputs: Mapping[str, str],
    rows: int,
    lanes: int,
) -> tuple[list[list[str]], int]:
    """The text of each piece: what it loads, computes and stores; and how many values cross from one to another.

    `places`: name -> row of the buffer that it is loaded from; `inputs`: name -> text that it is loaded by; `rows`: of
    the buffer so far.
    """
    defined = {line.target: piece for piece, lines in enumerate(pieces) for line in lines}
    boolean = {line.target for lines in pieces for line in lines if _BOOLEAN.search(line.text)}
    reads: list[set[str]] = [set().union(*(_read_by(line) for line in lines)) for lines in pieces]
    at = [max((defined.get(name, 0) for name in store.reads), default=0) for store in stores]
    moving = True
    while moving:  # nothing is overwritten before its last reader
        moving = False
        for i, store in enumerate(stores):
            readers = [piece for piece, names in enumerate(reads) if store.overwrites in names]
            readers += [at[j] for j, other in enumerate(stores) if store.overwrites in other.reads and j != i]
            earliest = max([at[i], *readers])
            if earliest > at[i]:
                at[i], moving = earliest, True
    for i, store in enumerate(stores):
        reads[at[i]] |= store.reads
    spills: dict[str, int] = {}
    free_from: list[int] = []  # for each row, the first piece that may write it anew
    for name, piece in defined.items():
        last = max((later for later, names in enumerate(reads) if name in names), default=piece)
        if last > piece:
            row = next((row for row, first in enumerate(free_from) if first <= piece), len(free_from))
            free_from[row : row + 1] = [last + 1]
            spills[name] = rows + row
    bodies = []
    for piece, lines in enumerate(pieces):
        loads = {name: text for name, text in inputs.items() if name in reads[piece]}
        for name, row in [*places.items(), *((name, row) for name, row in spills.items() if defined[name] < piece)]:
            if name in reads[piece]:
                test = " != 0.0" if name in boolean else ""
                loads[name] = f"{name} = buffer[{_at(row, lanes)}]{test}"
        waiting = [store for i, store in enumerate(stores) if at[i] == piece]
        for name, row in spills.items():
            if defined[name] == piece:
                value = f"select({name}, 1.0, 0.0)" if name in boolean else name
                waiting.append(_Store(f"buffer[{_at(row, lanes)}] = {value}", {name}, ""))
        bodies.append(_woven(lines, loads, waiting))
    return bodies, len(free_from)


def _woven(lines: Sequence[Line], loads: dict[str, str], stores: Sequence[_Store]) -> list[str]:
    """A piece with every load before its first reader and every store behind its value, to hold few values at a time.

    `loads`: name -> text.
    """
    body: list[str] = []
    last = {name: i for i, line in enumerate(lines) for name in (line.target, *(inner.target for inner in line.body))}
    after: list[list[_Store]] = [[] for _ in range(len(lines) + 1)]
    for store in stores:
        after[1 + max((last.get(name, -1) for name in store.reads), default=-1)].append(store)

    def load(names: set[str]) -> None:
        body.extend(loads.pop(name) for name in sorted(names & loads.keys()))

    for i in range(len(lines) + 1):
        for store in after[i]:
            load(store.reads | {store.overwrites})
            body.append(store.text)
        if i < len(lines):
            load(_read_by(lines[i]))
            body += _rendered(lines[i : i + 1])
    return body


def _at(row: int | str, lanes: int) -> str:
    """Where a lane's number lies in an array of rows of all lanes. One lane alone needs no loop: every line less is
    time of the compiler."""
    if lanes == 1:
        return f"{row}"
    return f"{row * lanes} + lane" if isinstance(row, int) else f"{row} * {lanes} + lane"


def _over_lanes(bodies: Sequence[Sequence[str]], lanes: int) -> list[str]:
    """Each body over all lanes, one after the other."""
    if lanes == 1:
        return [line for body in bodies for line in body]
    return [line for body in bodies if body for line in (f"for lane in range({lanes}):", *_indented(body))]


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def loop_source(subject: Any, inputs: type, results: Sequence[str], outputs: Mapping[str, str], lanes: int) -> Source:
    """The kernel of anything with `init() -> state` and `step(state, inputs) -> (state, output)`.

    `subject`: a frozen dataclass of parameters and parts; `inputs`: the NamedTuple that a step is handed, a number of
    each candidate; `results`: fields of the state that are read at the end; `outputs`: field of the output to write at
    every step -> numba type; `lanes`: at most. Raises CannotInline.

    The kernel takes (inputs[name, row, lane], begin, end, buffer, win, place, *outputs), reads of the inputs what
    `Layout.inputs` names, and flags in the summary entry `fault` the candidates for which Python would have raised.
    """
    fields: tuple[str, ...] = inputs._fields  # type: ignore[attr-defined]
    handed = Record(inputs, tuple(Num(f"now{i}") for i in range(len(fields))))

    def call(inliner: Inliner, state: Any) -> Any:
        return inliner.call(type(subject).step, [Part(subject, ""), state, handed])

    start = subject.init()
    read, bounds = _settled(start, lambda bounds: _read_step(start, bounds, call, tuple(outputs)))
    lanes = lanes if not read.windows else 1
    inliner = read.inliner
    # the results have to be in the buffer, even those that no step reads
    places = number_places(start)
    kept = [places[name] for name in results]
    wanted = {read.after[i].code for i in kept}
    written = {}
    for name, kind in outputs.items():
        found = read.decision[name]
        if kind != "float64" and not (found.whole and found.low >= 0.0 and found.high <= LARGEST_CODE):
            inliner.faults.append(inliner.emit(f"not ({found.code} >= 0.0) & ({found.code} <= {LARGEST_CODE}.0)"))
        written[name] = (found.code, kind)
    lane = "0" if lanes == 1 else "lane"
    loaded = {f"now{i}": f"now{i} = inputs[{i}, row, {lane}]" for i in range(len(fields))}
    summary = {"fault": _fault(inliner)}
    made = _in_cache(lanes, lambda lanes: _arranged(read, bounds, lanes, summary, written, wanted, kept, loaded))
    lanes = made.layout.lanes
    body = [
        *_over_lanes([made.prologue], lanes),
        "for row in range(begin, end):",
        *_indented(_over_lanes(made.bodies, lanes)),
    ]
    arguments = {
        "inputs": "float64[:, :, ::1]", "begin": "int64", "end": "int64", "buffer": "float64[::1]",
        "win": "float64[::1]", "place": "int64[::1]", **{name: f"{kind}[::1]" for name, kind in outputs.items()},
    }  # fmt: skip
    text = _text(type(subject).__name__, lanes, arguments, body)
    read_inputs = tuple(name for i, name in enumerate(fields) if f"now{i}" in made.used)
    result_rows = tuple(len(made.layout.parameters) + made.layout.state.index(place) for place in kept)
    return Source(text, made.layout._replace(inputs=read_inputs, results=result_rows))


def _derived(lines: Sequence[Line], parameters: set[str], wanted: set[str]) -> tuple[list[str], list[Line]]:
    """What depends on parameters alone and costs a division or a square root: in some guards half of all.

    The names that steps need, and the lines that compute them.
    """
    fixed, costly = set(parameters), set[str]()
    for line in lines:
        names = names_in(line.text)
        # a c is assigned more than once, a window is memory
        if not line.body and names and names <= fixed and not line.target.startswith(("c", "win[")):
            fixed.add(line.target)
            # a boolean has no place in a buffer of float64, and costs nothing
            if not _BOOLEAN.search(line.text) and ("/" in line.text or "sqrt" in line.text or names & costly):
                costly.add(line.target)
    needed = wanted.union(*(_read_by(line) for line in lines if line.target not in costly))
    derived = [line.target for line in lines if line.target in costly & needed]
    return derived, pruned([line for line in lines if line.target in fixed], set(derived))


def _fault(inliner: Inliner) -> str:
    """Whether Python would have raised on this step or an earlier one."""
    if not inliner.faults:
        return "old_fault0"
    raised = inliner.faults[0]
    for other in inliner.faults[1:]:
        raised = inliner.emit(f"{raised} | {other}")
    return "1.0" if raised == "True" else inliner.emit(f"select({raised}, 1.0, old_fault0)")


def _summary(inliner: Inliner, decision: dict[str, Num]) -> dict[str, str]:
    """Entry of `SUMMARY` -> its new value."""
    emit = inliner.emit
    regime, posture, scale = (decision[name].code for name in ("regime", "posture", "scale"))
    safe = [emit(f"{regime} != {float(r)!r}") for r in Regime if r not in UNSAFE_REGIMES]
    unsafe = safe[0]
    for other in safe[1:]:
        unsafe = emit(f"{unsafe} & {other}")

    def counted(name: str, test: str) -> str:
        return emit(f"old_{name}0 + {emit(f'select({test}, 1.0, 0.0)')}")

    fault = _fault(inliner)
    first = emit(f"{emit('old_first_regime0 < 0.0')} & {unsafe}")
    lower = emit(f"{scale} < old_min_scale0")
    return {
        "fault": fault,
        "unsafe_bits": emit(f"{emit('old_unsafe_bits0 + old_unsafe_bits0')} + {emit(f'select({unsafe}, 1.0, 0.0)')}"),
        "first_regime": emit(f"select({first}, {regime}, old_first_regime0)"),
        "previous_regime": regime,
        "switches": counted("switches", emit(f"{regime} != old_previous_regime0")),
        "active_steps": counted("active_steps", emit(f"{scale} < 1.0")),
        "min_scale": emit(f"select({lower}, {scale}, old_min_scale0)"),
        "energy": decision["energy"].code,
        "skips": counted("skips", emit(f"{posture} == {float(Posture.SKIP)!r}")),
        "rollbacks": counted("rollbacks", emit(f"{posture} == {float(Posture.ROLLBACK)!r}")),
    }


def _read_by(line: Line) -> set[str]:
    return names_in(line.text).union(*(_read_by(inner) for inner in line.body))


def _rendered(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        if line.body:
            yield line.text
            yield from (f"    {inner}" for inner in _rendered(line.body))
        else:
            yield f"{line.target} = {line.text}"


_TEMPLATE = '''\
{lowering}

# {title}; {lanes} candidates. Generated by lbw-sim, generator {generator}; {versions}.
from numba import float64, int8, int64, njit
from numba.extending import intrinsic


@intrinsic
def steps(typing_context, {names}):
    return lowered("""\
{body}
""", {passed})


@njit(types.void({types}), cache=True, nogil=True)
def kernel({names}):
    steps({names})
'''


def _text(title: str, lanes: int, arguments: Mapping[str, str], body: Sequence[str]) -> str:
    """The text of a kernel. `arguments`: name -> numba type."""
    return _TEMPLATE.format(
        lowering=_lowering(),
        title=title,
        lanes=lanes,
        generator=GENERATOR,
        versions=_versions(),
        names=", ".join(arguments),
        body="\n".join(body),
        passed=", ".join(f"{name}={name}" for name in arguments),
        types=", ".join(arguments.values()),
    )


class Start(NamedTuple):
    """A kernel's memory before the first row."""

    buffer: NDArray[np.float64]
    win: NDArray[np.float64]
    place: NDArray[np.int64]
    unfit: NDArray[np.bool_]
    """Which candidates the kernel's assumptions do not fit."""


def start(layout: Layout, guards: Sequence[Any]) -> Start:
    """The memory of these candidates (guards, or subjects of `loop_source`) before the first row."""
    lanes = layout.lanes
    columns: list[list[float]] = []
    unfit: list[bool] = []
    win, place = np.zeros(0), np.zeros(0, np.int64)
    # many seeds of one candidate share a column: setting one up costs as much as some hundred steps
    known: dict[int, int] = {}
    of_lane = []
    for lane in range(lanes):
        # lanes without a candidate repeat the first one: zeros would divide by zero, slowly
        guard = guards[lane if lane < len(guards) else 0]
        of_lane.append(known.setdefault(id(guard), len(columns)))
        if of_lane[-1] < len(columns):
            continue
        state = guard.init()
        numbers = list(numbers_of(state))
        kept = [numbers[i] for i in layout.state]
        columns.append([*(attrgetter(path)(guard) for path in layout.parameters), *kept])
        fits = all(
            low <= number <= high and (not whole or number == int(number))
            for number, (low, high, whole) in zip(kept, layout.bounds, strict=True)
        )
        if layout.windows:
            windows = list(windows_of(state))
            fits = fits and all(len(window) > 0 for window in windows)
            # every number stands twice, so that the window is one piece wherever its first number is
            win = np.concatenate([np.array(window * 2 or (0.0, 0.0), dtype=np.float64) for window in windows])
            ends = np.cumsum([0, *(2 * max(1, len(window)) for window in windows)])
            place = np.array([(ends[k], max(1, len(w)), ends[k]) for k, w in enumerate(windows)], np.int64).reshape(-1)
        unfit.append(not fits)
    table = np.zeros((layout.rows, lanes))
    table[: len(columns[0])] = np.array(columns, np.float64)[of_lane].T
    for name in layout.summary:
        table[layout.summary_row(name)] = SUMMARY_START.get(name, 0.0)
    return Start(table.reshape(-1), win, place, np.array(unfit)[of_lane])


_EXTRACTION = '''\
"""Alarms from unsafe bits. Generated by lbw-sim, generator {generator}; {versions}."""
from numba import float64, int64, njit, types


@njit(
    types.void(float64[::1], int64, int64, int64, int64[::1], int64[::1], int64[::1], int64[:, :, ::1]),
    cache=True, nogil=True,
)
def kernel(words, begin, end, lanes, begun, counts, unsafe, alarms):
    for lane in range(lanes):
        since, count, total = begun[lane], counts[lane], unsafe[lane]
        word = lane
        for start in range(begin, end, {word_rows}):
            length = min({word_rows}, end - start)
            bits = int64(words[word])
            word += lanes
            if bits == 0 and since < 0:
                continue
            if bits == (int64(1) << length) - 1 and since >= 0:
                total += length
                continue
            for row in range(start, start + length):
                if (bits >> (start + length - 1 - row)) & 1:
                    total += 1
                    if since < 0:
                        since = row
                elif since >= 0:
                    if count < alarms.shape[1]:
                        alarms[lane, count, 0] = since
                        alarms[lane, count, 1] = row - 1
                    count += 1
                    since = -1
        begun[lane], counts[lane], unsafe[lane] = since, count, total
'''


def extraction() -> str:
    """The text of the kernel that turns unsafe bits into alarms, continued from block to block."""
    return _EXTRACTION.format(generator=GENERATOR, versions=_versions(), word_rows=WORD_ROWS)


@cache
def _lowering() -> str:
    # not imported: that takes longer than many a replay
    return Path(__file__).with_name("lowering.py").read_text(encoding="utf-8")


@cache
def _versions() -> str:
    # without importing them: that takes longer than many a replay
    return ", ".join(f"{name} {version(name)}" for name in ("numba", "llvmlite"))


@cache
def cache_folder() -> Path:
    """Where kernels are kept: `$LBW_CACHE`, else `$XDG_CACHE_HOME/lbw-sim`, else `~/.cache/lbw-sim`.

    A folder of this process's own, removed at its end, when that cannot be written.
    """
    named = os.environ.get("LBW_CACHE")
    folder = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lbw-sim"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        own = Path(tempfile.mkdtemp(prefix="lbw-sim-"))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        return own


def kernel_file(text: str) -> Path:
    """The file that a kernel's text is kept in."""
    return cache_folder() / f"kernel_{hashlib.sha256(text.encode()).hexdigest()[:24]}.py"


@cache
def compiled(text: str) -> Callable[..., None]:
    """The machine code of a kernel's text, from the cache or made now, in half a second to one. Raises CannotInline."""
    from numba.core.errors import NumbaError

    file = kernel_file(text)
    # never trust what lies there under this name: it may have been cut short or edited
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False, encoding="utf-8") as made:
            made.write(text)
        os.replace(made.name, file)
    spec = importlib.util.spec_from_file_location(f"lbw_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except NumbaError as error:
        raise CannotInline(f"{file} does not compile: {str(error).splitlines()[0]}") from error
    return module.kernel  # type: ignore[no-any-return]


def telemetry_before_the_first_step(extra: int) -> list[float]:
    """The first column of the matrix that a kernel reads."""
    return [float(getattr(Telemetry(-1), name)) for name in CHANNELS] + [nan] * extra


__all__ = [
    "CannotInline",
    "Const",
    "Layout",
    "Source",
    "cache_folder",
    "compiled",
    "loop_source",
    "source",
    "structure",
]
