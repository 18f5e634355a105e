"""A guard of this package, active: a preset's name or the path of a TOML file stands after the colon."""

from __future__ import annotations

from lbw_sim.guard import GuardSpec
from lbw_sim.stress.method import Ask, Fitting, Method


def _fit(ask: Ask) -> Fitting:
    return Fitting(guard=GuardSpec.load(ask.argument or "default"))


METHOD = Method(
    name="guard",
    about="a guard, active: it scales, skips and, where its spec says so, rolls back",
    argument="a preset or TOML file (default)",
    fit=_fit,
)
