"""Loss signals that single bad batches, a falling trend and level shifts do not spoil.

Windowless: a handful of numbers, so that it runs in vector lanes. It does not decide what is unsafe.
"""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, sensor
from lbw_sim.values import Signals, Telemetry, nan

# beyond this a loss is no measurement
LARGEST_LOSS = 1e12
# E|x - y| = 2/sqrt(pi) sd for two independent normal values
SD_PER_MEAN_DIFFERENCE = 0.886226925452758


class RobustLossState(NamedTuple):
    """Level, trend and noise of the loss; recent and long-run gradient and update norm."""

    seen: float
    previous: float
    level: float
    trend: float
    mean_difference: float
    low: float
    swing: float
    oscillation: float
    grad_count: float
    grad_fast: float
    grad_slow: float
    update_count: float
    update_fast: float
    update_slow: float


@sensor(
    version=1,
    uses=("lr", "grad_norm", "update_norm", "nonfinite"),
    emits=(
        "loss", "lr", "grad_norm", "update_norm", "nonfinite", "loss_level", "loss_sd", "loss_z", "loss_trend",
        "loss_rise", "oscillation", "grad_ratio", "update_ratio",
    ),
)  # fmt: skip
class RobustLoss:
    """Residual from a local trend, in units of the noise between neighbouring steps.

    Level and trend are Holt's double exponential smoothing (Holt 1957) fed with clipped residuals (Huber 1964), so
    one outlier moves them little and a level shift is still followed in the end. The noise comes from differences of
    neighbouring losses, which a trend does not inflate. `loss_rise` is the level above its own trailing minimum; the
    minimum leaks upward, so that a run that has settled at a higher level is not blamed for ever.

    >>> sensor, state = RobustLoss(), RobustLoss().init()
    >>> for step in range(200):
    ...     loss = 4.0 - 0.01 * step + (0.02 if step % 2 else -0.02) + (1.0 if step == 199 else 0.0)
    ...     state, signals = sensor.step(state, Telemetry(step=step, loss=loss, nonfinite=0.0))
    >>> signals.loss_z > 20, signals.loss_rise < 4
    (True, True)
    """

    level_steps: int = param(8, low=2, high=200, unit="steps", doc="time constant of the level", log=True)
    trend_steps: int = param(40, low=4, high=2_000, unit="steps", doc="time constant of the trend", log=True)
    noise_steps: int = param(60, low=10, high=2_000, unit="steps", doc="time constant of the noise", log=True)
    forget_steps: int = param(
        200, low=10, high=10_000, unit="steps", doc="time in which a higher level is accepted", log=True
    )
    clip_sd: float = param(3.0, low=1.0, high=10.0, unit="sd", doc="residuals seen no more than this")
    norm_fast_steps: int = param(
        10, low=2, high=200, unit="steps", doc="recent mean of gradient and update norm", log=True
    )
    norm_slow_steps: int = param(400, low=20, high=10_000, unit="steps", doc="long-run mean of the norms", log=True)

    def init(self) -> RobustLossState:
        """No history."""
        return RobustLossState(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def step(self, state: RobustLossState, telemetry: Telemetry) -> tuple[RobustLossState, Signals]:
        """One step; a channel that is missing or not finite leaves its part of the state alone."""
        grad_count, grad_fast, grad_slow, grad_ratio = state.grad_count, state.grad_fast, state.grad_slow, nan
        if 0.0 <= telemetry.grad_norm <= LARGEST_LOSS:
            # one huge gradient must not own the long-run mean
            norm = telemetry.grad_norm if grad_count < 20.0 else min(telemetry.grad_norm, 20.0 * grad_slow)
            grad_fast = grad_fast + max(1.0 / (grad_count + 1.0), 1.0 / self.norm_fast_steps) * (norm - grad_fast)
            grad_slow = grad_slow + max(1.0 / (grad_count + 1.0), 1.0 / self.norm_slow_steps) * (norm - grad_slow)
            grad_count = grad_count + 1.0
            grad_ratio = grad_fast / grad_slow if grad_slow > 0.0 else nan
        update_count, update_fast, update_slow, update_ratio = (
            state.update_count, state.update_fast, state.update_slow, nan,
        )  # fmt: skip
        if 0.0 <= telemetry.update_norm <= LARGEST_LOSS:
            norm = telemetry.update_norm if update_count < 20.0 else min(telemetry.update_norm, 20.0 * update_slow)
            update_fast = update_fast + max(1.0 / (update_count + 1.0), 1.0 / self.norm_fast_steps) * (
                norm - update_fast
            )
            update_slow = update_slow + max(1.0 / (update_count + 1.0), 1.0 / self.norm_slow_steps) * (
                norm - update_slow
            )
            update_count = update_count + 1.0
            update_ratio = update_fast / update_slow if update_slow > 0.0 else nan

        seen, previous, level, trend = state.seen, state.previous, state.level, state.trend
        mean_difference, low, swing, oscillation = state.mean_difference, state.low, state.swing, state.oscillation
        loss_level, loss_sd, loss_z, loss_trend, loss_rise, shown_oscillation = nan, nan, nan, nan, nan, nan
        loss = telemetry.loss
        if -LARGEST_LOSS <= loss <= LARGEST_LOSS:
            if seen == 0.0:
                previous, level, low = loss, loss, loss
            # a loss printed with few decimals repeats itself: its noise is not zero
            floor = 1e-4 * abs(level) + 1e-9
            sd = max(SD_PER_MEAN_DIFFERENCE * mean_difference, floor)
            predicted = level + trend
            residual = loss - predicted
            limit = self.clip_sd * sd
            clipped = max(-limit, min(limit, residual)) if seen >= 10.0 else residual
            gain = max(1.0 / (seen + 1.0), 2.0 / (self.level_steps + 1.0))
            level = predicted + gain * clipped
            trend = trend + gain * clipped / self.trend_steps if seen >= 2.0 else trend

            difference = abs(loss - previous)
            if seen >= 10.0:
                difference = min(difference, limit / SD_PER_MEAN_DIFFERENCE)
            if seen >= 1.0:
                mean_difference = mean_difference + max(1.0 / seen, 1.0 / self.noise_steps) * (
                    difference - mean_difference
                )
            low = level if level < low else low + (level - low) / self.forget_steps

            z = residual / sd
            swung = 0.0
            if z > 2.5:
                swung = 1.0 if swing < 0.0 else 0.0
                swing = 1.0
            elif z < -2.5:
                swung = 1.0 if swing > 0.0 else 0.0
                swing = -1.0
            oscillation = oscillation + (swung - oscillation) / 30.0
            previous = loss
            seen = seen + 1.0
            loss_level, loss_sd, loss_z, loss_trend = level, sd, z, trend / sd
            loss_rise, shown_oscillation = (level - low) / sd, oscillation

        return (
            RobustLossState(
                seen, previous, level, trend, mean_difference, low, swing, oscillation,
                grad_count, grad_fast, grad_slow, update_count, update_fast, update_slow,
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
                oscillation=shown_oscillation,
                grad_ratio=grad_ratio,
                update_ratio=update_ratio,
            ),
        )  # fmt: skip
