"""Closed loop: guards flying plants, compiled; every guard × plant × schedule × seed in one call.

A rollout says what the plant does under the guard, and in how far that lies within what the plant was fitted on. It
never says what a real run would do: how far a plant may be trusted is measured elsewhere, on runs that it was not
fitted on. All guards and plants of one seed meet the same noise, so that their differences are not chance.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.cores import usable_cores
from lbw_sim.errors import SimulateError
from lbw_sim.guard import GuardSpec
from lbw_sim.params import meta
from lbw_sim.replay import kernel_files, kernels
from lbw_sim.replay.compiled import CompileWarning
from lbw_sim.replay.step import numbers_of
from lbw_sim.replay.symbolic import CannotInline
from lbw_sim.simulate.loop import ENDED, Loop, Playback, StepInputs, StepOutputs
from lbw_sim.simulate.spec import PlantSpec

Engine = Literal["auto", "compiled", "python"]
Progress = Callable[[int, int], None]

LANES = 32
"""Candidates side by side."""
BLOCK_ROWS = 256
"""Rows whose inputs are laid out at a time: they stay in the core's cache."""
WORTH_COMPILING = 40_000
"""Candidate-steps below which plain Python is done before a compiler has been loaded."""
RESULTS = (
    "ended", "steps", "final_loss", "dead", "energy", "damped_steps", "skipped_steps", "lowest_scale", "above_steps",
    "below_steps", "late_steps", "sudden_steps",
)  # fmt: skip
"""Fields of `LoopState` that a rollout reports."""
_WAYS_OUT = ("above", "below", "sudden", "late")
_OUTSIDE = np.array(
    [" ".join(why for bit, why in enumerate(_WAYS_OUT) if which >> bit & 1) for which in range(2 ** len(_WAYS_OUT))]
)
"""`Rollouts.outside` by the ways out, one bit each."""
_ROWS = {name: "int8" if name in ("regime", "posture") else "float64" for name in StepOutputs._fields}


class Noise(NamedTuple):
    """The chance that rollouts meet, in standard units. Both [seeds, steps]."""

    batch: NDArray[np.float64]
    """Difficulty of each batch."""
    walk: NDArray[np.float64]
    """What is random in the weights."""


class Rollouts(NamedTuple):
    """What came of rollouts. Arrays are [plants, guards, schedules, seeds]."""

    plants: tuple[PlantSpec, ...]
    guards: tuple[GuardSpec, ...]
    schedules: tuple[str, ...]
    seeds: int
    ended: NDArray[np.str_]
    """`completed`; `diverged`: the loss went out of bounds; `cut`: we stopped watching, because the guard asked for a
    rollback, which no plant can fly, or because the calibrated range was left and that was to be the end."""
    steps: NDArray[np.int64]
    """Steps until the end."""
    final_loss: NDArray[np.float64]
    """Expected loss of the last step, without the batch's difficulty; infinite when diverged."""
    dead: NDArray[np.bool_]
    """Damaged for good, of plants that know damage."""
    energy: NDArray[np.float64]
    """Control energy, the sum of (1 - scale)²."""
    damped_steps: NDArray[np.int64]
    skipped_steps: NDArray[np.int64]
    lowest_scale: NDArray[np.float64]
    outside_steps: NDArray[np.int64]
    """Steps on which the effective learning rate lay outside the calibrated range, changed more suddenly than in
    calibration, or that came later than its longest run; a step may count more than once. 0 for a plant without
    calibration would say nothing: there it is -1."""
    outside: NDArray[np.str_]
    """Why: any of `above`, `below`, `sudden`, `late`, joined by a space; or `uncalibrated`."""
    rows: tuple[dict[str, NDArray[Any]], ...]
    """With `rows=True`, per rollout in C order of the arrays: field of `StepOutputs` -> one value per step."""

    @property
    def left_range(self) -> NDArray[np.bool_]:
        """Whether a rollout left what the plant was fitted on; true without calibration."""
        return np.asarray(self.outside != "")


def drawn_noise(seeds: int, steps: int, first_seed: int = 0) -> Noise:
    """Independent standard normal noise; each seed's is the same whatever else is asked for.

    >>> bool((drawn_noise(2, 5).batch[1] == drawn_noise(1, 5, first_seed=1).batch[0]).all())
    True
    """
    both = [np.random.default_rng((5, first_seed + seed)).standard_normal((steps, 2)) for seed in range(seeds)]
    stacked = np.stack(both) if both else np.empty((0, steps, 2))
    return Noise(np.ascontiguousarray(stacked[:, :, 0]), np.ascontiguousarray(stacked[:, :, 1]))


