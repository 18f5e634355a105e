"""How far the learning rate is above a share of the initial weights' size."""

from __future__ import annotations

from lbw_sim.guard.analyzers.never import NeverState
from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals


@analyzer(version=1, needs=("lr", "initial_weight_rms"), uses=("nonfinite",))
class LrCap:
    """STABLE always; the evidence is lr / (share · RMS of the initial weights), above 1 when the lr is over the cap.

    Adam moves a weight by about the learning rate a step: a share of 0.1 lets no step move a typical weight by more
    than a tenth of its initial size. Nothing is observed here, so nothing is an alarm, only NONFINITE values are.
    Known trap: the share that works differs between models (0.1 is too much for a deeper post-LN one).

    >>> LrCap(share=0.1).step(LrCap().init(), Signals(lr=0.5, initial_weight_rms=1.0))[1].evidence
    5.0
    """

    share: float = param(0.1, low=1e-4, high=10.0, doc="largest lr, as a share of the weights' RMS", log=True)

    def init(self) -> NeverState:
        """Empty."""
        return NeverState()

    def step(self, state: NeverState, signals: Signals) -> tuple[NeverState, Assessment]:
        """One learning rate; a size that is not known gives no evidence."""
        if signals.nonfinite == 1.0:
            return state, Assessment(int(Regime.NONFINITE))
        cap = self.share * signals.initial_weight_rms
        if not (cap > 0.0):
            return state, Assessment(int(Regime.STABLE))
        return state, Assessment(int(Regime.STABLE), signals.lr / cap)
