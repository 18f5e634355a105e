"""Plain exponential mean and variance of the loss: the textbook z-score, outliers and trend included."""

from __future__ import annotations

import math
from typing import NamedTuple

from lbw_sim.params import param, sensor
from lbw_sim.values import Signals, Telemetry

# beyond this a loss is no measurement, and its square would leave float64
LARGEST_LOSS = 1e12


class EwmaState(NamedTuple):
    """Running moments."""

    seen: float
    mean: float
    variance: float


@sensor(version=1, uses=("lr", "nonfinite"), emits=("loss", "lr", "nonfinite", "loss_level", "loss_sd", "loss_z"))
class Ewma:
    """z-score of the loss against its exponentially weighted mean and variance, current value excluded.

    What most logging services alert on (Roberts 1959 for the chart). Known traps: the trend of a falling loss inflates
    the variance, and an outlier stays in both moments.

    >>> sensor, state = Ewma(window_steps=10), Ewma().init()
    >>> for step, loss in enumerate([2.0, 2.1, 2.0, 2.1, 2.0, 2.1, 9.0]):
    ...     state, signals = sensor.step(state, Telemetry(step=step, loss=loss))
    >>> signals.loss_z > 50
    True
    """

    window_steps: int = param(30, low=2, high=10_000, unit="steps", doc="time constant of mean and variance", log=True)

    def init(self) -> EwmaState:
        """No history."""
        return EwmaState(0.0, 0.0, 0.0)

    def step(self, state: EwmaState, telemetry: Telemetry) -> tuple[EwmaState, Signals]:
        """One loss; a loss that is missing or not finite leaves the moments alone."""
        loss = telemetry.loss
        if not (-LARGEST_LOSS <= loss <= LARGEST_LOSS):
            return state, Signals(loss=loss, lr=telemetry.lr, nonfinite=telemetry.nonfinite)
        sd = math.sqrt(state.variance)
        residual = loss - state.mean if state.seen > 0.0 else 0.0
        z = residual / sd if sd > 0.0 and state.seen >= 2.0 else 0.0
        gain = max(1.0 / (state.seen + 1.0), 2.0 / (self.window_steps + 1.0))
        mean = state.mean + gain * residual if state.seen > 0.0 else loss
        variance = (1.0 - gain) * (state.variance + gain * residual * residual)
        signals = Signals(
            loss=loss, lr=telemetry.lr, nonfinite=telemetry.nonfinite, loss_level=state.mean, loss_sd=sd, loss_z=z
        )
        return EwmaState(state.seen + 1.0, mean, variance), signals
