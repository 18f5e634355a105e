"""Where every number of a step stands in a kernel's flat buffer, and in which order its lines run.

It changes no line: what is computed is settled, and every order that it may choose gives the same bits. What costs by
a half when chosen badly: pieces too long for a core to see the next lanes beyond them (`LONGEST_PIECE`), values that
wait long for their reader, and the masked stores that LLVM makes of a choice between a new value and the old one
(`opaque`): microcode on many AMD cores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from lbw_sim.replay.lines import Line, names_in, needed_by, pruned
from lbw_sim.replay.step import Bound, Read

_BOOLEAN = re.compile(r" ([<>]=?|[=!]=|[&|]) |^not ")
LONGEST_PIECE = 60
"""Lines of a step beyond which it is cut into pieces: so few that a core works on several lanes' at once, so many that
few values cross; measured in `benchmarks/rollout.py`."""
MOST_WAITING = 7
"""Values that a piece holds at a time, beyond which it runs over a vector of lanes after the other: of four vectors
abreast, no result of one waits for another's, but their values fill the registers. Measured there: 10 to 30 %."""
LARGEST_BUFFER = 24 * 1024
"""Bytes of state of all lanes, beyond which half as many fly: together with a step's inputs they stay in a core's first
cache, 32 KiB on many. Measured: 10 to 20 % of a step."""


class Layout(NamedTuple):
    """What stands where in a kernel's flat buffer: row r of candidate c is at r × lanes + c."""

    lanes: int
    parameters: tuple[str, ...]
    """Dotted paths, from row 0 on."""
    state: tuple[int, ...]
    """Which of the state's numbers, in depth-first order; those that no decision depends on are left out."""
    bounds: tuple[Bound, ...]
    """Of these numbers at the start. The text was made on that assumption."""
    windows: int
    """How many windows the state holds."""
    derived: int
    """Rows for what the kernel itself computes from parameters alone, once and not at every step."""
    summary: tuple[str, ...]
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


class Arranged(NamedTuple):
    """A step as lines on one flat buffer."""

    layout: Layout
    prologue: list[str]
    """Run once per candidate, before the first step."""
    bodies: list[list[str]]
    """Run per step, each over all candidates before the next one."""
    used: set[str]
    """Every name that something asked for depends on, inputs included."""


