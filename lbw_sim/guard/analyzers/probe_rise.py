"""The paired probe: batches on which the model is worse than it was when it trained on them."""

from __future__ import annotations

from typing import NamedTuple

from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals, nan


class ProbeRiseState(NamedTuple):
    """What lately spoke for an alarm, and until when none is raised."""

    above: float
    """Gains in a row above the limit; one far above counts double."""
    age_steps: int
    """Steps since the last gain."""
    rest_steps: int
    """Steps left in which gains are not judged."""
    known: int
    """Gains since judging began, as far as they matter."""
    gain: float
    """Mean gain, as a share of the loss level."""
    jitter: float
    """Mean of its absolute value."""


@analyzer(version=1, needs=("probe_gain", "loss_level"), uses=("lr", "nonfinite"))
class ProbeRise:
    """Names the regime from the first of these that holds; gains are meant as shares of the loss level.

    - DIVERGING: `confirm` gains in a row are above `limit_share`: the model is worse on what it was trained on.
    - OSCILLATION: the mean size of a gain is above `jitter_share`, and hardly any of it, less than `progress`, is
      improvement. So is a learning rate that is too high; one that is too low has small gains and all of them good.
    - NONFINITE: the training loss or its gradient is not finite.
    - STRESSED: the last gain was above the limit, and one more is waited for.
    - RECOVERY: for `rest_steps` after an alarm gains are not judged: a rollback makes the model worse on every batch
      that it has trained on since the snapshot, and that is no second alarm. It has to be longer than the probe's span.

    A batch's difficulty cancels in its gain, which is why this is quieter than the loss and hardly notices a change of
    data. The two alarms last one step. Gains that stop coming are no evidence: after `stale_steps` all is forgotten.
    Evidence is the last gain, or the mean size, as a share of the loss level.

    >>> rule, names = ProbeRise(confirm=2, rest_steps=3), []
    >>> state = rule.init()
    >>> for gain in [-0.1, 0.1, 0.1, 0.5, 0.5, 0.1, 0.1]:
    ...     state, assessment = rule.step(state, Signals(probe_gain=gain, loss_level=3.0))
    ...     names.append(Regime(assessment.regime).name)
    >>> names[:4], names[-1]
    (['STABLE', 'STRESSED', 'DIVERGING', 'RECOVERY'], 'DIVERGING')
    """

    limit_share: float = param(
        0.03, low=0.001, high=1.0, doc="loss of one batch, as a share of the level, that counts", log=True, limit=True
    )
    confirm: int = param(2, low=1, high=20, doc="gains in a row that make an alarm")
    jitter_share: float = param(
        0.01, low=0.001, high=1.0, doc="mean size of a gain, as a share of the level, that is too much", log=True,
        limit=True,
    )  # fmt: skip
    progress: float = param(0.25, low=0.0, high=1.0, doc="mean improvement, as a share of that, which excuses it")
    jitter_gains: int = param(6, low=2, high=1_000, doc="gains that the means look back", log=True)
    rest_steps: int = param(15, low=0, high=10_000, unit="steps", doc="steps after an alarm without another")
    stale_steps: int = param(100, low=1, high=100_000, unit="steps", doc="silence after which nothing is known")

    def init(self) -> ProbeRiseState:
        """Nothing seen."""
        return ProbeRiseState(0.0, 0, 0, 0, 0.0, 0.0)

    def step(self, state: ProbeRiseState, signals: Signals) -> tuple[ProbeRiseState, Assessment]:
        """One step, mostly without a gain."""
        above, age_steps, rest_steps = state.above, state.age_steps, max(0, state.rest_steps - 1)
        known, mean, jitter = state.known, state.gain, state.jitter
        regime, evidence = int(Regime.STABLE), nan
        share = signals.probe_gain / max(abs(signals.loss_level), 1e-9)
        if share == share:
            age_steps = 0
            evidence = share
            if rest_steps > 0:
                above, known, mean, jitter = 0.0, 0, 0.0, 0.0
            else:
                # one leap, the fall of the first steps above all, must not own the means
                clipped = max(-5.0 * self.jitter_share, min(5.0 * self.jitter_share, share))
                known = min(known + 1, self.jitter_gains)
                mean = mean + (clipped - mean) / self.jitter_gains
                jitter = jitter + (abs(clipped) - jitter) / self.jitter_gains
                far = 2.0 if share > 2.0 * self.limit_share else 1.0
                above = above + far if share > self.limit_share else 0.0
            if above >= self.confirm:
                regime = int(Regime.DIVERGING)
            elif known >= self.jitter_gains and jitter > self.jitter_share and -mean < self.progress * jitter:
                regime, evidence = int(Regime.OSCILLATION), jitter
        else:
            age_steps = min(age_steps + 1, self.stale_steps)
            if age_steps >= self.stale_steps:
                above, known, mean, jitter = 0.0, 0, 0.0, 0.0
        if regime == Regime.DIVERGING or regime == Regime.OSCILLATION:
            above, known, mean, jitter, rest_steps = 0.0, 0, 0.0, 0.0, self.rest_steps
        elif signals.nonfinite == 1.0:
            regime = int(Regime.NONFINITE)
        elif above > 0.0:
            regime = int(Regime.STRESSED)
        elif rest_steps > 0:
            regime = int(Regime.RECOVERY)
        return ProbeRiseState(above, age_steps, rest_steps, known, mean, jitter), Assessment(
            regime, evidence, signals.lr
        )
