"""What a change of the learning rate does, from the contrast of recorded runs under different schedules.

Plants fit the level of the loss, and most of their error is the level's: the shape of the progress curve. Here that
curve is a spline shared by all runs, so what is left to explain is how runs under different schedules differ. Several
laws of that difference are fitted; each is judged by how well it predicts the annealed part of a run from the other
runs; they are combined by that error. Runs that change slowly hardly tell these laws apart for a sudden change: the
interval holds their disagreement. It says nothing about divergence, and refuses runs that all had one schedule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.errors import SimulateError
from lbw_sim.simulate.calibrate import Record

Array = NDArray[np.float64]

POINTS = 600
"""Most points that a run counts with; beyond that, neighbours are put together."""
KNOTS = 9
JUMP = 0.02
"""A step that changes the learning rate by more than this part is kept as a step."""
SAME = 0.95
"""A run is held out from where its learning rate falls below this part of the highest."""
STARTS_APART = 150.0
"""Prior standard deviation of how far runs are ahead of the first, in steps at the highest learning rate."""
DRAWS = 200
LEAST_MEMORY, MOST_MEMORY = 5.0, 2e4


class Parameter(NamedTuple):
    """Prior and range of a law's parameter: weak, about the value that leaves the classical law."""

    middle: float
    sd: float
    low: float
    high: float


PARAMETERS = {
    "gain_exponent": Parameter(1.0, 0.5, 0.1, 3.0),
    "clock_exponent": Parameter(1.0, 0.5, 0.05, 2.0),
    "log_saturation": Parameter(0.0, 1.5, math.log(0.01), math.log(100.0)),
    "drift": Parameter(0.0, 0.2, -1.0, 1.0),
    "fade": Parameter(0.0, 0.5, -1.0, 0.95),
    "log_memory": Parameter(math.log(1000.0), 1.0, math.log(LEAST_MEMORY), math.log(MOST_MEMORY)),
}
LAWS: dict[str, tuple[str, ...]] = {
    "clock_power": ("gain_exponent", "clock_exponent"),
    "clock_saturating": ("gain_exponent", "log_saturation"),
    "gain_drift": ("gain_exponent", "drift"),
    "clock_and_drift": ("gain_exponent", "clock_exponent", "drift"),
    "memory": ("gain_exponent", "fade", "log_memory"),
    "clock_and_memory": ("gain_exponent", "clock_exponent", "fade", "log_memory"),
}
"""L = F(T + d) - B (H - fade · P): F a spline in log T, d the run's own lead, u the learning rate over the highest.

T = sum of u^clock_exponent, or of u (1 + s) / (u + s) with s the saturation: progress in steps at the highest rate.
H = (1 - u^gain_exponent) / gain_exponent · (T / T at mid)^-drift: what a lower rate gains at once. P follows H with a
memory in steps: a positive fade loses a part of the gain again, a negative one is gain that comes late.
"""


class Course(NamedTuple):
    """A schedule on a grid of steps that is fine where the learning rate jumps."""

    step: Array
    rate: Array
    """Over the highest learning rate."""

    @classmethod
    def of(cls, effective_lr: Array, highest: float, at: Array) -> Course:
        """`at`: steps that the grid should hold, besides both sides of every jump and the first and last step."""
        lr = np.maximum(effective_lr, 1e-6 * highest)
        jumps = np.flatnonzero(np.abs(np.diff(lr)) > JUMP * lr[:-1])
        step = np.unique(np.concatenate([at, jumps, jumps + 1, [0, len(lr) - 1]]).astype(np.float64))
        return cls(step, np.interp(step, np.arange(len(lr)), lr) / highest)


class _Run(NamedTuple):
    name: str
    course: Course
    at: Array
    """Steps of the points."""
    places: NDArray[np.int64]
    """Of the points, on the grid of the course."""
    loss: Array
    rate: Array


@dataclasses.dataclass(frozen=True)
class Fitted:
    """One law fitted to runs."""

    law: str
    values: Mapping[str, float]
    rmse: float
    """Root mean square of what is left on the points of the fit; nats."""
    held_out: float
    """The same on annealed parts of runs, each predicted from the other runs; nan where none was held out."""
    leads: tuple[float, ...]
    draws: tuple[tuple[Array, Array], ...]
    """(parameters, linear coefficients): the fit, then draws from its curvature."""
    start_steps: float
    knots: Array
    middle: float

    def losses(self, course: Course, lead: float = 0.0) -> Array:
        """Expected loss along a course, [draws, points of the course], the fit first."""
        found = []
        for point, linear in self.draws:
            values = {**self.values, **dict(zip(LAWS[self.law], point[: len(LAWS[self.law])], strict=True))}
            found.append(_design(course, values, lead, self.start_steps, self.knots, self.middle) @ linear)
        return np.array(found)