def rollouts(
    plants: Sequence[PlantSpec],
    guards: Sequence[GuardSpec],
    schedules: Mapping[str, NDArray[np.float64]],
    noise: Noise,
    *,
    stop_outside: bool = False,
    rows: bool = False,
    progress: Progress | None = None,
    threads: int | None = None,
    engine: Engine = "auto",
) -> Rollouts:
    """Fly every guard on every plant along every schedule with every seed of the noise.

    `schedules`: name -> learning rate per step; the noise has to be as long as the longest. `stop_outside`: cut a
    rollout where it leaves the calibrated range. `rows`: keep every step. `progress` is called with candidate-steps
    done and in all. Results depend on neither `threads` nor `engine`.

    Warns with CompileWarning about guards that run in plain Python. Raises ChannelError when a guard needs what a plant
    does not deliver, SimulateError when noise or schedules do not fit.

    >>> from lbw_sim.simulate.spec import PlantSpec
    >>> flown = rollouts(
    ...     [PlantSpec.load("noisy_quadratic")],
    ...     [GuardSpec.load("never")],
    ...     {"low": np.full(50, 1e-3), "high": np.full(50, 3e-2)},
    ...     drawn_noise(1, 50),
    ... )
    >>> flown.ended[0, 0, :, 0].tolist()
    ['completed', 'diverged']
    """
    lrs = {name: np.ascontiguousarray(lr, dtype=np.float64) for name, lr in schedules.items()}
    longest = max((len(lr) for lr in lrs.values()), default=0)
    problems = [f"schedule {name!r} has no step" for name, lr in lrs.items() if lr.ndim != 1 or not len(lr)]
    problems += [f"schedule {name!r} holds a rate that is not finite or below 0"
                 for name, lr in lrs.items() if not (np.isfinite(lr) & (lr >= 0)).all()]  # fmt: skip
    if noise.batch.shape != noise.walk.shape or noise.batch.ndim != 2 or noise.batch.shape[1] < longest:
        problems.append(f"noise of shape {noise.batch.shape} does not cover {longest} steps; give [seeds, steps]")
    if problems:
        raise SimulateError("; ".join(problems))
    built = [spec.build() for spec in guards]
    loops = []
    for spec in plants:
        plant = spec.build()
        within = {} if spec.fitted is None else spec.fitted.limits()
        for guard in built:
            guard.require((*meta(plant).emits, "lr", "nonfinite"), f"plant {spec.name!r}")
            loops.append(Loop(guard=guard, plant=plant, stop_outside=int(stop_outside), **within))
    shape = (len(plants), len(guards), len(lrs), len(noise.batch))
    cells = list(product(range(len(loops)), range(len(lrs)), range(len(noise.batch))))
    table = np.empty((len(cells), len(RESULTS)))
    kept: list[dict[str, NDArray[Any]]] = [{} for _ in cells] if rows else []
    rates = list(lrs.values())
    chunks = _chunks(loops, rates, cells, rows, engine)
    total, done, lock, stop = sum(len(rates[cell[1]]) for cell in cells), 0, threading.Lock(), threading.Event()

    def fly(chunk: _Chunk) -> None:
        nonlocal done
        table[chunk.cells], shown = _fly(chunk, loops, rates, noise, cells, rows, stop)
        for cell, one in zip(chunk.cells, shown, strict=rows):
            kept[cell] = one
        with lock:
            done += sum(len(rates[cells[cell][1]]) for cell in chunk.cells)
            if progress is not None:
                progress(done, total)

    count = usable_cores() if threads is None else threads
    try:
        if count > 1 and len(chunks) > 1:
            with ThreadPoolExecutor(count) as pool:
                try:
                    list(pool.map(fly, chunks))
                finally:
                    pool.shutdown(cancel_futures=True)
        else:
            for chunk in chunks:
                fly(chunk)
    finally:
        stop.set()
    results = dict(zip(RESULTS, np.moveaxis(table.reshape(*shape, len(RESULTS)), -1, 0), strict=True))
    counts = np.array([results[f"{why}_steps"] for why in _WAYS_OUT]).astype(np.int64)
    outside_steps = counts.sum(axis=0)
    which = (1 << np.arange(len(_WAYS_OUT))) @ (counts > 0).reshape(len(_WAYS_OUT), -1)
    outside = _OUTSIDE[which].reshape(shape)
    for place, spec in enumerate(plants):
        if spec.fitted is None:
            outside[place], outside_steps[place] = "uncalibrated", -1
    return Rollouts(
        plants=tuple(plants),
        guards=tuple(guards),
        schedules=tuple(lrs),
        seeds=len(noise.batch),
        ended=np.array(ENDED)[results["ended"].astype(np.int64)],
        steps=results["steps"].astype(np.int64),
        final_loss=results["final_loss"],
        dead=results["dead"] == 1.0,
        energy=results["energy"],
        damped_steps=results["damped_steps"].astype(np.int64),
        skipped_steps=results["skipped_steps"].astype(np.int64),
        lowest_scale=results["lowest_scale"],
        outside_steps=outside_steps,
        outside=outside,
        rows=tuple(kept),
    )