def in_cache(lanes: int, arranged: Callable[[int], Arranged]) -> Arranged:
    """A step for as many lanes as wanted, or for half of them."""
    made = arranged(lanes)
    return made if made.layout.rows * lanes * 8 <= LARGEST_BUFFER else arranged(max(1, lanes // 2))


def arrange(
    read: Read,
    bounds: Sequence[Bound],
    lanes: int,
    summary: dict[str, str],
    outputs: dict[str, tuple[str, str]],
    wanted: set[str],
    kept: Sequence[int] = (),
    inputs: Mapping[str, str] = MappingProxyType({}),
) -> Arranged:
    """Keep what is asked for, and give everything its place.

    `summary`: entry -> its new value; `outputs`: array written at every step -> value and type; `wanted`: further names
    that are asked for; `kept`: numbers of the state that stay in the buffer whether or not a step reads them; `inputs`:
    name -> text by which a candidate loads it.
    """
    # a number of the state is needed when something that is asked for depends on it, through any number of steps
    wanted = wanted | {*summary.values(), *(code for code, _ in outputs.values())}
    for window in read.windows:
        wanted |= {window.moved} | ({window.added.code} if window.added else set())
    live: set[int] = set(kept)
    while True:
        needed = needed_by(read.writer.lines, wanted | {read.after[i].code for i in live})
        found = {i for i, number in enumerate(read.before) if number.code in needed}
        if found <= live:
            break
        live |= found
    state = tuple(sorted(live))
    wanted |= {read.after[i].code for i in state}
    lines = pruned(read.writer.lines, wanted)
    used = needed_by(read.writer.lines, wanted)
    parameters = {path: number.code for path, number in read.parameters.items() if number.code in used}
    derived, prologue = _derived(lines, set(parameters.values()), wanted)
    start_bounds = tuple(bounds[i] for i in state)
    layout = Layout(lanes, tuple(parameters), state, start_bounds, len(read.windows), len(derived), tuple(summary))
    lines = pruned([line for line in lines if line.target not in derived], wanted)

    places = {code: row for row, code in enumerate(parameters.values())}
    places |= {name: layout.rows - len(derived) + i for i, name in enumerate(derived)}
    places |= {read.before[i].code: row for row, i in enumerate(state, start=len(parameters))}
    places |= {f"old_{name}0": layout.summary_row(name) for name in summary}
    stores: list[_Store] = []
    for i in state:
        before, after = read.before[i].code, read.after[i].code
        if after != before:
            stores.append(_Store(f"buffer[{lane_index(places[before], lanes)}] = opaque({after})", {after}, before))
    for name, text in summary.items():
        stores.append(
            _Store(f"buffer[{lane_index(layout.summary_row(name), lanes)}] = opaque({text})", {text}, f"old_{name}0")
        )
    for name, (code, kind) in outputs.items():
        cast = code if kind == "float64" else f"{kind}({code})"
        stores.append(_Store(f"{name}[{lane_index('row', lanes)}] = {cast}", {code}, ""))
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
    before_all = [f"{name} = buffer[{lane_index(places[name], lanes)}]" for name in parameters.values()]
    before_all += _rendered(prologue)
    before_all += [f"buffer[{lane_index(places[name], lanes)}] = {name}" for name in derived if name not in fixed]
    return Arranged(layout._replace(spilled=spilled), before_all, bodies, used)


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
                loads[name] = f"{name} = buffer[{lane_index(row, lanes)}]{test}"
        waiting = [store for i, store in enumerate(stores) if at[i] == piece]
        for name, row in spills.items():
            if defined[name] == piece:
                value = f"select({name}, 1.0, 0.0)" if name in boolean else name
                waiting.append(_Store(f"buffer[{lane_index(row, lanes)}] = {value}", {name}, ""))
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


def lane_index(row: int | str, lanes: int) -> str:
    """Where a lane's number lies in an array of rows of all lanes. One lane alone needs no loop: every line less is
    time of the compiler."""
    if lanes == 1:
        return f"{row}"
    return f"{row * lanes} + lane" if isinstance(row, int) else f"{row} * {lanes} + lane"


def over_lanes(bodies: Sequence[Sequence[str]], lanes: int) -> list[str]:
    """Each body over all lanes, one after the other."""
    if lanes == 1:
        return [line for body in bodies for line in body]
    lines = []
    for body in bodies:
        if body:
            lines += [f"for lane in {_how(body, lanes)}({lanes}):", *indented(body)]
    return lines


def _how(body: Sequence[str], lanes: int) -> str:
    """The kind of loop: `abreast` where 16 lanes at a time fit into the registers."""
    if lanes % 16 or any(line.endswith(":") for line in body):
        return "range"
    last_read = {name: i for i, line in enumerate(body) for name in names_in(line.partition(" = ")[2])}
    waiting: set[str] = set()
    most = 0
    for i, line in enumerate(body):
        waiting = {name for name in waiting | names_in(line.partition(" = ")[0]) if last_read.get(name, -1) > i}
        most = max(most, len(waiting))
    return "abreast" if most <= MOST_WAITING else "range"


def indented(lines: Iterable[str]) -> list[str]:
    """The lines, one level deeper."""
    return [f"    {line}" for line in lines]


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


def _read_by(line: Line) -> set[str]:
    return names_in(line.text).union(*(_read_by(inner) for inner in line.body))


def _rendered(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        if line.body:
            yield line.text
            yield from (f"    {inner}" for inner in _rendered(line.body))
        else:
            yield f"{line.target} = {line.text}"
