"""Fits a plant to recorded runs, and says how far it may be trusted.

The plant itself, compiled and without noise, is run along each record's own learning rates and compared with its loss,
in bins, by robust least squares. It refuses to fit what the records do not identify: parameters on which nothing
depends are left as they are and named. An error on the runs of the fit is no evidence; the held-out ones are.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.errors import SimulateError, unknown_name
from lbw_sim.params import ParamInfo, params_of
from lbw_sim.replay import Unusable, kernel_files, kernels
from lbw_sim.replay.symbolic import CannotInline
from lbw_sim.simulate.loop import Playback, PlaybackInputs
from lbw_sim.simulate.rollout import loop_kernel
from lbw_sim.simulate.spec import FittedRange, PlantSpec, RunError
from lbw_sim.trace import Trace
from lbw_sim.wording import counted

LANES = 8
"""Parameter vectors side by side."""
BINS = 100
"""Bins per run: more would only fit noise."""
STEP = 1e-4
"""Of the finite differences, in the fitted units."""
BEYOND = 50.0
"""Where a plant goes out of bounds its loss counts as this; nats."""
FOLDS = 5
"""Groups of runs left out in turn, where there are more runs than that."""
BLOCKS = 20
"""Stretches, over the longest run, within which what is left over keeps its sign: neighbours are correlated."""
HALF_WINDOW = 12
"""Steps before and after a batch whose median loss its difficulty is measured from."""
FEWEST_RUNS = 6
"""Runs from which on they are resampled; with fewer, uncertainty comes from the curvature of the fit."""
FEWEST_LOSSES = 2
"""Finite ones, that a run needs to be fitted to."""

Progress = Callable[[str, int, int], None]


class Record(NamedTuple):
    """What calibration takes from a recorded run. Arrays have one entry per step."""

    run_id: str
    effective_lr: NDArray[np.float64]
    """Learning rate with which each step was really taken; whatever it says on a skipped step."""
    skipped: NDArray[np.float64]
    loss: NDArray[np.float64]
    """nan where it was not measured."""
    scale: NDArray[np.float64] | None = None
    """Factor on the schedule that was really applied; None: 1."""

    @classmethod
    def of(cls, trace: Trace) -> Record:
        """The final lineage of a trace. Raises SimulateError when it lacks learning rates or does not start at 0."""
        columns = trace.to_numpy()
        if why := _why_unusable(columns):
            raise SimulateError(f"run {trace.run_id!r} cannot calibrate a plant: it {why}")
        steps, effective = columns["step"], _effective_lr(columns)
        # rows that were not logged: the learning rate in force goes on, the loss is unknown
        length = int(steps[-1]) + 1
        row_of = np.searchsorted(steps, np.arange(length), side="right") - 1
        loss = np.full(length, np.nan)
        loss[steps] = columns["loss"]
        skipped = np.asarray(columns["skipped"], dtype=np.float64)[row_of]
        lr = np.asarray(columns["lr"], dtype=np.float64)
        scale = np.divide(effective, lr, out=np.ones(len(lr)), where=(lr > 0) & np.isfinite(lr))
        return cls(trace.run_id, effective[row_of], skipped, loss, scale[row_of])


def usable_records(traces: Iterable[Trace]) -> tuple[list[Record], list[Unusable]]:
    """What calibration takes from each run, and the runs that it can do nothing with. Raises TraceError."""
    records, unusable = [], []
    for trace in traces:
        columns = trace.to_numpy()
        why = _why_unusable(columns)
        if not why and np.isfinite(columns["loss"]).sum() < FEWEST_LOSSES:
            why = f"holds fewer than {FEWEST_LOSSES} finite losses"
        if why:
            unusable.append(Unusable(trace.run_id, why))
        else:
            records.append(Record.of(trace))
    return records, unusable


def _why_unusable(columns: Mapping[str, NDArray[Any]]) -> str:
    """Why these cannot become a `Record`; empty: they can."""
    if not len(columns["step"]):
        return "holds no row"
    if columns["step"][0] != 0:
        return f"starts at step {columns['step'][0]}, and a plant is fitted from step 0 on"
    if not np.isfinite(_effective_lr(columns)).all():
        return "does not hold effective_lr, or lr, at every row"
    return ""


def _effective_lr(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    effective = np.asarray(columns["effective_lr"], dtype=np.float64)
    return effective if np.isfinite(effective).any() else np.asarray(columns["lr"], dtype=np.float64)


def playback(plants: Sequence[Any], record: Record) -> NDArray[np.float64]:
    """Expected loss of plants of one kind along a record's own learning rates; [plants, steps].

    >>> from lbw_sim.simulate.plants.noisy_quadratic import NoisyQuadratic
    >>> record = Record("r", np.array([0.1, 0.1]), np.zeros(2), np.zeros(2))
    >>> plant = NoisyQuadratic(floor=0.0, curvature=10.0, start=2.0, gradient_sd=0.0)
    >>> playback([plant], record).tolist()
    [[10.0, 0.0]]
    """
    return _playbacks(plants, [record])[0]


def _playbacks(plants: Sequence[Any], records: Sequence[Record]) -> list[NDArray[np.float64]]:
    """`playback` along each of the records."""
    found = [np.empty((len(plants), len(record.effective_lr))) for record in records]
    subjects = [Playback(plant=plant) for plant in plants]
    try:
        source = loop_kernel(subjects[0], PlaybackInputs, (), {"expected_loss": "float64"}, LANES)
        kernel = kernel_files.compiled(source.text)
    except (CannotInline, OSError):
        for record, losses in zip(records, found, strict=True):
            losses[:] = [_plain(subject, record) for subject in subjects]
        return found
    layout, lanes = source.layout, source.layout.lanes
    row = layout.summary_row("fault") * lanes
    for first in range(0, len(plants), lanes):
        group = subjects[first : first + lanes]
        # set up once for all records: that takes longer than many a record
        fresh = kernels.start(layout, group)
        for record, losses in zip(records, found, strict=True):
            steps = len(record.effective_lr)
            inputs = kernels.cache_aligned((2, steps, lanes))
            inputs[0] = record.effective_lr[:, None]
            inputs[1] = record.skipped[:, None]
            start, out = fresh.again(), kernels.cache_aligned(steps * lanes)
            kernel(inputs, 0, steps, start.buffer, start.win, start.place, out)
            losses[first : first + len(group)] = out.reshape(steps, lanes)[:, : len(group)].T
            for lane in np.flatnonzero((start.buffer[row : row + lanes] != 0.0) | start.unfit):
                if lane < len(group):
                    losses[first + lane] = _plain(group[lane], record)
    return found


def _plain(subject: Playback, record: Record) -> NDArray[np.float64]:
    state, shown = subject.init(), []
    for effective_lr, skipped in zip(record.effective_lr.tolist(), record.skipped.tolist(), strict=True):
        state, output = subject.step(state, PlaybackInputs(effective_lr, skipped))
        shown.append(output.expected_loss)
    return np.array(shown)


def _bounded(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of `playback`, with `BEYOND` where a plant is out of bounds: a fit needs finite numbers."""
    return np.minimum(np.nan_to_num(losses, nan=BEYOND, posinf=BEYOND), BEYOND)


