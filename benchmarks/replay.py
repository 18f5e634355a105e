"""What replaying a guard costs per candidate-step: plain Python, compiled one by one, compiled in lanes, and in C.

    python benchmarks/replay.py

One thread, float64, the preset `zscore`, every candidate with parameters of its own, summary without rows. All energies
are checked against plain Python's. Below, other presets in lanes beside their own plain Python. Times are of this
machine and its other users; the ratios, taken in one run with the ways in turn, travel.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.params import params_of
from lbw_sim.replay import compiled, kernel_files, kernels
from lbw_sim.replay.reference import decide

ROWS = 20_000
CANDIDATES = 128
TURNS = 15
PYTHON_ROWS = 3_000
LANES = (16, 32, 64, 128)
GUARD = "zscore"
"""The preset that is also written in C; about the size of a rule that people use."""
C_SOURCE = Path(__file__).with_name("replay_zscore_guard.c")


def columns() -> dict[str, np.ndarray[Any, Any]]:
    """A falling loss with noise, spikes, a level shift, swings and a few values that are not finite."""
    rng = np.random.default_rng(0)
    loss = 3.0 + np.exp(-np.arange(ROWS) / 4e3) + 0.03 * rng.standard_normal(ROWS)
    for start in rng.integers(0, ROWS - 50, 40):
        loss[start : start + 20] += rng.uniform(0.2, 3.0)
    loss[ROWS // 2 :] += 0.4
    loss[9_000:9_200] += 0.5 * np.sin(3.0 * np.arange(200))
    loss[rng.integers(0, ROWS, 20)] = np.nan
    return {
        "step": np.arange(ROWS),
        "loss": loss,
        "lr": np.full(ROWS, 1e-3),
        "grad_norm": rng.lognormal(0.0, 0.3, ROWS),
        "update_norm": rng.lognormal(0.0, 0.3, ROWS),
        "tokens": np.full(ROWS, 8192.0),
        "nonfinite": (~np.isfinite(loss)).astype(float),
    }


def candidates() -> list[Guard]:
    """The guard with every continuous parameter moved a little."""
    rng = random.Random(0)
    base = GuardSpec.load(GUARD)
    guards = []
    for _ in range(CANDIDATES):
        changes: dict[str, object] = {}
        for table in ("sensor", "analyzer", "policy", "envelope"):
            for name, info in params_of(getattr(base.build(), table)).items():
                value = min(info.high, max(info.low, info.default * rng.uniform(0.7, 1.4)))
                changes[f"{table}.{name}"] = round(value) if info.integer else value
        guards.append(base.with_changes(changes).build())
    return guards


def best(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least seconds of each way, all in turn, so that a busy machine hits them alike."""
    times = dict.fromkeys(ways, float("inf"))
    for _ in range(TURNS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


class Lanes:
    """The compiled kernel over all candidates, so many side by side."""

    def __init__(self, guards: Sequence[Guard], seen: np.ndarray[Any, Any], lanes: int, bare: bool = False) -> None:
        self.source = kernels.source(guards[0], lanes, rows=False)
        lanes = self.source.layout.lanes  # a guard with windows takes one at a time, whatever was asked for
        self.kernel, self.seen = kernel_files.compiled(self.source.text), seen
        self.extract = None if bare else kernel_files.compiled(kernels.extraction())
        self.starts = [kernels.start(self.source.layout, guards[i : i + lanes]) for i in range(0, len(guards), lanes)]
        self.words = np.empty(lanes * -(-ROWS // kernels.WORD_ROWS))
        self.alarms = np.empty((lanes, compiled.MAX_ALARMS, 2), np.int64)
        self.energy = np.empty(len(guards))

    def __call__(self) -> None:
        lanes, row = self.source.layout.lanes, self.source.layout.summary_row("energy")
        for chunk, (start, win, place, _) in enumerate(self.starts):
            buffer = start.copy()
            self.kernel(self.seen, 0, ROWS, buffer, self.words, win, place)
            if self.extract is not None:
                counts, unsafe, begun = (np.full(lanes, fill, np.int64) for fill in (0, 0, -1))
                self.extract(self.words, 0, ROWS, lanes, begun, counts, unsafe, self.alarms)
            self.energy[chunk * lanes : (chunk + 1) * lanes] = buffer[row * lanes : (row + 1) * lanes]


class InC:
    """The same guard and summary, written in C by hand."""

    def __init__(self, guards: Sequence[Guard], seen: np.ndarray[Any, Any], folder: str) -> None:
        library = Path(folder) / "guard.so"
        command = ["gcc", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
        # without these gcc 12 turns choices back into branches, does not vectorise, and is four times slower
        command += ["-fopenmp-simd", "-fno-tree-pre", "-fno-code-hoisting", "-fno-thread-jumps", "-fno-ssa-phiopt"]
        command += ["-fno-tree-dominator-opts", "-fno-tree-vrp", "-fno-tree-fre"]
        subprocess.run([*command, "-shared", "-fPIC", "-o", str(library), str(C_SOURCE)], check=True)
        self.function = ctypes.CDLL(str(library)).replay
        parts = [(t, n) for t in ("sensor", "analyzer", "policy", "envelope") for n in params_of(getattr(guards[0], t))]
        self.parameters = np.array([[getattr(getattr(g, t), n) for g in guards] for t, n in parts], dtype=np.float64)
        channels = [kernels.CHANNELS.index(name) for name in ("loss", "nonfinite")]
        self.seen = np.ascontiguousarray(seen[channels, 1:])
        self.summary = np.empty((8, len(guards)))
        self.energy = self.summary[0]

    def __call__(self) -> None:
        pointer = ctypes.POINTER(ctypes.c_double)
        self.function(
            *(array.ctypes.data_as(pointer) for array in (self.seen, self.parameters, self.summary)),
            ctypes.c_long(ROWS), ctypes.c_long(CANDIDATES),
        )  # fmt: skip


def main() -> None:
    """Print a table of ns per candidate-step."""
    data, guards = columns(), candidates()
    seen = compiled._seen(data, ())
    ways: dict[str, Any] = {f"lanes of {lanes}": Lanes(guards, seen, lanes) for lanes in LANES}
    ways[f"lanes of {compiled.LANES}, no alarm list"] = Lanes(guards, seen, compiled.LANES, bare=True)
    scalar = Lanes(guards[:4], seen, 1)
    shares = dict.fromkeys(ways, CANDIDATES)
    with tempfile.TemporaryDirectory() as folder:
        if shutil.which("gcc"):
            ways["C, gcc -O3 -march=native"] = InC(guards, seen, folder)
            shares["C, gcc -O3 -march=native"] = CANDIDATES
        ways["one by one"] = scalar
        shares["one by one"] = 4
        short = {name: values[:PYTHON_ROWS] for name, values in data.items()}
        python = plain(guards[0], short)
        times = best(ways)
    truth = list(decide(guards[0], data))[-1].energy
    for name, way in ways.items():
        if way.energy[0] != truth:
            sys.exit(f"{name}: energy {way.energy[0]!r}, plain Python {truth!r}")
    first = ways[f"lanes of {LANES[0]}"].energy
    assert all((way.energy == first[: len(way.energy)]).all() for way in ways.values())

    figures = {"plain Python": python}
    figures |= {name: seconds / shares[name] / ROWS * 1e9 for name, seconds in times.items()}
    figures |= baselines(data["loss"])
    here = figures[f"lanes of {compiled.LANES}"]
    print(f"ns per candidate-step; preset {GUARD}, {ROWS:,} rows, {CANDIDATES} candidates; energies equal in every way")
    for name, figure in figures.items():
        print(f"{name:28} {figure:12.2f}   {figure / here:10.2f} ×")
    for preset in ("default", "cusum", "olmo_skip_step"):
        others = [GuardSpec.load(preset).build()] * CANDIDATES
        took = best({preset: Lanes(others, seen, compiled.LANES)})[preset] / CANDIDATES / ROWS * 1e9
        print(f"preset {preset:21} {took:12.2f}   its plain Python {plain(others[0], short) / took:10.0f} ×")


def plain(guard: Guard, data: dict[str, np.ndarray[Any, Any]]) -> float:
    """The reference engine: ns per step."""
    start = time.perf_counter()
    list(decide(guard, data))
    return (time.perf_counter() - start) / len(data["step"]) * 1e9


def baselines(loss: np.ndarray[Any, Any]) -> dict[str, float]:
    """What people use instead, ns per step, where it is installed. They compute less than the guard."""
    figures = {}
    try:
        import pandas

        series = pandas.Series(loss)
        took = best({"": lambda: (series - series.rolling(64).mean()) / series.rolling(64).std()})[""]
        figures["pandas rolling z-score"] = took / len(loss) * 1e9
    except ImportError:
        pass
    try:
        from river.drift import PageHinkley

        detector = PageHinkley()
        start = time.perf_counter()
        for value in loss.tolist():
            detector.update(value)
        figures["river PageHinkley"] = (time.perf_counter() - start) / len(loss) * 1e9
    except ImportError:
        pass
    return figures


if __name__ == "__main__":
    main()
