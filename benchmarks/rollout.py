"""What a rollout costs per candidate-step: guard and plant in one compiled loop, and in plain Python.

    python benchmarks/rollout.py

One thread, in seconds of its own CPU time, float64, noise drawn beforehand and laid out within the measured time. Every
plant under `never`, `zscore` and `default`; the guards in open loop (replay, lanes) for comparison. Times are of this
machine and its other users; ratios travel.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from lbw_sim.guard import GuardSpec
from lbw_sim.guard.registry import components
from lbw_sim.replay import replay_many
from lbw_sim.simulate import PlantSpec, drawn_noise, rollouts

STEPS, SEEDS, TURNS, PYTHON_STEPS = 10_000, 64, 12, 1_000
GUARDS = ("never", "zscore", "default")


def best(way: Callable[[], object], turns: int = TURNS) -> float:
    """Least seconds of several turns."""
    times = []
    for _ in range(turns):
        start = time.thread_time()
        way()
        times.append(time.thread_time() - start)
    return min(times)


def main() -> None:
    """Print a table of ns per candidate-step."""
    lr = 1e-3 * (0.1 + 0.9 * np.linspace(1.0, 0.0, STEPS))
    noise = drawn_noise(SEEDS, STEPS)
    columns = {"step": np.arange(STEPS), "loss": 3.0 + 0.03 * noise.batch[0], "lr": lr, "nonfinite": np.zeros(STEPS)}
    print(f"ns per candidate-step, {STEPS:,} steps, {SEEDS} seeds, one thread; (plain Python / compiled)")
    print(f"{'plant':20}" + "".join(f"{guard:>22}" for guard in GUARDS))
    replayed = []
    for guard in GUARDS:
        specs = [GuardSpec.load(guard)] * SEEDS
        list(replay_many([columns], specs, threads=1, engine="compiled"))
        took = best(lambda specs=specs: list(replay_many([columns], specs, threads=1, engine="compiled")))
        replayed.append(took / SEEDS / STEPS * 1e9)
    print(f"{'(replay, open loop)':20}" + "".join(f"{figure:15.1f}       " for figure in replayed))
    for name in components("plant"):
        cells = []
        for guard in GUARDS:
            about = ([PlantSpec.load(name)], [GuardSpec.load(guard)])
            compiled = best(lambda about=about: rollouts(*about, {"": lr}, noise, threads=1, engine="compiled"))
            short = drawn_noise(1, PYTHON_STEPS)
            plain = best(
                lambda about=about, short=short: rollouts(*about, {"": lr[:PYTHON_STEPS]}, short, engine="python"), 1
            )
            figure = compiled / SEEDS / STEPS * 1e9
            cells.append(f"{figure:15.1f} ({plain / PYTHON_STEPS * 1e9 / figure:4.0f})")
        print(f"{name:20}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
