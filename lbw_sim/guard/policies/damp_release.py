"""The default policy: cut the learning rate while the run is in danger, give it back when it is not."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import param, policy
from lbw_sim.values import Assessment, Posture, Regime, Request


class DampReleaseState(NamedTuple):
    """Steps since the last cut."""

    since_cut: int


@policy(version=1)
class DampRelease:
    """One cut per `hold_steps` while the regime is dangerous; release once it is safe again.

    SPIKE, OSCILLATION and DIVERGING cut. STRESSED and RECOVERY keep the scale where it is. PLATEAU releases: a run that
    settled higher is not helped by an ever lower learning rate (a damp spiral). NONFINITE skips the update.

    >>> rule = DampRelease(cut=0.5)
    >>> state, request = rule.step(rule.init(), Assessment(Regime.SPIKE), 1.0)
    >>> Posture(request.posture).name, request.scale
    ('DAMP', 0.5)
    """

    cut: float = param(0.3, low=0.05, high=0.95, doc="factor of one cut")
    hold_steps: int = param(15, low=1, high=1_000, unit="steps", doc="least distance between cuts", log=True)
    release: float = param(1.05, low=1.001, high=2.0, unit="1/step", doc="factor of one step of release")

    def init(self) -> DampReleaseState:
        """Ready to cut."""
        return DampReleaseState(self.hold_steps)

    def step(self, state: DampReleaseState, assessment: Assessment, scale: float) -> tuple[DampReleaseState, Request]:
        """One regime; `scale` is the one now in force."""
        regime = assessment.regime
        since_cut = min(state.since_cut + 1, self.hold_steps)
        if regime == Regime.NONFINITE:
            return DampReleaseState(since_cut), Request(int(Posture.SKIP), scale)
        if regime == Regime.SPIKE or regime == Regime.OSCILLATION or regime == Regime.DIVERGING:
            if since_cut >= self.hold_steps:
                return DampReleaseState(0), Request(int(Posture.DAMP), scale * self.cut)
            return DampReleaseState(since_cut), Request(int(Posture.HOLD), scale)
        if regime == Regime.STRESSED or regime == Regime.RECOVERY:
            return DampReleaseState(since_cut), Request(int(Posture.HOLD), scale)
        return DampReleaseState(since_cut), Request(int(Posture.RELEASE), min(1.0, scale * self.release))
