"""One compiled kernel for all guards of one structure: the time loop outside, candidates side by side inside.

The kernel's source is generated from `Guard.seen` and `Guard.step` themselves and everything that they call, and
written to a file named by the hash of that very text. So a kernel can never be stale: whatever is edited, in whichever
file, either changes the text, and with it the name, or changes nothing. Compiled code is kept beside the text.

What decides whether the loop vectorises, each failing silently by 4 to 10 times: one flat buffer with row offsets known
when compiling, choices instead of branches and conditional stores, numpy's error model. Fast-math stays off and nothing
is contracted to a fused multiply-add: every candidate gets the bits that Python gets.
"""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

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

GENERATOR = 1
"""Stands in every kernel's text, and so in its name."""
WORD_ROWS = 48
"""Rows whose unsafe bits share one float64: whole numbers below 2**53 are exact."""
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

    @property
    def rows(self) -> int:
        """Rows of the buffer."""
        return len(self.parameters) + len(self.state) + len(SUMMARY) + self.derived

    def summary_row(self, name: str) -> int:
        """The row of one entry of `SUMMARY`."""
        return len(self.parameters) + len(self.state) + SUMMARY.index(name)


class Source(NamedTuple):
    """A kernel before it is compiled."""

    text: str
    layout: Layout


def structure(guard: Guard) -> tuple[Any, ...]:
    """What guards have in common that share a kernel: component classes, delay and the shape of the state."""
    return (guard.delay_steps, *(_class_tree(getattr(guard, k)) for k in GuardState._fields), _shape(guard.init()))


def _class_tree(part: Any) -> tuple[Any, ...]:
    found: list[Any] = [type(part)]
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if hasattr(value, "__component__"):
            found.append((field.name, _class_tree(value)))
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


_Bound = tuple[float, float, bool]


def source(guard: Guard, lanes: int, rows: bool) -> Source:
    """The kernel of a guard's structure. Raises CannotInline, naming the component and the construct.

    `rows`: also write every decision, not only what they add up to.
    """
    bounds = [(float(n), float(n), isinstance(n, int)) for n in numbers_of(guard.init())]
    for attempt in range(6):
        read = _read(guard, bounds)
        widened = [_widened(old, new, attempt) for old, new in zip(bounds, read.after, strict=True)]
        if widened == bounds:
            break
        bounds = widened
    else:
        bounds = [(-inf, inf, False)] * len(bounds)
        read = _read(guard, bounds)
    return _write(guard, read, bounds, lanes if not read.windows else 1, rows)


def _widened(old: _Bound, new: Num, attempt: int) -> _Bound:
    """An assumption about one number of the state that the step just read does not break."""
    low = old[0] if new.low >= old[0] else new.low if attempt == 0 else -inf
    high = old[1] if new.high <= old[1] else new.high if attempt == 0 else inf
    return (low, high, old[2] and new.whole)


