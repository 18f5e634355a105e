"""What a guard does to the final loss of a calibrated plant: with it against without, over seeds and learning rates.

A statement about the plant, with the plant's own doubts beside it: the spread over the fits to resampled runs, its
error on runs that it had not seen, and the share of rollouts that left what it was calibrated on. It refuses a plant
that was never calibrated, and never says what a real run would do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lbw_sim.errors import SimulateError
from lbw_sim.guard import GuardSpec
from lbw_sim.guard.evidence import SimulatedEffect
from lbw_sim.simulate.rollout import Engine, drawn_noise, rollouts
from lbw_sim.simulate.spec import PlantSpec

FACTORS = {"healthy": (1.0 / 3.0, 1.0), "too high": (3.0, 10.0)}
"""Peak learning rates, in multiples of the highest one that is as good as the best for the plant without a guard."""
AS_GOOD = 0.01
"""Nats of final loss that are no difference: where the optimum is flat, its lowest point says little."""
GRID = 12
"""Peak learning rates among which the best one is looked for, from the lowest to the highest calibrated."""
MOST_DRAWS = 20
"""Fits to resampled runs that are flown."""
RESAMPLES = 200
"""Draws of seeds for the interval, from each fit."""


def simulated_effects(
    spec: GuardSpec,
    plant: PlantSpec,
    *,
    seeds: int = 20,
    first_seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    engine: Engine = "auto",
) -> list[SimulatedEffect]:
    """One line per learning rate: a third of the best one, the best one, three and ten times it.

    Best is the highest rate with which the plant alone ends within `AS_GOOD` of its lowest final loss.

    Every schedule is a warm-up and a cosine over the longest calibrated run, kept within the calibrated rates from
    below. All fits of the plant meet the same `seeds` noises, with the guard and without. A rollout that diverges
    counts with the loss at its start; one that the guard rolls back cannot be flown on and is left out, with its twin.

    Raises SimulateError for a plant without calibration, ChannelError when it does not deliver what the guard needs.
    """
    if plant.fitted is None:
        raise SimulateError(
            f"plant {plant.name!r} was never calibrated: an effect on it says nothing about any run. Fit it first: lbw "
            f"calibrate TRACES --plant COMPONENT -o PLANT.toml"
        )
    within, steps = plant.fitted, plant.fitted.longest_steps
    never = GuardSpec.load("never")
    lowest = max(within.lowest_lr, within.highest_lr / 1e4)
    grid = np.geomspace(lowest, within.highest_lr, GRID) if within.highest_lr > 0.0 else np.zeros(0)
    if not len(grid):
        raise SimulateError(f"plant {plant.name!r} was calibrated on runs without a learning rate above 0")
    noise = drawn_noise(seeds, steps, first_seed)

    def schedule(peak: float) -> NDArray[np.float64]:
        return np.asarray(np.maximum(warmup_cosine(peak, steps), within.lowest_lr))

    tried = rollouts([plant], [never], {f"{lr:.4g}": schedule(lr) for lr in grid.tolist()}, noise, engine=engine)
    middle = np.median(tried.final_loss[0, 0], axis=1)
    best = float(grid[middle <= middle.min() + AS_GOOD][-1])
    peaks = [(kind, factor * best) for kind, factors in FACTORS.items() for factor in factors]
    fits = list(plant.ensemble())[:MOST_DRAWS]
    flown = rollouts(
        fits, [never, spec], {f"{kind} {peak!r}": schedule(peak) for kind, peak in peaks}, noise,
        progress=progress, engine=engine,
    )  # fmt: skip
    first = rollouts(
        fits, [never], {"first": schedule(best)[:1]}, drawn_noise(seeds, 1, first_seed), engine="python"
    ).final_loss[:, 0, 0]
    found = []
    for place, (kind, peak) in enumerate(peaks):
        ended = flown.ended[:, :, place]
        # [fits, seeds]; nothing learned is the worst that a run can do
        without, with_guard = (np.minimum(flown.final_loss[:, g, place], first) for g in (0, 1))
        whole = ended[:, 1] != "cut"
        low, high = _interval(with_guard - without, whole, first_seed)
        count = int(whole.sum())
        found.append(
            SimulatedEffect(
                plant=plant.name,
                plant_fingerprint=plant.fingerprint,
                kind=kind,
                peak_lr=peak,
                steps=steps,
                seeds=seeds,
                fits=len(fits),
                rollouts=whole.size,
                cut=whole.size - count,
                loss_without=float(without[whole].mean()) if count else None,
                loss_with=float(with_guard[whole].mean()) if count else None,
                effect=float((with_guard - without)[whole].mean()) if count else None,
                effect_low=low,
                effect_high=high,
                lost_without=int(_lost(flown.dead, ended, 0, place)[whole].sum()),
                lost_with=int(_lost(flown.dead, ended, 1, place)[whole].sum()),
                left_range_without=float(flown.left_range[:, 0, place].mean()),
                left_range_with=float(flown.left_range[:, 1, place].mean()),
                energy=float(flown.energy[:, 1, place].mean()),
                held_out_runs=len(plant.held_out),
                held_out_rmse=(
                    float(np.sqrt(np.mean([one.rmse**2 for one in plant.held_out]))) if plant.held_out else None
                ),
            )
        )
    return found


def warmup_cosine(peak: float, steps: int, warmup: int = 20) -> NDArray[np.float64]:
    """Linear warm-up, then a cosine down to a tenth of the peak: a learning rate per step.

    >>> warmup_cosine(1.0, 42).round(2)[[0, 19, 41]].tolist()
    [0.05, 1.0, 0.1]
    """
    at = np.arange(steps)
    part = np.clip((at - warmup) / max(1, steps - 1 - warmup), 0.0, 1.0)
    cosine = peak * (0.1 + 0.9 * 0.5 * (1.0 + np.cos(np.pi * part)))
    return np.asarray(np.where(at < warmup, peak * (at + 1) / max(1, warmup), cosine))


def _lost(dead: NDArray[np.bool_], ended: NDArray[np.str_], guard: int, schedule: int) -> NDArray[np.bool_]:
    """Which rollouts [fits, seeds] of one guard and schedule diverged or were damaged for good."""
    return np.asarray(dead[:, guard, schedule] | (ended[:, guard] == "diverged"))


def _interval(
    difference: NDArray[np.float64], whole: NDArray[np.bool_], seed: int
) -> tuple[float | None, float | None]:
    """95 % of the mean effect over what is not known: which fit is right, and which seeds came.

    Each fit's mean over seeds drawn again, all together: so fits that disagree widen it, however many seeds there are.
    """
    seeds = difference.shape[1]
    if whole.sum() < 2 or difference.size < 2:
        return None, None
    chosen = np.random.default_rng((11, seed)).integers(0, seeds, (RESAMPLES, seeds))
    means = []
    for row, kept in zip(difference, whole, strict=True):
        weights = kept[chosen]
        sums, counts = np.where(weights, row[chosen], 0.0).sum(axis=1), weights.sum(axis=1)
        means.append(sums[counts > 0] / counts[counts > 0])
    pooled = np.concatenate(means)
    low, high = np.quantile(pooled, [0.025, 0.975]).tolist()
    return float(low), float(high)
