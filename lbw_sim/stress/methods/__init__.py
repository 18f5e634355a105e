"""Every method and control: one file each, found by scanning. Rules and sources stand in each file.

A rule that a guard can carry out (skip, scale, go back) is flown as that guard and has no second life here; what acts
on gradients or on single tensors is a hand of its own.
"""

from __future__ import annotations

import sys

from lbw_sim.errors import StressError, unknown_name
from lbw_sim.stress.method import Ask, Fitting, Method
from lbw_sim.stress.scan import declared_in

METHODS: dict[str, Method] = declared_in(sys.modules[__name__], Method)
"""By name."""


def method(spec: str) -> Method:
    """The method of a spec such as `clip:0.5` or `guard:default`. Raises StressError.

    >>> method("clip:0.5").name
    'clip'
    """
    name = spec.partition(":")[0]
    if name not in METHODS:
        raise StressError(unknown_name("method", name, METHODS))
    return METHODS[name]


def fitted(spec: str, *, steps: int, seed: int = 0, scales: tuple[float, ...] = ()) -> Fitting:
    """The method of a spec, fitted to one run. Raises StressError for what it cannot be fitted to."""
    chosen = method(spec)
    argument = spec.partition(":")[2]
    if ":" in spec and (not argument or not chosen.argument):
        takes = f"takes {chosen.argument}" if chosen.argument else "takes nothing after its name"
        raise StressError(f"method {spec!r}: {chosen.name} {takes}")
    return chosen.fit(Ask(argument, steps, seed, scales))