def _read(guard: Guard, bounds: Sequence[_Bound]) -> _Read:
    """Read `Guard.seen` and `Guard.step` once."""
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

    state = abstract(guard.init())
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
    seen = inliner.call(Guard.seen, [whole_guard, now, earlier])  # type: ignore[arg-type]
    result = inliner.call(Guard.step, [whole_guard, state, seen])  # type: ignore[arg-type]
    state_after, decision = result.values
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
    fields = dict(zip(decision.cls._fields, decision.values, strict=True))
    return _Read(
        inliner,
        before,
        after,
        after_windows,
        {name: inliner.number(fields[name]) for name in ("regime", "posture", "scale", "energy", "reason")},
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
    outputs = {name: decision[name].code for name in (decision if rows else ())}

    # a number of the state is needed when something that is asked for depends on it, through any number of steps
    wanted = {*summary.values(), *outputs.values()}
    for window in read.windows:
        wanted |= {window.moved} | ({window.added.code} if window.added else set())
    live: set[int] = set()
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
    layout = Layout(lanes, tuple(parameters), state, start_bounds, len(read.windows), len(derived))
    lines = pruned([line for line in lines if line.target not in derived], wanted)
    in_loop = needed_by(lines, wanted)

    all_loads = {code: f"{code} = buffer[{row * lanes} + lane]" for row, code in enumerate(parameters.values())}
    first_derived = layout.rows - len(derived)
    derived_at = {name: f"buffer[{(first_derived + i) * lanes} + lane]" for i, name in enumerate(derived)}
    stores: list[str] = []
    loads = [text for code, text in all_loads.items() if code in in_loop]
    loads += [f"{name} = {place}" for name, place in derived_at.items() if name in in_loop]
    for row, i in enumerate(state, start=len(parameters)):
        loads.append(f"{read.before[i].code} = buffer[{row * lanes} + lane]")
        if read.after[i].code != read.before[i].code:
            stores.append(f"buffer[{row * lanes} + lane] = {read.after[i].code}")
    for name, text in summary.items():
        place = f"buffer[{layout.summary_row(name) * lanes} + lane]"
        if f"old_{name}0" in used:
            loads.append(f"old_{name}0 = {place}")
        stores.append(f"{place} = {text}")
    for name, code in outputs.items():
        cast = code if name in ("scale", "energy") else f"int8({code})"
        stores.append(f"{name}[row * {lanes} + lane] = {cast}")
    for k, window in enumerate(read.windows):
        loads += [f"base{k} = place[{3 * k}]", f"length{k} = place[{3 * k + 1}]", f"first{k} = place[{3 * k + 2}]"]
        if window.moved != "False" and window.added is not None:
            stores += [
                f"if {window.moved}:",
                f"    win[first{k}] = {window.added.code}",
                f"    win[first{k} + length{k}] = {window.added.code}",
                f"    place[{3 * k + 2}] = first{k} + 1 if first{k} + 1 < base{k} + length{k} else base{k}",
            ]
    telemetry = [
        f"{prefix}{i} = seen[{i}, row{' + 1' if prefix == 'now' else ''}]"
        for prefix in ("now", "before")
        for i in range(len(CHANNELS) + len(meta(guard.sensor).extra))
        if f"{prefix}{i}" in used
    ]
    body = "\n".join(f"                {line}" for line in [*loads, *_rendered(lines), *stores])
    before_all = [*all_loads.values(), *_rendered(prologue)]
    before_all += [f"{place} = {name}" for name, place in derived_at.items()]
    uniform = "\n".join(f"            {line}" for line in telemetry)
    names = [part.name for part in (meta(guard.sensor), meta(guard.analyzer), meta(guard.policy))]
    types = {name: "float64" if name in ("scale", "energy") else "int8" for name in outputs}
    text = _TEMPLATE.format(
        names=", ".join(names),
        generator=GENERATOR,
        versions=_versions(),
        word_rows=WORD_ROWS,
        lanes=lanes,
        prologue="\n".join(f"        {line}" for line in before_all) or "        pass",
        uniform=uniform,
        body=body,
        bits=layout.summary_row("unsafe_bits") * lanes,
        more_arguments="".join(f", {name}" for name in types),
        more_types="".join(f", {kind}[::1]" for kind in types.values()),
    )
    return Source(text, layout)


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
            if "/" in line.text or "sqrt" in line.text or names & costly:
                costly.add(line.target)
    needed = wanted.union(*(_read_by(line) for line in lines if line.target not in costly))
    derived = [line.target for line in lines if line.target in costly & needed]
    return derived, pruned([line for line in lines if line.target in fixed], set(derived))


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

    fault = "old_fault0"
    if inliner.faults:
        raised = inliner.faults[0]
        for other in inliner.faults[1:]:
            raised = emit(f"{raised} | {other}")
        fault = "1.0" if raised == "True" else emit(f"select({raised}, 1.0, old_fault0)")
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
"""{names}; {lanes} candidates. Generated by lbw-sim, generator {generator}; {versions}."""
import math

from numba import boolean, float64, int8, int64, njit, types
from numba.extending import intrinsic
from numpy import ceil as round_ceil, floor as round_floor, trunc as round_trunc

inf, nan = math.inf, math.nan


@intrinsic
def select(typing_context, test, yes, no):
    """yes if test else no, without a branch."""
    def codegen(context, builder, signature, arguments):
        return builder.select(*arguments)
    return float64(boolean, float64, float64), codegen


@njit(
    types.void(float64[:, ::1], int64, int64, float64[::1], float64[::1], float64[::1], int64[::1]{more_types}),
    cache=True, nogil=True, error_model="numpy",
)
def kernel(seen, begin, end, buffer, words, win, place{more_arguments}):
    for lane in range({lanes}):
{prologue}
    word = 0
    start = begin
    while start < end:
        stop = min(start + {word_rows}, end)
        for row in range(start, stop):
{uniform}
            for lane in range({lanes}):
{body}
        for lane in range({lanes}):
            words[word * {lanes} + lane] = buffer[{bits} + lane]
            buffer[{bits} + lane] = 0.0
        word += 1
        start = stop
'''


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
    """The machine code of a kernel's text, from the cache or made now, in about a second. Raises CannotInline."""
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


__all__ = ["CannotInline", "Const", "Layout", "Source", "cache_folder", "compiled", "source", "structure"]
