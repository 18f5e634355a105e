"""The envelope: hard limits on what any policy can do to a run.

It has the last word and trusts nothing that it is given: nan, infinite and absurd requests come out as decisions inside
the limits, and every damping ends, unless a spec gives it longer than any run. It refuses to judge the run: it never
sees the loss.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lbw_sim.params import envelope, param
from lbw_sim.values import Decision, Posture, Reason, Request


class EnvelopeState(NamedTuple):
    """What the limits remember; every number finite."""

    scale: float
    """Scale of the last decision."""
    damped_steps: int
    """Consecutive steps with scale below 1."""
    releasing: int
    """The `Reason` for which a forced release is under way; 0: none is."""
    rest_steps: int
    """Steps left in which damping is refused."""
    energy: float
    """Control energy so far."""
    energy_credit: float
    """Control energy that may still be spent before a forced release; below 0 when a release had to overspend."""
    skips_in_a_row: int
    skip_credit: float
    """Skips that may still be granted; refills slowly."""
    rollbacks: int
    """Rollbacks granted so far."""
    cooldown_steps: int
    """Steps left in which a rollback is refused."""


@envelope(version=1)
class Envelope:
    """Limits on scale, its rate of change, damping time, control energy, skips and rollbacks.

    Whatever is asked for, from the start of any damping the scale is back at exactly 1 after `release_deadline_steps`
    at the latest. A forced release asks nobody: where the full learning rate ends the run, as above a cap, make
    `max_damped_steps` longer than any run. Budgets are leaky buckets: a full allowance at the start, refilled in
    proportion to steps.

    >>> limits = Envelope(min_scale=0.2, max_drop=0.5)
    >>> state, decision = limits.step(limits.init(), 3, Request(Posture.DAMP, float("nan")))
    >>> decision.scale
    1.0
    >>> state, decision = limits.step(state, 3, Request(Posture.DAMP, -7.0))
    >>> decision.scale, Reason(decision.reason).name
    (0.5, 'RATE_LIMIT')
    """

    min_scale: float = param(0.1, low=0.001, high=1.0, doc="lowest scale", log=True)
    max_drop: float = param(0.75, low=0.01, high=1.0, unit="1/step", doc="largest fall of the scale in one step")
    max_rise: float = param(0.05, low=0.005, high=1.0, unit="1/step", doc="largest rise of the scale in one step")
    max_damped_steps: int = param(
        300, low=1, high=1_000_000_000, unit="steps", doc="longest run of steps below scale 1", log=True
    )
    rest_steps: int = param(50, low=0, high=10_000, unit="steps", doc="steps at scale 1 after a forced release")
    energy_per_1000_steps: float = param(150.0, low=0.0, high=1000.0, doc="control energy allowed per 1,000 steps")
    max_skips_in_a_row: int = param(3, low=0, high=100, unit="steps", doc="longest run of skipped steps")
    skips_per_1000_steps: float = param(10.0, low=0.0, high=1000.0, doc="skipped steps allowed per 1,000 steps")
    max_rollbacks: int = param(0, low=0, high=100, doc="rollbacks allowed in the whole run")
    rollback_cooldown_steps: int = param(100, low=1, high=100_000, unit="steps", doc="least distance between rollbacks")

    @property
    def release_deadline_steps(self) -> int:
        """Most consecutive steps for which the scale can be below 1."""
        return self.max_damped_steps + math.ceil((1.0 - self.min_scale) / self.max_rise)

    def init(self) -> EnvelopeState:
        """Full budgets, scale 1."""
        return EnvelopeState(1.0, 0, 0, 0, 0.0, self.energy_per_1000_steps, 0, self.skips_per_1000_steps, 0, 0)

    def step(self, state: EnvelopeState, regime: int, request: Request) -> tuple[EnvelopeState, Decision]:
        """Limit one request. `regime` is passed through into the decision."""
        posture = request.posture
        reason = int(Reason.NONE)
        energy_credit = min(self.energy_per_1000_steps, state.energy_credit + self.energy_per_1000_steps / 1000.0)
        skip_credit = min(self.skips_per_1000_steps, state.skip_credit + self.skips_per_1000_steps / 1000.0)
        rest_steps = max(0, state.rest_steps - 1)
        cooldown_steps = max(0, state.cooldown_steps - 1)
        skips_in_a_row = 0
        rollbacks = state.rollbacks
        rollback_steps = 0

        # the floor before the rate: a wanted scale that is nan asks for nothing
        wanted = request.scale if request.scale == request.scale else 1.0
        if wanted < self.min_scale:
            wanted = self.min_scale
            reason = int(Reason.MIN_SCALE)
        wanted = min(1.0, wanted)

        if posture == Posture.SKIP:
            if state.skips_in_a_row < self.max_skips_in_a_row and skip_credit >= 1.0:
                skips_in_a_row = state.skips_in_a_row + 1
                skip_credit = skip_credit - 1.0
                reason = int(Reason.GRANTED)
            else:
                posture = int(Posture.HOLD)
                reason = int(Reason.SKIPS_SPENT)
        elif posture == Posture.ROLLBACK:
            if rollbacks < self.max_rollbacks and cooldown_steps == 0 and request.rollback_steps >= 1:
                rollbacks = rollbacks + 1
                cooldown_steps = self.rollback_cooldown_steps
                rollback_steps = request.rollback_steps
                reason = int(Reason.GRANTED)
            else:
                posture = int(Posture.HOLD)
                reason = int(Reason.ROLLBACKS_SPENT)

        releasing = state.releasing
        if releasing == 0 and state.scale < 1.0:
            if state.damped_steps >= self.max_damped_steps:
                releasing = int(Reason.DAMPED_TOO_LONG)
            elif energy_credit < (1.0 - wanted) * (1.0 - wanted):
                releasing = int(Reason.ENERGY_SPENT)
        if releasing != 0:
            wanted = 1.0
            reason = releasing
        elif wanted < 1.0 and (rest_steps > 0 or energy_credit < (1.0 - wanted) * (1.0 - wanted)):
            wanted = max(wanted, state.scale)
            reason = int(Reason.RESTING) if rest_steps > 0 else int(Reason.ENERGY_SPENT)

        scale = wanted
        if wanted < state.scale - self.max_drop:
            scale = state.scale - self.max_drop
            reason = int(Reason.RATE_LIMIT)
        elif wanted > state.scale + self.max_rise:
            scale = state.scale + self.max_rise
            if releasing == 0:
                reason = int(Reason.RATE_LIMIT)
        elif reason == Reason.NONE and wanted < 1.0:
            reason = int(Reason.GRANTED)
        scale = min(1.0, max(self.min_scale, scale))

        if releasing != 0 and scale >= 1.0:
            rest_steps = self.rest_steps
            releasing = 0
        if posture != Posture.SKIP and posture != Posture.ROLLBACK:
            if scale < state.scale:
                posture = int(Posture.DAMP)
            elif scale > state.scale:
                posture = int(Posture.RELEASE)
            elif scale < 1.0:
                posture = int(Posture.DAMP)
            else:
                posture = int(Posture.HOLD)

        effort = (1.0 - scale) * (1.0 - scale)
        energy = state.energy + effort
        # the tail of a release is spent on credit: it has to be earned back before the next damping
        energy_credit = energy_credit - effort
        damped_steps = state.damped_steps + 1 if scale < 1.0 else 0
        return (
            EnvelopeState(
                scale, damped_steps, releasing, rest_steps, energy, energy_credit,
                skips_in_a_row, skip_credit, rollbacks, cooldown_steps,
            ),
            Decision(regime, posture, scale, energy, reason, rollback_steps),
        )  # fmt: skip
