"""The signals of `paired_loss`, and beside them how far the optimizer's own steps keep what the gradient promises."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.guard.sensors.paired_loss import PairedLoss
from lbw_sim.guard.sensors.robust_loss import RobustLossState
from lbw_sim.params import meta, param, part, sensor
from lbw_sim.values import Signals, Telemetry, nan

LARGEST = 1e12
"""A gain or a promise beyond this is none."""


class PairedLossAndTrustState(NamedTuple):
    """The inner state and the two sums of which the ratio is one."""

    inner: RobustLossState
    grad_norm: float
    """Of the step before; 0: not known."""
    gain: float
    """Weighted mean of the measured changes of the loss; nats."""
    promise: float
    """The same of those that the gradient promised; nats, negative."""


@sensor(
    version=1,
    needs=("loss", "grad_norm"),
    uses=meta(PairedLoss).uses,
    emits=(*meta(PairedLoss).emits, "full_step_lr", "gain_ratio"),
    extra=(*meta(PairedLoss).extra, "full_step_lr", "step_gain", "step_slope"),
)
class PairedLossAndTrust:
    """What `paired_loss` makes of loss and paired probe; channel `full_step_lr` as it came; and `gain_ratio`.

    The ratio is that of two means, so that a step which promised little counts for little: what the last few measured
    steps did to the loss of their own batch, channel `step_gain`, over what their gradients promised. The promise is
    `step_slope` times the gradient norm of that step **before clipping**: a loop that clips passes on what
    `clip_grad_norm_` returns. Without a gradient norm there is no ratio. It comes on the steps on which it was measured
    and is nan on all others, and where the gradients promised no improvement at all.

    >>> sensor = PairedLossAndTrust()
    >>> state, _ = sensor.step(sensor.init(), Telemetry(step=0, loss=2.5, grad_norm=2.0, extra=(nan, 0.05, nan, nan)))
    >>> state, signals = sensor.step(state, Telemetry(step=1, loss=2.4, grad_norm=9.0, extra=(nan, 0.05, -0.1, -0.0625)))
    >>> signals.gain_ratio
    0.8
    """

    inner: PairedLoss = part(PairedLoss, doc="the sensor of loss and paired probe")
    keep: float = param(0.8, low=0.0, high=0.999, doc="weight of the past in the means, per measurement")

    def init(self) -> PairedLossAndTrustState:
        """The inner sensor's start, no step measured."""
        return PairedLossAndTrustState(self.inner.init(), 0.0, 0.0, 0.0)

    def step(self, state: PairedLossAndTrustState, telemetry: Telemetry) -> tuple[PairedLossAndTrustState, Signals]:
        """Ask the inner sensor, add size and ratio."""
        inner, signals = self.inner.step(state.inner, telemetry)
        gain, promise, ratio = state.gain, state.promise, nan
        step_gain, step_promise = telemetry.extra[2], telemetry.extra[3] * state.grad_norm
        if abs(step_gain) <= LARGEST and abs(step_promise) <= LARGEST and step_promise != 0.0:
            gain = self.keep * gain + step_gain
            promise = self.keep * promise + step_promise
            if promise < 0.0:
                ratio = gain / promise
        grad_norm = telemetry.grad_norm if 0.0 < telemetry.grad_norm <= LARGEST else 0.0
        return PairedLossAndTrustState(inner, grad_norm, gain, promise), signals._replace(
            full_step_lr=telemetry.extra[1], gain_ratio=ratio
        )