class Contrast(NamedTuple):
    """Expected loss of one schedule minus that of another, in a window of steps."""

    effect: float
    """Mean over laws, weighted."""
    sd: float
    """Of the effect: between laws and within them."""
    low: float
    """5 % of the prediction; `measured_sd`, the noise of a measurement, included."""
    high: float
    by_law: Mapping[str, float]
    weights: Mapping[str, float]


def fit_contrast(
    records: Sequence[Record],
    *,
    start_steps: float = 1.0,
    first_step: int = 0,
    fixed: Mapping[str, Mapping[str, float]] | None = None,
    laws: Sequence[str] = tuple(LAWS),
    hold_out: bool = True,
) -> list[Fitted]:
    """Fit every law to runs that had different schedules of the learning rate.

    `start_steps`: progress before step 0, in steps at the highest rate. `first_step`: points before it are left out,
    as the loss after a warm-up depends on more than progress. `fixed`: law -> parameters taken from elsewhere.

    Raises SimulateError when no run has a learning rate that falls, or none has points before it does.

    >>> steps = np.arange(4000)
    >>> flat = np.full(4000, 1.0)
    >>> falling = 1.0 - 0.9 * steps / 4000
    >>> def record(name, lr):
    ...     loss = 2.0 + 3.0 * (100.0 + np.cumsum(lr)) ** -0.5 - 0.2 * (1.0 - lr)
    ...     return Record(name, lr, np.zeros(4000), loss)
    >>> fits = fit_contrast([record("a", flat), record("b", falling)], start_steps=100.0, laws=["clock_power"])
    >>> {key: round(value, 1) for key, value in fits[0].values.items()}
    {'gain_exponent': 1.0, 'clock_exponent': 1.0}
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise SimulateError("a contrast needs scipy: pip install 'lbw-sim[tune]'") from None
    highest = max((float(record.effective_lr.max(initial=0.0)) for record in records), default=0.0)
    runs = [run for record in records if (run := _run(record, highest, first_step)) is not None]
    falls = [bool((run.rate < SAME).any()) for run in runs]
    if not any(falls) or len(runs) < 2:
        raise SimulateError(
            f"{len(runs)} usable runs of {len(records)} say nothing about a change of the learning rate: give at least "
            f"two, of which one anneals and another stays higher for longer"
        )
    longest = max(float(run.course.step[-1]) for run in runs)
    low = start_steps + min(float(run.at[0]) for run in runs) * 0.25
    knots = np.linspace(math.log(max(1.0, low)), math.log(start_steps + longest + 4 * STARTS_APART), KNOTS)
    middle = math.exp(float(np.mean(knots)))
    everything = [np.ones(len(run.at), dtype=bool) for run in runs]
    found = []
    for law in laws:
        given = dict((fixed or {}).get(law, {}))
        fit = _Fit(runs, law, given, start_steps, knots, middle)
        point = fit.solve(everything)
        errors = []
        for place, falling in enumerate(falls):
            if not (hold_out and falling):
                continue
            masks = [mask.copy() for mask in everything]
            masks[place] = np.cumsum(runs[place].rate < SAME) == 0
            if masks[place].sum() < 3:
                continue
            other = fit.solve(masks)
            linear, _, _ = fit.linear(other, masks)
            missed = fit.design(place, other) @ linear - runs[place].loss
            errors.append(float(np.mean(missed[~masks[place]] ** 2)))
        found.append(fit.fitted(point, everything, math.sqrt(np.mean(errors)) if errors else math.nan))
    return found


def weights_of(fits: Sequence[Fitted]) -> Array:
    """In inverse proportion to the squared held-out error (Bates and Granger 1969); equal where there is none."""
    errors = np.array([fit.held_out for fit in fits])
    raw = 1.0 / np.maximum(errors, 1e-9) ** 2 if np.isfinite(errors).all() else np.ones(len(fits))
    return np.asarray(raw / raw.sum())


def predicted_effect(
    fits: Sequence[Fitted],
    changed: Array,
    base: Array,
    highest: float,
    window: tuple[int, int],
    *,
    weights: Array | None = None,
    lead: float = 0.0,
    measured_sd: float = 0.0,
) -> Contrast:
    """Expected effect of one schedule of learning rates against another: mean over the steps of a window, [first, end).

    `highest`: the highest learning rate of the fitted runs. `measured_sd`: standard deviation of the measurement with
    which the prediction will be compared. The 90 % interval is Student's, with as many degrees of freedom as the
    weights are worth laws, less one.
    """
    from scipy.stats import t as student

    weights = weights_of(fits) if weights is None else weights
    at = np.arange(window[0], window[1], dtype=np.float64)
    means = []
    for fit in fits:
        sides = []
        for lr in (changed, base):
            course = Course.of(lr, highest, np.arange(0.0, len(lr), 16.0))
            sides.append(np.array([np.interp(at, course.step, loss).mean() for loss in fit.losses(course, lead)]))
        means.append(sides[0] - sides[1])
    chosen = np.array([one[0] for one in means])
    within = np.array([one[1:].var() if len(one) > 2 else 0.0 for one in means])
    effect = float(weights @ chosen)
    worth = 1.0 / float(np.sum(weights**2))
    spread = float(weights @ (chosen - effect) ** 2)
    between = spread * worth / max(worth - 1.0, 1e-9) * (1.0 + 1.0 / worth) if len(fits) > 1 else 0.0
    variance = between + float(weights @ within)
    half = float(student.ppf(0.95, max(1.0, worth - 1.0))) * math.sqrt(variance + measured_sd**2)
    names = [fit.law for fit in fits]
    return Contrast(
        effect, math.sqrt(variance), effect - half, effect + half,
        dict(zip(names, chosen.tolist(), strict=True)), dict(zip(names, weights.tolist(), strict=True)),
    )  # fmt: skip


def _run(record: Record, highest: float, first_step: int) -> _Run | None:
    measured = np.flatnonzero(np.isfinite(record.loss))
    measured = measured[measured >= first_step]
    if highest <= 0.0 or len(measured) < KNOTS:
        return None
    groups = np.array_split(measured, min(POINTS, len(measured)))
    at = np.array([np.rint(group.mean()) for group in groups])
    loss = np.array([record.loss[group].mean() for group in groups])
    # a skipped step is a step at no learning rate
    lr = np.where(record.skipped == 1.0, 0.0, record.effective_lr)
    course = Course.of(lr, highest, np.concatenate([at, np.linspace(0, len(lr) - 1, POINTS).round()]))
    places = np.searchsorted(course.step, at)
    return _Run(record.run_id, course, at, places, loss, course.rate[places])


def _design(
    course: Course, values: Mapping[str, float], lead: float, start: float, knots: Array, middle: float
) -> Array:
    """Columns: the spline of progress, and minus the gain; [points, KNOTS + 3]."""
    from scipy.interpolate import BSpline

    rate, passed = course.rate, np.diff(course.step)
    if "log_saturation" in values:
        level = math.exp(values["log_saturation"])
        speed = rate * (1.0 + level) / (rate + level)
    else:
        speed = rate ** values.get("clock_exponent", 1.0)
    clock = start + np.concatenate([[0.0], np.cumsum(0.5 * (speed[1:] + speed[:-1]) * passed)])
    exponent = values["gain_exponent"]
    gain = (1.0 - rate**exponent) / exponent * (clock / middle) ** -values.get("drift", 0.0)
    if "fade" in values:
        memory = math.exp(values["log_memory"])
        kept = np.exp(-passed / memory).tolist()
        fresh = (np.exp(-0.5 * passed / memory) * np.diff(gain)).tolist()
        new, left = 0.0, [0.0]
        for keep, come in zip(kept, fresh, strict=True):
            new = new * keep + come
            left.append(new)
        gain = gain - values["fade"] * (gain - np.array(left))
    ends = [knots[0]] * 3, [knots[-1]] * 3
    x = np.clip(np.log(np.maximum(clock + lead, 1.0)), knots[0], knots[-1])
    spline = BSpline.design_matrix(x, np.concatenate([ends[0], knots, ends[1]]), 3).toarray()
    return np.column_stack([spline, -gain])


class _Fit:
    """Parameters and leads by least squares; spline and gain are solved for at each of their values."""

    def __init__(
        self, runs: list[_Run], law: str, given: dict[str, float], start: float, knots: Array, middle: float
    ) -> None:
        self.runs, self.law, self.given, self.start, self.knots, self.middle = runs, law, given, start, knots, middle
        self.names = [name for name in LAWS[law] if name not in given]
        self.infos = [PARAMETERS[name] for name in self.names]
        self.noise = 1e-3

    def design(self, place: int, point: Array) -> Array:
        """Columns of one run at its own points; see `_design`."""
        values = {**self.given, **dict(zip(self.names, point, strict=False))}
        lead = 0.0 if place == 0 else float(point[len(self.names) + place - 1])
        run = self.runs[place]
        return _design(run.course, values, lead, self.start, self.knots, self.middle)[run.places]

    def linear(self, point: Array, masks: list[NDArray[np.bool_]]) -> tuple[Array, list[Array], Array]:
        """Linear coefficients, residuals by run, and the matrix."""
        parts = [self.design(place, point)[mask] for place, mask in enumerate(masks)]
        matrix = np.vstack(parts)
        target = np.concatenate([run.loss[mask] for run, mask in zip(self.runs, masks, strict=True)])
        # a little ridge: knots before the first point would be free
        ridge = 1e-6 * np.eye(matrix.shape[1])
        linear = np.linalg.lstsq(np.vstack([matrix, ridge]), np.append(target, np.zeros(len(ridge))), rcond=None)[0]
        left = matrix @ linear - target
        return linear, np.split(left, np.cumsum([mask.sum() for mask in masks])[:-1]), matrix

    def solve(self, masks: list[NDArray[np.bool_]]) -> Array:
        """Parameters, then the leads of all runs but the first, from the points that the masks leave."""
        from scipy.optimize import least_squares

        leads = len(self.runs) - 1
        middle = np.array([info.middle for info in self.infos] + [0.0] * leads)
        sd = np.array([info.sd for info in self.infos] + [STARTS_APART] * leads)
        low = np.array([info.low for info in self.infos] + [-4.0 * STARTS_APART] * leads)
        high = np.array([info.high for info in self.infos] + [4.0 * STARTS_APART] * leads)

        def residuals(point: Array) -> Array:
            _, left, _ = self.linear(point, masks)
            return np.concatenate([*left, (point - middle) / sd * self.noise])

        point = middle.copy()
        # twice: how much the priors count depends on what is left
        for self.noise in (1e-3, 0.0):
            if self.noise == 0.0:
                self.noise = self.level(point, masks)
            point = least_squares(residuals, point, bounds=(low, high), x_scale=0.2 * sd, max_nfev=60, diff_step=1e-5).x
        return np.asarray(point)

    def level(self, point: Array, masks: list[NDArray[np.bool_]]) -> float:
        """Standard deviation of what is left, as if it were independent: neighbours are alike."""
        _, left, _ = self.linear(point, masks)
        alike = float(np.mean([np.corrcoef(part[1:], part[:-1])[0, 1] for part in left if len(part) > 3]))
        alike = min(0.98, max(0.0, alike))
        return max(1e-6, float(np.concatenate(left).std()) * math.sqrt((1.0 + alike) / (1.0 - alike)))

    def fitted(self, point: Array, masks: list[NDArray[np.bool_]], held_out: float) -> Fitted:
        """The law at a point, with draws from the curvature there."""
        linear, left, matrix = self.linear(point, masks)
        noise = self.level(point, masks)
        count = len(point)
        columns = []
        for i in range(count):
            moved = point.copy()
            size = 1e-4 if i < len(self.names) else 0.1
            moved[i] += size
            parts = np.vstack([self.design(place, moved) for place in range(len(self.runs))])
            columns.append((parts @ linear - matrix @ linear) / size)
        jacobian = np.column_stack([*columns, matrix])
        sd = [info.sd for info in self.infos] + [STARTS_APART] * (len(self.runs) - 1)
        prior = np.concatenate([1.0 / np.array(sd) ** 2, np.full(matrix.shape[1], 1e-4)])
        covariance = np.linalg.inv(jacobian.T @ jacobian / noise**2 + np.diag(prior))
        mean = np.concatenate([point, linear])
        rng = np.random.default_rng((13, 0))
        low = np.array([info.low for info in self.infos])
        high = np.array([info.high for info in self.infos])
        draws: list[tuple[Array, Array]] = []
        for one in [mean, *rng.multivariate_normal(mean, covariance, DRAWS, method="eigh")]:
            names = np.clip(one[: len(self.names)], low, high)
            values = {**self.given, **dict(zip(self.names, names, strict=True))}
            draws.append((np.array([values[name] for name in LAWS[self.law]]), one[count:]))
        values = {name: float(value) for name, value in zip(LAWS[self.law], draws[0][0], strict=True)}
        leads = (0.0, *(float(value) for value in point[len(self.names) : count]))
        rmse = float(np.sqrt(np.mean(np.concatenate(left) ** 2)))
        return Fitted(self.law, values, rmse, held_out, leads, tuple(draws), self.start, self.knots, self.middle)