_sources: dict[Any, kernels.Source] = {}


def loop_kernel(
    subject: Loop | Playback, inputs: type, results: Sequence[str], outputs: Mapping[str, str], lanes: int
) -> kernels.Source:
    """`kernels.loop_source`, which takes longer than many a rollout, once per structure while it fits.

    A start of the state that it does not fit, as parameters may bring, has one of its own.
    """
    parts = [kernels.class_tree(subject.plant)]
    if isinstance(subject, Loop):
        parts.append(kernels.structure(subject.guard))
    alike = (type(subject), *parts, tuple(outputs), lanes)
    found = _sources.get(alike)
    if found is not None and not kernels.start(found.layout, [subject]).unfit[0]:
        return found
    own = (*alike, tuple(numbers_of(subject.init())))
    if own not in _sources:
        _sources[own] = kernels.loop_source(subject, inputs, results, outputs, lanes)
    _sources.setdefault(alike, _sources[own])
    return _sources[own]


class _Chunk(NamedTuple):
    """Rollouts of one structure and length that run side by side."""

    cells: list[int]
    source: kernels.Source | None
    """None: plain Python."""
    start: kernels.Start | None
    """Shared by all chunks of the same loops, so only copied; None with plain Python."""


def _chunks(
    loops: Sequence[Loop], rates: Sequence[NDArray[np.float64]], cells: Sequence[tuple[int, int, int]], rows: bool,
    engine: Engine,
) -> list[_Chunk]:  # fmt: skip
    alike: dict[Any, list[int]] = {}
    kinds = [(kernels.structure(loop.guard), kernels.class_tree(loop.plant)) for loop in loops]
    for place, (loop, schedule, _) in enumerate(cells):
        alike.setdefault((kinds[loop], len(rates[schedule])), []).append(place)
    chunks = []
    for (_, steps), members in alike.items():
        source = None
        if engine == "compiled" or (engine == "auto" and steps * len(members) >= WORTH_COMPILING):
            first_loop = loops[cells[members[0]][0]]
            try:
                source = loop_kernel(
                    first_loop, StepInputs, RESULTS, _ROWS if rows else {}, LANES if len(members) > 1 else 1
                )
                kernel_files.compiled(source.text)
            except (CannotInline, OSError) as reason:
                source = None
                warnings.warn(f"simulated in plain Python: {reason}", CompileWarning, stacklevel=3)
        starts: dict[tuple[int, ...], kernels.Start] = {}
        for chunk in _side_by_side(members, cells, source.layout.lanes if source else 1):
            flying = tuple(cells[cell][0] for cell in chunk)
            # many seeds of the same guards and plants begin alike
            if source and flying not in starts:
                starts[flying] = kernels.start(source.layout, [loops[loop] for loop in flying])
            chunks.append(_Chunk(chunk, source, starts.get(flying)))
    return chunks


def _side_by_side(members: Sequence[int], cells: Sequence[tuple[int, int, int]], lanes: int) -> Iterator[list[int]]:
    """Cells that share their lanes: as many guards on one schedule and seed, which are laid out once for all of them;
    the guards that are left, one after the other, on neighbouring seeds."""
    by_loop: dict[int, list[int]] = {}
    for cell in members:
        by_loop.setdefault(cells[cell][0], []).append(cell)
    lines = list(by_loop.values())
    whole = len(lines) // lanes * lanes if lanes > 1 else 0
    for first in range(0, whole, lanes):
        yield from map(list, zip(*lines[first : first + lanes], strict=True))
    rest = [cell for line in lines[whole:] for cell in line]
    for first in range(0, len(rest), lanes):
        yield rest[first : first + lanes]


