"""Loss signals that single bad batches, a falling trend and level shifts do not spoil.

Windowless: a handful of numbers, so that it runs in vector lanes. Time constants count rows, that is, measured losses:
a log of every fifth step is read at its own pace. It does not decide what is unsafe.
"""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, sensor
from lbw_sim.values import Signals, Telemetry, nan

LARGEST = 1e12
"""A loss or a norm beyond this is no measurement."""
SD_PER_MEAN_DIFFERENCE = 0.886226925452758
"""E|x - y| = 2/sqrt(pi) sd for two independent normal values."""
SETTLED_ROWS = 10.0
"""Rows from which a residual is clipped: before, the noise is not known."""
LEAST_NOISE_SHARE, NOISE_SHARE, NOISE_SHARE_AT_START = 0.5, 0.4, 1.4
"""A rise is noise up to a share of all the up and down before it: the second plus the third over the number of changes,
never less than the first. Chosen so that pure noise of any size stays below for 15 rows in 95 of 100 runs, normal or
Student's t with 3 degrees of freedom: what tests/guard/test_composite.py counts."""
FALL_ROWS = 3.0
"""So many rows' worth of the mean fall may itself be noise."""
SPARSE_STEPS = 3.0
"""Logged this far apart or farther, a single high row may be a whole event, and counts."""


class RobustLossState(NamedTuple):
    """Level, trend and noise of the loss; recent and long-run gradient and update norm."""

    rows: float
    step: float
    first: float
    least: float
    """Lowest so far."""
    settled: float
    """Lowest that two neighbours kept below."""
    walked: float
    """Sum of all changes up and down, to the loss before the previous one; only at the start of the run."""
    previous: float
    before_previous: float
    level: float
    trend: float
    mean_difference: float
    slow_level: float
    slow_low: float
    swing: float
    """Side of the last large residual: 1 above, -1 below."""
    oscillation: float
    grad_rows: float
    grad_fast: float
    grad_slow: float
    update_rows: float
    update_fast: float
    update_slow: float


