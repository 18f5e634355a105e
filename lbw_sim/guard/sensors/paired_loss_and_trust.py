"""The signals of `paired_loss`, and beside them how far the optimizer's own steps can be trusted."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.guard.sensors.paired_loss import PairedLoss
from lbw_sim.guard.sensors.robust_loss import RobustLossState
from lbw_sim.params import meta, param, part, sensor
from lbw_sim.values import Signals, Telemetry, nan

LARGEST = 1e12
"""A gain beyond this, infinite ones included, counts as this."""
MOST_MEANS = 3.0
"""A measurement counts for no more than so many times the mean size of those before it."""


class PairedLossAndTrustState(NamedTuple):
    """The inner state and the means that the ratio is made of; nats, all 0 before the first measurement."""

    inner: RobustLossState
    size: float
    """Of a measurement: the larger of |gain| and twice |gain of the half step|."""
    gain: float
    """Change of the loss in a whole step."""
    twice_half: float
    """Twice its change in half a step."""


@sensor(
    version=3,
    uses=meta(PairedLoss).uses,
    emits=(*meta(PairedLoss).emits, "full_step_lr", "gain_ratio", "gradient_reach"),
    extra=(*meta(PairedLoss).extra, "full_step_lr", "step_gain", "half_step_gain", "gradient_reach"),
)
class PairedLossAndTrust:
    """What `paired_loss` makes of loss and pair; `full_step_lr` and `gradient_reach` as they came; and `gain_ratio`.

    The ratio is one of two means: what the last few measured steps did to the loss of their own batch, channel
    `step_gain`, over twice what half of each step would have done, `half_step_gain`. So a step that did little counts
    for little, and one that did very much for no more than three average ones. Where not even half a step improves
    anything the ratio is -1. It comes with a measurement and is nan on all other steps, and while the means say that
    half a step harms and the whole one helps, which is noise.

    >>> sensor = PairedLossAndTrust()
    >>> now = Telemetry(step=1, loss=2.4, extra=(nan, 0.05, -0.1, -0.0625, nan))
    >>> sensor.step(sensor.init(), now)[1].gain_ratio
    0.8
    """

    inner: PairedLoss = part(PairedLoss, doc="the sensor of loss and paired probe")
    keep: float = param(0.85, low=0.0, high=0.999, doc="weight of the past in the means, per measurement")

    def init(self) -> PairedLossAndTrustState:
        """The inner sensor's start, nothing measured."""
        return PairedLossAndTrustState(self.inner.init(), 0.0, 0.0, 0.0)

    def step(self, state: PairedLossAndTrustState, telemetry: Telemetry) -> tuple[PairedLossAndTrustState, Signals]:
        """Ask the inner sensor, add size and ratio."""
        inner, signals = self.inner.step(state.inner, telemetry)
        size, gain, twice_half, ratio = state.size, state.gain, state.twice_half, nan
        now, now_twice_half = telemetry.extra[2], 2.0 * telemetry.extra[3]
        # a skipped step has done nothing, and says nothing
        if now == now and now_twice_half == now_twice_half and (now != 0.0 or now_twice_half != 0.0):
            now = max(-LARGEST, min(LARGEST, now))
            now_twice_half = max(-LARGEST, min(LARGEST, now_twice_half))
            now_size = max(abs(now), abs(now_twice_half))
            fits = min(1.0, MOST_MEANS * size / now_size) if size > 0.0 and now_size > 0.0 else 1.0
            size = fits * now_size if size == 0.0 else self.keep * size + (1.0 - self.keep) * (fits * now_size)
            gain = self.keep * gain + fits * now
            twice_half = self.keep * twice_half + fits * now_twice_half
            if twice_half < 0.0:
                ratio = gain / twice_half
            elif gain > 0.0:
                ratio = -1.0
        return PairedLossAndTrustState(inner, size, gain, twice_half), signals._replace(
            full_step_lr=telemetry.extra[1], gain_ratio=ratio, gradient_reach=telemetry.extra[4]
        )
