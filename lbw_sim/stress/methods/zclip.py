"""ZClip (arXiv 2504.02507): a gradient whose norm is an outlier of its own past is clipped.

The rule is the guard's component `ema_outlier`; here it acts on the gradient, as in the source. The guard preset of the
same name scales the learning rate instead, which under Adam is another thing.
"""

from __future__ import annotations

from torch import nn

from lbw_sim.guard.analyzers.ema_outlier import EmaOutlier
from lbw_sim.stress.method import Ask, Fitting, Method, Workplace
from lbw_sim.values import Regime, Signals


class _ZClip:
    def __init__(self, place: Workplace, rule: EmaOutlier) -> None:
        self._place, self._rule, self._state = place, rule, rule.init()

    def act(self, step: int, loss: float) -> float:
        gradients = [p.grad for p in self._place.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._state, found = self._rule.step(self._state, Signals(grad_norm=float(norm)))
        if found.regime == Regime.SPIKE:
            for gradient in gradients:
                gradient.div_(found.evidence)
        return 1.0


def _fit(ask: Ask) -> Fitting:
    rule = EmaOutlier(limit_sd=ask.number(2.5, 1.0, 20.0, "limit of the z-score"))
    return Fitting(hand=lambda place: _ZClip(place, rule))


METHOD = Method(
    name="zclip",
    about="gradient clipped where its norm is an outlier of its own exponential moments",
    argument="z-score from which to clip (2.5)",
    fit=_fit,
)