class _Problem:
    """Records and parameters of a fit."""

    def __init__(self, records: Sequence[Record], spec: PlantSpec, fixed: Collection[str]) -> None:
        self.plant = spec.build()
        self.infos: dict[str, ParamInfo] = {n: i for n, i in params_of(self.plant).items() if not i.integer}
        unknown = [unknown_name("parameter", name, self.infos) for name in fixed if name not in self.infos]
        if unknown:
            raise SimulateError("; ".join(unknown))
        self.spec = spec
        self.names = [name for name in self.infos if name not in fixed]
        self.records = list(records)
        self.bins = [_binning(record.loss) for record in records]
        self.losses = [_binned(record.loss, bins) for record, bins in zip(records, self.bins, strict=True)]

    def to_fitted(self, values: Mapping[str, float]) -> NDArray[np.float64]:
        return np.array([_forward(self.infos[name], values[name]) for name in self.names])

    def to_values(self, point: NDArray[np.float64]) -> dict[str, float]:
        return {name: _backward(self.infos[name], float(x)) for name, x in zip(self.names, point, strict=True)}

    @property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        low = [_forward(self.infos[name], self.infos[name].low) for name in self.names]
        high = [_forward(self.infos[name], self.infos[name].high) for name in self.names]
        return np.array(low), np.array(high)

    def residuals(
        self, points: NDArray[np.float64], weights: NDArray[np.float64] | None = None
    ) -> list[NDArray[np.float64]]:
        """Per record: (plant - record) in each bin, [points, bins]; zeros for a record whose weight is 0."""
        plants = [dataclasses.replace(self.plant, **self.to_values(point)) for point in points]
        counting = [weights is None or weights[place] > 0.0 for place in range(len(self.records))]
        shown = iter(
            _playbacks(plants, [record for record, counts in zip(self.records, counting, strict=True) if counts])
        )
        return [
            _binned(_bounded(next(shown)), bins) - losses if counts else np.zeros((len(points), len(losses)))
            for counts, bins, losses in zip(counting, self.bins, self.losses, strict=True)
        ]

    def disturbed(self, point: NDArray[np.float64], rng: np.random.Generator) -> _Problem:
        """The same runs as they might have come out: what the fit leaves over, the sign of each stretch drawn anew.

        One draw for all runs (wild bootstrap, in blocks of steps): runs that share their data order share the noise of
        their batches, and resampling whole runs cannot show what all of them have in common.
        """
        longest = max(len(record.loss) for record in self.records)
        signs = rng.choice((-1.0, 1.0), BLOCKS)
        losses = []
        for record, bins, recorded, (left,) in zip(
            self.records, self.bins, self.losses, self.residuals(point[None]), strict=True
        ):
            step = _binned(np.arange(len(record.loss), dtype=np.float64), bins)
            losses.append(recorded + left - signs[(step * BLOCKS / longest).astype(np.int64)] * left)
        other = copy.copy(self)
        other.losses = losses
        return other

    def identified(self, point: NDArray[np.float64]) -> list[str]:
        """Parameters on which a residual depends at this point."""
        _, high = self.bounds
        moved = np.array([_nudged(point, i, high, 0.05)[0] for i in range(len(point))])
        found = np.concatenate(self.residuals(np.vstack([point, moved])), axis=1)
        return [name for i, name in enumerate(self.names) if np.abs(found[i + 1] - found[0]).max() > 1e-12]

    def fit(
        self, start: NDArray[np.float64], weights: NDArray[np.float64], noise: float, evaluations: int
    ) -> tuple[NDArray[np.float64], float, NDArray[np.float64], NDArray[np.float64]]:
        """Least squares from a point: best point, cost, residuals and Jacobian there. `noise`: robust scale."""
        from scipy.optimize import least_squares

        low, high = self.bounds
        start = np.clip(start, low + 1e-6 * (high - low), high - 1e-6 * (high - low))
        roots = [math.sqrt(weight / len(losses)) for weight, losses in zip(weights, self.losses, strict=True)]
        last: dict[bytes, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

        def both(point: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            key = point.tobytes()
            if key not in last:
                nudged = [_nudged(point, i, high, STEP) for i in range(len(point))]
                rows = np.vstack([point, *(one for one, _ in nudged)])
                joined = np.concatenate(
                    [root * part for root, part in zip(roots, self.residuals(rows, weights), strict=True)], axis=1
                )
                last.clear()
                steps = np.array([step for _, step in nudged])
                last[key] = joined[0], ((joined[1:] - joined[0]) / steps[:, None]).T
            return last[key]

        scale = noise * float(np.mean([root for root, weight in zip(roots, weights, strict=True) if weight > 0]))
        solved = least_squares(
            lambda point: both(point)[0], start, jac=lambda point: both(point)[1], bounds=(low, high), loss="soft_l1",
            f_scale=3.0 * scale, x_scale=np.maximum(0.05, 0.1 * np.abs(start)), max_nfev=evaluations,
        )  # fmt: skip
        return solved.x, float(solved.cost), solved.fun, solved.jac


def calibrate(
    records: Sequence[Record],
    plant: PlantSpec,
    *,
    fixed: Collection[str] = (),
    held_out: Sequence[Record] | None = None,
    draws: int = 20,
    seed: int = 0,
    name: str = "",
    progress: Progress | None = None,
) -> PlantSpec:
    """Fit a plant to runs; the result says on what, how uncertain, and how well on runs that it had not seen.

    `plant`: where to start, and values of the `fixed` parameters. `held_out`: runs that are judged only; None: every
    run is predicted by a fit to runs of the other groups (`FOLDS`), or left unjudged where there is one run only.
    `draws`: fits to resampled runs with their noise drawn anew, or draws from the curvature with fewer than
    `FEWEST_RUNS`. `noise_sd` is set from the differences of neighbouring losses, a plant's `SPREADS` from run-to-run
    differences. `progress` hears of each stage: its name, how much of it is done and how much there is in all.

    A record with fewer than two finite losses is not fitted, and so not among `training` of the result.

    Raises SimulateError when no run has two finite losses, and where scipy is not installed.
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise SimulateError("calibration needs scipy: pip install 'lbw-sim[tune]'") from None
    usable = [record for record in records if np.isfinite(record.loss).sum() >= FEWEST_LOSSES]
    if not usable:
        raise SimulateError(f"none of {counted(len(records), 'run')} has two finite losses to fit")
    noise = float(np.median([_noise(record.loss) for record in usable]))
    spreads: Mapping[str, str] = getattr(type(plant.build()), "SPREADS", {})
    problem = _Problem(usable, plant, {*fixed, "noise_sd", *spreads})
    start = problem.to_fitted(plant.plant)
    problem = _Problem(usable, plant, set(problem.infos) - set(problem.identified(start)))
    start = problem.to_fitted(plant.plant)
    tell = progress or (lambda *_: None)
    rng = np.random.default_rng((7, seed))
    point, jacobian = _best_fit(problem, start, noise, rng)
    values = problem.to_values(point)
    if len(usable) >= FEWEST_RUNS:
        sampled = _resampled(problem, point, noise, draws, rng, np.random.default_rng((8, seed)), tell)
    else:
        sampled = _drawn_from_curvature(problem, point, jacobian, draws, rng)
    spec = dataclasses.replace(plant, name=name or plant.name).with_parameters({**values, "noise_sd": noise})
    spec = spec.with_parameters({s: _spread(spec, usable, of) for s, of in spreads.items() if s not in fixed})
    drawn = tuple(problem.to_values(one) for one in sampled)
    uncertainty = {n: float(np.std([one[n] for one in drawn], ddof=1)) for n in values} if len(drawn) > 1 else {}

    judged = _errors(spec, held_out or ())
    if held_out is None and len(usable) > 1:
        judged = _left_out_in_turn(problem, point, noise, spec, rng, tell)
    return dataclasses.replace(
        spec,
        fitted=fitted_range(records),
        uncertainty=uncertainty,
        draws=drawn,
        training=tuple(_errors(spec, usable)),
        held_out=tuple(sorted(judged)),
    )


def _best_fit(
    problem: _Problem, start: NDArray[np.float64], noise: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The best point and the Jacobian there: of points drawn around the start the best three are followed."""
    low, high = problem.bounds
    everyone = np.ones(len(problem.records))
    away = rng.standard_normal((63, len(start))) * np.maximum(0.3, 0.3 * np.abs(start))
    cloud = np.vstack([start, np.clip(start + 0.7 * away, low, high)])
    costs = sum(np.sqrt(1 + (part / (3 * noise)) ** 2).mean(axis=1) for part in problem.residuals(cloud))
    ranked = cloud[np.argsort(costs)[:3]]
    best = min((problem.fit(one, everyone, noise, 60) for one in ranked), key=lambda found: found[1])
    point, _, _, jacobian = problem.fit(best[0], everyone, noise, 100)
    return point, jacobian


def _resampled(
    problem: _Problem, point: NDArray[np.float64], noise: float, draws: int, rng: np.random.Generator,
    signs: np.random.Generator, tell: Progress,
) -> list[NDArray[np.float64]]:  # fmt: skip
    """Fits to runs drawn with replacement, their noise drawn anew."""
    sampled = []
    runs = len(problem.records)
    for draw in range(draws):
        weights = np.bincount(rng.integers(0, runs, runs), minlength=runs).astype(float)
        sampled.append(problem.disturbed(point, signs).fit(point, weights, noise, 12)[0])
        tell("resampling runs", draw + 1, draws)
    return sampled


def _drawn_from_curvature(
    problem: _Problem, point: NDArray[np.float64], jacobian: NDArray[np.float64], draws: int, rng: np.random.Generator
) -> list[NDArray[np.float64]]:
    """Points as likely as the fit: for runs too few to be resampled."""
    if not draws:
        return []
    low, high = problem.bounds
    covariance = _covariance(problem, point, jacobian)
    return [np.clip(one, low, high) for one in rng.multivariate_normal(point, covariance, draws, method="eigh")]


def _left_out_in_turn(
    problem: _Problem, point: NDArray[np.float64], noise: float, spec: PlantSpec, rng: np.random.Generator,
    tell: Progress,
) -> list[RunError]:  # fmt: skip
    """The error on each run, predicted by a fit to the runs of the other groups."""
    runs = len(problem.records)
    judged: list[RunError] = []
    groups = [group for group in np.array_split(rng.permutation(runs), min(FOLDS, runs)) if len(group)]
    for done, group in enumerate(groups, start=1):
        weights = np.ones(runs)
        weights[group] = 0.0
        other = spec.with_parameters(problem.to_values(problem.fit(point, weights, noise, 30)[0]))
        judged += _errors(other, [problem.records[i] for i in group])
        tell("holding runs out", done, len(groups))
    return judged


def _errors(spec: PlantSpec, records: Sequence[Record]) -> list[RunError]:
    """Of the runs that have a finite loss."""
    return [error for record in records if (error := run_error(spec, record))]


def fitted_range(records: Sequence[Record]) -> FittedRange:
    """What the runs held."""
    taken = [record.effective_lr[(record.skipped == 0.0) & (record.effective_lr > 0.0)] for record in records]
    ratios = np.concatenate([lr[1:] / lr[:-1] for lr in taken] + [np.ones(1)])
    rates = np.concatenate(taken)
    return FittedRange(
        lowest_lr=float(rates.min()) if len(rates) else 0.0,
        highest_lr=float(rates.max(initial=0.0)),
        longest_steps=max(len(record.effective_lr) for record in records),
        sharpest_rise=float(ratios.max()),
        sharpest_fall=float(1.0 / ratios.min()),
        lowest_scale=min(
            (float(record.scale.min(initial=1.0)) for record in records if record.scale is not None), default=1.0
        ),
    )


def run_error(spec: PlantSpec, record: Record) -> RunError | None:
    """How a plant does on one run, along the run's own learning rates; None where the run has no finite loss."""
    bins = _binning(record.loss)
    if not len(bins.starts):
        return None
    difference = _binned(_bounded(playback([spec.build()], record)[0]), bins) - _binned(record.loss, bins)
    last = max(1, len(difference) // 10)
    rmse = float(np.sqrt(np.mean(difference**2)))
    return RunError(record.run_id, int(np.isfinite(record.loss).sum()), rmse, float(difference[-last:].mean()))


def recorded_noise(spec: PlantSpec, records: Sequence[Record], steps: int) -> NDArray[np.float64]:
    """Difficulty of each batch of recorded runs, in units of the plant's `noise_sd`; [records, steps].

    What the loss differs from its own running median of 25 steps by: it belongs to the data order, and runs that share
    it share these numbers. Towards either end the window shrinks and stays centred, or the first losses, which fall
    fast, would be taken for hard batches; so next to nothing is known of the first few. Steps beyond the record, and
    those without a loss, are 0.
    """
    found = np.zeros((len(records), steps))
    sd = float(spec.plant["noise_sd"])
    distance = np.abs(np.arange(2 * HALF_WINDOW + 1) - HALF_WINDOW)
    for row, record in zip(found, records, strict=True):
        loss = record.loss[:steps]
        padded = np.pad(loss, HALF_WINDOW, constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * HALF_WINDOW + 1)
        reach = np.minimum(np.arange(len(loss)), np.arange(len(loss))[::-1])
        with np.errstate(all="ignore"):
            centred = np.where(distance <= reach[:, None], windows, np.nan)
            median = np.array([np.nanmedian(w) if np.isfinite(w).any() else np.nan for w in centred])
        row[: len(loss)] = np.clip(np.nan_to_num((loss - median) / sd if sd > 0 else 0.0 * loss), -10.0, 10.0)
    return found


# ---- how records are reduced, and parameters made free of their ranges -------------------------------------------


class _Bins(NamedTuple):
    """Steps of a record, put together in groups."""

    places: NDArray[np.int64]
    """One more than each step, and a 0 before each group: the sum of 0 and the rest has the bits of `mean`."""
    starts: NDArray[np.int64]
    """Where among `places` each group begins."""
    sizes: NDArray[np.int64]


def _binning(loss: NDArray[np.float64]) -> _Bins:
    """Steps with a finite loss, in at most `BINS` groups as equal as can be, the larger ones first."""
    measured = np.flatnonzero(np.isfinite(loss) & (np.abs(loss) <= BEYOND))
    groups = np.arange(min(BINS, len(measured)))
    size, larger = divmod(len(measured), max(1, len(groups)))
    starts = groups * size + np.minimum(groups, larger)
    return _Bins(np.insert(measured + 1, starts, 0), starts + groups, size + (groups < larger))


def _binned(values: NDArray[np.float64], bins: _Bins) -> NDArray[np.float64]:
    """Mean of each group; steps are the last axis."""
    if not len(bins.starts):
        return np.empty((*values.shape[:-1], 0))
    padded = np.insert(values, 0, 0.0, axis=-1)
    return np.asarray(np.add.reduceat(padded[..., bins.places], bins.starts, axis=-1) / bins.sizes)


def _noise(loss: NDArray[np.float64]) -> float:
    """Standard deviation from step to step, the trend taken out by differences; robust."""
    found = loss[np.isfinite(loss)]
    if len(found) < 4:
        return 1e-3
    second = found[2:] - 2.0 * found[1:-1] + found[:-2]
    return max(1e-4, float(1.4826 * np.median(np.abs(second - np.median(second))) / math.sqrt(6.0)))


def _covariance(problem: _Problem, point: NDArray[np.float64], jacobian: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the fitted units, from the curvature. Neighbouring residuals are correlated: fewer count."""
    parts = [part[0] for part in problem.residuals(point[None])]
    variance = float(np.mean([np.mean(part**2) for part in parts]))
    lagged = [np.corrcoef(part[1:], part[:-1])[0, 1] for part in parts if len(part) > 3 and part.std() > 0]
    correlation = min(0.98, max(0.0, float(np.mean(lagged)))) if lagged else 0.0
    # jacobian rows are divided by the root of a run's bins
    count = float(np.mean([len(part) for part in parts])) * (1.0 - correlation) / (1.0 + correlation)
    curvature = jacobian.T @ jacobian
    ridge = 1e-9 * np.trace(curvature) * np.eye(len(point))
    return np.asarray(variance / max(1.0, count) * np.linalg.pinv(curvature + ridge, hermitian=True))


def _spread(spec: PlantSpec, records: Sequence[Record], of: str) -> float:
    """Relative standard deviation of one parameter over runs, each fitted by itself in this parameter alone."""
    plant, factors = spec.build(), np.exp(np.linspace(-0.7, 0.7, 29))
    info = params_of(plant)[of]
    plants = [
        dataclasses.replace(plant, **{of: min(info.high, max(info.low, getattr(plant, of) * factor))})
        for factor in factors
    ]
    found = []
    for record in records:
        bins = _binning(record.loss)
        difference = _binned(_bounded(playback(plants, record)), bins) - _binned(record.loss, bins)
        errors = np.mean(difference**2, axis=1)
        # a run that says nothing about the parameter, or only that it lies on one side, is left out
        if 0 < int(errors.argmin()) < len(factors) - 1 and min(errors[0], errors[-1]) > 2.0 * errors.min():
            found.append(float(np.log(factors[errors.argmin()])))
    return min(1.0, float(np.std(found, ddof=1))) if len(found) > 2 else 0.0


def _forward(info: ParamInfo, value: float) -> float:
    return math.log(max(value, 1e-12)) if info.log else value


def _backward(info: ParamInfo, x: float) -> float:
    value = math.exp(x) if info.log else x
    return min(info.high, max(info.low, value))


def _nudged(
    point: NDArray[np.float64], i: int, high: NDArray[np.float64], step: float
) -> tuple[NDArray[np.float64], float]:
    """The point with one coordinate moved, away from the nearer bound; and by how much."""
    moved = point.copy()
    size = step if point[i] + step <= high[i] else -step
    moved[i] = point[i] + size
    return moved, size
