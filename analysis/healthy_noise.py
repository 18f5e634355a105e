"""How often the default guard cries wolf on healthy runs that are nothing but a fall and noise.

Writes docs/results/healthy_noise.md. Run from the repository root, a minute: python analysis/healthy_noise.py
Seeds 0 to 999 and 20,000 more simulated starts chose the rule for the first rows; the page counts others. Made losses
only: what noise a real run has, and of which kind, this does not say.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.guard import GuardSpec
from lbw_sim.replay import replay_many
from lbw_sim.score import Column, markdown

PAGE = Path(__file__).parent.parent / "docs" / "results" / "healthy_noise.md"
SEEDS = range(1000, 1200)
STEPS, LEVEL, FALL_STEPS = 300, 2.0, 50.0
SDS = (0.05, 0.1, 0.2, 0.3, 0.5)
FALLS = (0.0, 0.5, 1.0, 2.0)
KINDS = {"normal": "Normal", "t": "Student's t, 3 degrees of freedom"}
EVERY = (1, 10)


class Condition(NamedTuple):
    """One kind of healthy run."""

    kind: str
    every: int
    """Steps between logged rows."""
    sd: float
    fall: float


def healthy(condition: Condition, seed: int) -> dict[str, NDArray[np.float64]]:
    """Columns of one run: a level, a fall towards it and noise of the given standard deviation."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(STEPS) if condition.kind == "normal" else rng.standard_t(3, STEPS) / np.sqrt(3.0)
    steps = np.arange(STEPS, dtype=np.float64)
    losses = LEVEL + condition.fall * np.exp(-steps / FALL_STEPS) + condition.sd * noise
    return {"step": steps[:: condition.every], "loss": losses[:: condition.every]}


def counted(spec: GuardSpec) -> dict[Condition, tuple[float, float]]:
    """Runs in 100 that alarm in the first rows, and at any time."""
    startup_rows = spec.tables["sensor"]["startup_rows"]
    conditions = [Condition(*values) for values in itertools.product(KINDS, EVERY, SDS, FALLS)]
    runs = [healthy(condition, seed) for condition in conditions for seed in SEEDS]
    firsts = [min((first for first, _ in found.alarms(0)), default=STEPS) for found in replay_many(runs, [spec])]
    by_condition = np.array(firsts).reshape(len(conditions), len(SEEDS))
    return {
        condition: (100.0 * float((rows < startup_rows).mean()), 100.0 * float((rows < STEPS).mean()))
        for condition, rows in zip(conditions, by_condition, strict=True)
    }


def main() -> None:
    """Count and write the page."""
    spec = GuardSpec.load("default")
    found = counted(spec)
    most = max(early for early, _ in found.values())
    page = [
        "# The default guard on healthy noise",
        f"Made by `analysis/healthy_noise.py`: {len(SEEDS)} runs each, seeds {SEEDS[0]} to {SEEDS[-1]}, which chose "
        f"nothing. Losses {LEVEL:g} + fall × exp(-step / {FALL_STEPS:g}) + noise, {STEPS} steps, no fault: every alarm "
        f"is false. Guard `default`, fingerprint `{spec.fingerprint}`. `never` raises none.",
        f"Runs in 100 that alarm in the first {spec.tables['sensor']['startup_rows']} rows, and at any time. At most "
        f"{most:.1f} do so in the first rows, where only `loss_rebound` is read; later alarms are those of the other "
        "detectors. The standard error of 5 in 100 is 1.5, and the conditions share their random numbers.",
    ]
    columns = [Column("sd", "noise, sd"), *(Column(f"{fall:g}", f"fall {fall:g}") for fall in FALLS)]
    for kind, every in itertools.product(KINDS, EVERY):
        rows = [
            {"sd": f"{sd:g}"}
            | {f"{fall:g}": "{:.1f}, {:.1f}".format(*found[Condition(kind, every, sd, fall)]) for fall in FALLS}
            for sd in SDS
        ]
        page += [f"## {KINDS[kind]}, {'every step' if every == 1 else f'every {every}th step'} logged"]
        page += [markdown(rows, columns)]
    PAGE.write_text("\n\n".join(page) + "\n", encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