def _fly(
    chunk: _Chunk, loops: Sequence[Loop], rates: Sequence[NDArray[np.float64]], noise: Noise,
    cells: Sequence[tuple[int, int, int]], rows: bool, stop: threading.Event,
) -> tuple[NDArray[np.float64], list[dict[str, NDArray[Any]]]]:  # fmt: skip
    """`RESULTS` of every cell, and with `rows` their steps."""

    def reference(cell: int) -> tuple[list[float], dict[str, NDArray[Any]]]:
        loop, schedule, seed = cells[cell]
        return _reference(loops[loop], rates[schedule], noise.batch[seed], noise.walk[seed], rows)

    if chunk.source is None or chunk.start is None:
        found = [reference(cell) for cell in chunk.cells]
        return np.array([results for results, _ in found]), [shown for _, shown in found] if rows else []
    layout, lanes = chunk.source.layout, chunk.source.layout.lanes
    kernel = kernel_files.compiled(chunk.source.text)
    start = chunk.start.again()
    # lanes without a candidate repeat the last one
    padded = [cells[cell] for cell in chunk.cells] + [cells[chunk.cells[-1]]] * (lanes - len(chunk.cells))
    _, schedules, seeds = np.array(padded).T
    flown = sorted(set(schedules.tolist()))
    tables = {
        "lr": (np.stack([rates[schedule] for schedule in flown]), _chosen(np.searchsorted(flown, schedules))),
        "batch": (noise.batch, _chosen(seeds)),
        "walk": (noise.walk, _chosen(seeds)),
    }
    steps = len(rates[flown[0]])
    outputs = [kernels.cache_aligned(steps * lanes, kind) for kind in (_ROWS.values() if rows else ())]
    inputs = kernels.cache_aligned((len(StepInputs._fields), BLOCK_ROWS, lanes))
    for begin in range(0, steps, BLOCK_ROWS):
        if stop.is_set():
            raise KeyboardInterrupt
        length = min(BLOCK_ROWS, steps - begin)
        for name in layout.inputs:
            table, chosen = tables[name]
            # a step's numbers of all lanes side by side
            inputs[StepInputs._fields.index(name), :length] = table[chosen, begin : begin + length].T
        kernel(
            inputs, 0, length, start.buffer, start.win, start.place, *(out[begin * lanes :] for out in outputs)
        )  # fmt: skip
    table = start.buffer.reshape(layout.rows, lanes)
    results = table[list(layout.results), : len(chunk.cells)].T
    by_name = {name: out.reshape(steps, lanes).T for name, out in zip(_ROWS, outputs, strict=rows)}
    shown = [{name: values[lane].copy() for name, values in by_name.items()} for lane in range(len(results) * rows)]
    faults = start.unfit | (table[layout.summary_row("fault")] != 0.0)
    for lane in np.flatnonzero(faults[: len(results)]).tolist():
        results[lane], slow = reference(chunk.cells[lane])
        if rows:
            shown[lane] = slow
    return results, shown


def _chosen(lines: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Lines of a table, one per lane, as a slice where that does: one line for all lanes, or neighbours."""
    first = int(lines[0])
    if (lines == first).all():
        return slice(first, first + 1)
    return slice(first, first + len(lines)) if (lines == first + np.arange(len(lines))).all() else lines


def _reference(
    loop: Loop, lr: NDArray[np.float64], batch: NDArray[np.float64], walk: NDArray[np.float64], rows: bool
) -> tuple[list[float], dict[str, NDArray[Any]]]:
    """One rollout in plain Python: what every faster way has to equal."""
    state, shown = loop.init(), []
    for inputs in zip(lr.tolist(), batch.tolist(), walk.tolist(), strict=False):
        state, output = loop.step(state, StepInputs(*inputs))
        if rows:
            shown.append(output)
    kept: dict[str, NDArray[Any]] = {}
    if rows:
        kept = {
            name: np.array(values, _ROWS[name]) for name, values in zip(_ROWS, zip(*shown, strict=True), strict=True)
        }
    return [float(getattr(state, name)) for name in RESULTS], kept
