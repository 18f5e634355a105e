"""One compiled kernel for all guards of one structure: the time loop outside, candidates side by side inside.

The kernel's source is generated from `Guard.seen` and `Guard.step` themselves and everything that they call; nobody
writes one by hand.

What decides whether the loop vectorises, each failing silently by 4 to 10 times: one flat buffer with row offsets known
when compiling, choices instead of branches and conditional stores. Fast-math stays off and nothing is contracted to a
fused multiply-add: every candidate gets the bits that Python gets.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.guard import Guard
from lbw_sim.guard.guard import GuardState
from lbw_sim.params import meta
from lbw_sim.replay.arrangement import Layout, arrange, in_cache, indented, lane_index, over_lanes
from lbw_sim.replay.inlining import Inliner
from lbw_sim.replay.kernel_files import versions
from lbw_sim.replay.step import Bound, Read, number_places, numbers_of, read_step, settled, windows_of
from lbw_sim.replay.symbolic import CannotInline, Items, Num, Part, Record
from lbw_sim.replay.writing import Writer
from lbw_sim.values import UNSAFE_REGIMES, Posture, Regime, Telemetry, nan

GENERATOR = 3
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


def source(guard: Guard, lanes: int, rows: bool) -> Source:
    """The kernel of a guard's structure. Raises CannotInline, naming the component and the construct.

    `lanes`: at most; `rows`: also write every decision, not only what they add up to.
    """
    read, bounds = settled(guard.init(), lambda bounds: _read(guard, bounds))
    return _write(guard, read, bounds, lanes if not read.windows else 1, rows)


def _read(guard: Guard, bounds: Sequence[Bound]) -> Read:
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

    return read_step(guard.init(), bounds, call, ("regime", "posture", "scale", "energy", "reason"))


def _write(guard: Guard, read: Read, bounds: Sequence[Bound], lanes: int, rows: bool) -> Source:
    writer, decision = read.writer, read.output
    for name in ("regime", "posture", "reason"):
        whole, code = decision[name].whole, decision[name].code
        if not (whole and decision[name].low >= 0.0 and decision[name].high <= LARGEST_CODE):
            within = writer.emit(f"({code} >= 0.0) & ({code} <= {LARGEST_CODE}.0)")
            writer.faults.append(writer.emit(f"not {within}"))
            writer.faults.append(writer.emit(f"round_trunc({code}) != {code}"))
    summary = _summary(writer, decision)
    types = {name: "float64" if name in ("scale", "energy") else "int8" for name in (decision if rows else ())}
    outputs = {name: (decision[name].code, kind) for name, kind in types.items()}
    made = in_cache(lanes, lambda lanes: arrange(read, bounds, lanes, summary, outputs, wanted=set()))
    lanes = made.layout.lanes
    telemetry = [
        f"{prefix}{i} = seen[{i}, row{' + 1' if prefix == 'now' else ''}]"
        for prefix in ("now", "before")
        for i in range(len(CHANNELS) + len(meta(guard.sensor).extra))
        if f"{prefix}{i}" in made.used
    ]
    names = [part.name for part in (meta(guard.sensor), meta(guard.analyzer), meta(guard.policy))]
    bits = made.layout.summary_row("unsafe_bits")
    word = [
        f"words[{lane_index('word', lanes)}] = buffer[{lane_index(bits, lanes)}]",
        f"buffer[{lane_index(bits, lanes)}] = 0.0",
    ]
    body = [
        *over_lanes([made.prologue], lanes),
        "word = 0",
        f"for start in range(begin, end, {WORD_ROWS}):",
        f"    for row in range(start, min(start + {WORD_ROWS}, end)):",
        *indented(indented([*telemetry, *over_lanes(made.bodies, lanes)])),
        *indented([*over_lanes([word], lanes), "word = word + 1"]),
    ]
    arguments = {
        "seen": "float64[:, ::1]", "begin": "int64", "end": "int64", "buffer": "float64[::1]", "words": "float64[::1]",
        "win": "float64[::1]", "place": "int64[::1]", **{name: f"{kind}[::1]" for name, kind in types.items()},
    }  # fmt: skip
    return Source(_text(", ".join(names), lanes, arguments, body), made.layout)


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
    read, bounds = settled(start, lambda bounds: read_step(start, bounds, call, tuple(outputs)))
    lanes = lanes if not read.windows else 1
    writer = read.writer
    # the results have to be in the buffer, even those that no step reads
    places = number_places(start)
    kept = [places[name] for name in results]
    wanted = {read.after[i].code for i in kept}
    written = {}
    for name, kind in outputs.items():
        found = read.output[name]
        if kind != "float64" and not (found.whole and found.low >= 0.0 and found.high <= LARGEST_CODE):
            writer.faults.append(writer.emit(f"not ({found.code} >= 0.0) & ({found.code} <= {LARGEST_CODE}.0)"))
        written[name] = (found.code, kind)
    lane = "0" if lanes == 1 else "lane"
    loaded = {f"now{i}": f"now{i} = inputs[{i}, row, {lane}]" for i in range(len(fields))}
    summary = {"fault": _fault(writer)}
    made = in_cache(lanes, lambda lanes: arrange(read, bounds, lanes, summary, written, wanted, kept, loaded))
    lanes = made.layout.lanes
    body = [
        *over_lanes([made.prologue], lanes),
        "for row in range(begin, end):",
        *indented(over_lanes(made.bodies, lanes)),
    ]
    arguments = {
        "inputs": "float64[:, :, ::1]", "begin": "int64", "end": "int64", "buffer": "float64[::1]",
        "win": "float64[::1]", "place": "int64[::1]", **{name: f"{kind}[::1]" for name, kind in outputs.items()},
    }  # fmt: skip
    text = _text(type(subject).__name__, lanes, arguments, body)
    read_inputs = tuple(name for i, name in enumerate(fields) if f"now{i}" in made.used)
    result_rows = tuple(len(made.layout.parameters) + made.layout.state.index(place) for place in kept)
    return Source(text, made.layout._replace(inputs=read_inputs, results=result_rows))


def _fault(writer: Writer) -> str:
    """Whether Python would have raised on this step or an earlier one."""
    if not writer.faults:
        return "old_fault0"
    raised = writer.faults[0]
    for other in writer.faults[1:]:
        raised = writer.emit(f"{raised} | {other}")
    return "1.0" if raised == "True" else writer.emit(f"select({raised}, 1.0, old_fault0)")


def _summary(writer: Writer, decision: dict[str, Num]) -> dict[str, str]:
    """Entry of `SUMMARY` -> its new value."""
    emit = writer.emit
    regime, posture, scale = (decision[name].code for name in ("regime", "posture", "scale"))
    safe = [emit(f"{regime} != {float(r)!r}") for r in Regime if r not in UNSAFE_REGIMES]
    unsafe = safe[0]
    for other in safe[1:]:
        unsafe = emit(f"{unsafe} & {other}")

    def counted(name: str, test: str) -> str:
        return emit(f"old_{name}0 + {emit(f'select({test}, 1.0, 0.0)')}")

    fault = _fault(writer)
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
        versions=versions(),
        names=", ".join(arguments),
        body="\n".join(body),
        passed=", ".join(f"{name}={name}" for name in arguments),
        types=", ".join(arguments.values()),
    )


@cache
def _lowering() -> str:
    # not imported: that takes longer than many a replay
    return Path(__file__).with_name("lowering.py").read_text(encoding="utf-8")


def cache_aligned(shape: int | tuple[int, ...], kind: type | str = np.float64) -> NDArray[Any]:
    """An array for kernels, its numbers not set: its first begins a cache line, and so does every row of 8 lanes.

    numpy begins where 16 bytes do, so that every second vector lies across two lines: 10 to 30 % of a step.
    """
    wanted = np.dtype(kind)
    size = (shape if isinstance(shape, int) else math.prod(shape)) * wanted.itemsize
    memory = np.empty(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].view(wanted).reshape(shape)


class Start(NamedTuple):
    """A kernel's memory before the first row."""

    buffer: NDArray[np.float64]
    win: NDArray[np.float64]
    place: NDArray[np.int64]
    unfit: NDArray[np.bool_]
    """Which candidates the kernel's assumptions do not fit."""

    def again(self) -> Start:
        """The same, for a kernel to write over."""
        buffer = cache_aligned(self.buffer.size)
        buffer[:] = self.buffer
        return Start(buffer, self.win.copy(), self.place.copy(), self.unfit)


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
    table = cache_aligned((layout.rows, lanes))
    table[len(columns[0]) :] = 0.0
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
    return _EXTRACTION.format(generator=GENERATOR, versions=versions(), word_rows=WORD_ROWS)


def telemetry_before_the_first_step(extra: int) -> list[float]:
    """The first column of the matrix that a kernel reads."""
    return [float(getattr(Telemetry(-1), name)) for name in CHANNELS] + [nan] * extra
