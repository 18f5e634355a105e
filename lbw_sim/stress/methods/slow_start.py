"""A slow start without feedback: a twentieth of the learning rate at first, 10 % more at every step until it is whole.

The preset `slow_start` is the same start with a probe and rollback behind it: `guard:slow_start`.
"""

from __future__ import annotations

from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.guard.analyzers.never import Never
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.policies.hold import Hold
from lbw_sim.guard.policies.slow_start import SlowStart
from lbw_sim.guard.sensors.raw import Raw
from lbw_sim.stress.method import Ask, Fitting, Method


def _fit(ask: Ask) -> Fitting:
    growth = ask.number(1.1, 1.001, 2.0, "growth of the learning rate per step")
    # as wide as an envelope can be: what it would forbid is the method's to answer for
    wide = Envelope(min_scale=0.01, max_drop=1.0, max_rise=1.0, max_damped_steps=100_000, energy_per_1000_steps=1000.0)
    guard = Guard(sensor=Raw(), analyzer=Never(), policy=SlowStart(inner=Hold(), growth=growth), envelope=wide)
    return Fitting(guard=GuardSpec.of(guard, "slow_start_alone"))


METHOD = Method(
    name="slow_start",
    about="a twentieth of the learning rate at first, growing step by step: no feedback",
    argument="growth per step (1.1)",
    fit=_fit,
)