@sensor(
    version=2,
    uses=("lr", "grad_norm", "update_norm", "nonfinite"),
    emits=(
        "loss", "lr", "grad_norm", "update_norm", "nonfinite", "loss_level", "loss_sd", "loss_z", "loss_trend",
        "loss_rise", "loss_rebound", "cadence_steps", "oscillation", "grad_ratio", "update_ratio",
    ),
)  # fmt: skip
class RobustLoss:
    """Residual from a local trend, and rise above the trailing minimum, in units of the run's own noise.

    - Level and trend are Holt's double exponential smoothing (Holt 1957) fed with clipped residuals (Huber 1964): one
      outlier moves them little, a level shift is followed in the end. The noise comes from differences of neighbouring
      losses, which a trend does not inflate.
    - `loss_z` is the residual of the lesser of the last two losses, since 97 of 100 rows that stand out alone are bad
      batches; in sparse logs it is the last loss itself.
    - `loss_rise` is a slow level of medians of three above its own trailing minimum. The minimum leaks upward, so
      that a run that has settled higher is not blamed for ever.
    - `loss_rebound` is for the first `startup_rows`: the share of its fall that the loss has given back, 1 if it never
      fell. Noise is hardly known then, and a difference from the lowest loss grows with it. So a rise counts only if
      it is more than half of all the up and down that led to it, more while only a few losses are known. Noise turns
      round again and again; a blow-up goes one way. It is the efficiency ratio of Kaufman (1995) with the fall left
      out: falling is what a loss should do, and no noise.

    >>> sensor, state = RobustLoss(), RobustLoss().init()
    >>> z, rise = [], []
    >>> for step in range(204):
    ...     loss = 4.0 - 0.01 * step + (0.02 if step % 2 else -0.02) + (1.0 if step in (199, 202, 203) else 0.0)
    ...     state, signals = sensor.step(state, Telemetry(step=step, loss=loss, nonfinite=0.0))
    ...     z.append(signals.loss_z)
    ...     rise.append(signals.loss_rise)
    >>> z[199] < 3, z[203] > 20, rise[199] < 1
    (True, True, True)
    """

    level_rows: int = param(10, low=2, high=200, unit="rows", doc="time constant of the level", log=True)
    noise_rows: int = param(65, low=10, high=2_000, unit="rows", doc="time constant of the noise", log=True)
    clip_sd: float = param(5.0, low=1.0, high=10.0, unit="sd", doc="residuals count no more than this")
    floor_share: float = param(0.001, low=0.0, high=0.1, doc="least noise, as a share of the level")
    rise_rows: int = param(12, low=2, high=500, unit="rows", doc="time constant of the slow level", log=True)
    forget_rows: int = param(
        400, low=10, high=10_000, unit="rows", doc="time in which a higher level is accepted", log=True
    )
    startup_rows: int = param(
        15, low=2, high=1_000, unit="rows", doc="rows that count as the start of the run", log=True
    )
    norm_fast_rows: int = param(
        10, low=2, high=200, unit="rows", doc="recent mean of gradient and update norm", log=True
    )
    norm_slow_rows: int = param(400, low=20, high=10_000, unit="rows", doc="long-run mean of the norms", log=True)

    def init(self) -> RobustLossState:
        """No history."""
        return RobustLossState(
            0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
            0.0,
        )  # fmt: skip

    def step(self, state: RobustLossState, telemetry: Telemetry) -> tuple[RobustLossState, Signals]:
        """One step; a channel that is missing or not finite leaves its part of the state alone."""
        grad_rows, grad_fast, grad_slow, grad_ratio = state.grad_rows, state.grad_fast, state.grad_slow, nan
        if 0.0 <= telemetry.grad_norm <= LARGEST:
            # one huge gradient must not own the long-run mean
            norm = telemetry.grad_norm if grad_rows < 20.0 else min(telemetry.grad_norm, 10.0 * grad_slow)
            grad_fast = grad_fast + max(1.0 / (grad_rows + 1.0), 1.0 / self.norm_fast_rows) * (norm - grad_fast)
            grad_slow = grad_slow + max(1.0 / (grad_rows + 1.0), 1.0 / self.norm_slow_rows) * (norm - grad_slow)
            grad_rows = grad_rows + 1.0
            grad_ratio = grad_fast / grad_slow if grad_slow > 0.0 and grad_rows > 5.0 * self.norm_fast_rows else nan
        update_rows, update_fast, update_slow, update_ratio = (
            state.update_rows, state.update_fast, state.update_slow, nan,
        )  # fmt: skip
        if 0.0 <= telemetry.update_norm <= LARGEST:
            norm = telemetry.update_norm if update_rows < 20.0 else min(telemetry.update_norm, 10.0 * update_slow)
            update_fast = update_fast + max(1.0 / (update_rows + 1.0), 1.0 / self.norm_fast_rows) * (norm - update_fast)
            update_slow = update_slow + max(1.0 / (update_rows + 1.0), 1.0 / self.norm_slow_rows) * (norm - update_slow)
            update_rows = update_rows + 1.0
            update_ratio = (
                update_fast / update_slow if update_slow > 0.0 and update_rows > 5.0 * self.norm_fast_rows else nan
            )

        rows, step, first = state.rows, state.step, state.first
        least, settled, walked = state.least, state.settled, state.walked
        previous, before_previous, level, trend = state.previous, state.before_previous, state.level, state.trend
        mean_difference, slow_level, slow_low = state.mean_difference, state.slow_level, state.slow_low
        swing, oscillation = state.swing, state.oscillation
        loss_level, loss_sd, loss_z, loss_trend, loss_rise = nan, nan, nan, nan, nan
        loss_rebound, cadence_steps, shown_oscillation = nan, nan, nan
        loss = telemetry.loss
        if -LARGEST <= loss <= LARGEST:
            if rows == 0.0:
                step = telemetry.step - 1.0
                first, least, settled, previous, before_previous = loss, loss, loss, loss, loss
                level, slow_level, slow_low = loss, loss, loss
            cadence_steps = max(1.0, telemetry.step - step)
            sparse = cadence_steps >= SPARSE_STEPS
            lesser = min(loss, previous)
            # a loss printed with few decimals repeats itself, and a solved task has none: noise is not zero
            sd = max(SD_PER_MEAN_DIFFERENCE * mean_difference, 1e-9 + self.floor_share * abs(level))
            predicted = level + trend
            residual = loss - predicted
            limit = self.clip_sd * sd
            clipped = max(-limit, min(limit, residual)) if rows >= SETTLED_ROWS else residual
            gain = max(1.0 / (rows + 1.0), 2.0 / (self.level_rows + 1.0))
            level = predicted + gain * clipped
            trend = trend + gain * clipped / (5.0 * self.level_rows) if rows >= 2.0 else trend

            difference = abs(loss - previous)
            if rows >= SETTLED_ROWS:
                difference = min(difference, limit / SD_PER_MEAN_DIFFERENCE)
            if rows >= 1.0:
                mean_difference = mean_difference + max(1.0 / rows, 1.0 / self.noise_rows) * (
                    difference - mean_difference
                )

            median = loss if sparse else max(lesser, min(max(loss, previous), before_previous))
            slow_level = slow_level + max(1.0 / (rows + 1.0), 2.0 / (self.rise_rows + 1.0)) * (median - slow_level)
            slow_low = slow_level if slow_level < slow_low else slow_low + (slow_level - slow_low) / self.forget_rows
            if rows < self.startup_rows:
                loss_rebound = 0.0
                # up to the lesser of the last two: a lone high row is no noise either
                walk = walked + abs(lesser - before_previous)
                per_change = 1.0 / max(1.0, rows - 1.0)
                clean = max(0.0, 1.0 - FALL_ROWS * per_change) * (first - settled)
                noise = max(LEAST_NOISE_SHARE, NOISE_SHARE + NOISE_SHARE_AT_START * per_change) * (walk - clean)
                # less than a twentieth of the first loss is noise, too
                if rows >= 2.0 and lesser - least > max(0.05 * abs(first), noise):
                    loss_rebound = (lesser - least) / (first - least) if first > least else 1.0
                walked = walked + abs(previous - before_previous)
            least, settled = min(least, loss), min(settled, max(loss, previous))

            swung = 0.0
            if residual > 2.5 * sd:
                swung = 1.0 if swing < 0.0 else 0.0
                swing = 1.0
            elif residual < -2.5 * sd:
                swung = 1.0 if swing > 0.0 else 0.0
                swing = -1.0
            oscillation = oscillation + (swung - oscillation) / 30.0
            loss_z = ((loss if sparse else lesser) - predicted) / sd
            loss_level, loss_sd, loss_trend = level, sd, trend / sd
            loss_rise, shown_oscillation = (slow_level - slow_low) / sd, oscillation
            before_previous, previous, step, rows = previous, loss, telemetry.step * 1.0, rows + 1.0

        return (
            RobustLossState(
                rows, step, first, least, settled, walked, previous, before_previous, level, trend, mean_difference,
                slow_level, slow_low, swing, oscillation, grad_rows, grad_fast, grad_slow, update_rows, update_fast,
                update_slow,
            ),
            Signals(
                loss=loss,
                lr=telemetry.lr,
                grad_norm=telemetry.grad_norm,
                update_norm=telemetry.update_norm,
                nonfinite=telemetry.nonfinite,
                loss_level=loss_level,
                loss_sd=loss_sd,
                loss_z=loss_z,
                loss_trend=loss_trend,
                loss_rise=loss_rise,
                loss_rebound=loss_rebound,
                cadence_steps=cadence_steps,
                oscillation=shown_oscillation,
                grad_ratio=grad_ratio,
                update_ratio=update_ratio,
            ),
        )  # fmt: skip
