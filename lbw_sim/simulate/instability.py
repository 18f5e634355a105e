"""The instability that several plants have in common: above a critical rate a swing grows, and a swing damages.

The law is told where it was found necessary, in `plants.lasting_damage`.
"""

from __future__ import annotations

LEAST_SWING = 1e-3
DEAD = 0.5
"""Share of damage from which on a run counts as dead."""
_FASTEST_GROWTH = 4.0
_DRIFT_MEMORY = 0.98
_DRIFT_STEP = 0.199
"""√(1 - 0.98²): the drift has variance 1."""


def wandered(drift: float, walk: float) -> float:
    """Where the critical rate has wandered to, in standard deviations. `walk`: a step's noise; nan counts as 0."""
    walk = max(-10.0, min(10.0, walk)) if walk == walk else 0.0
    return _DRIFT_MEMORY * drift + _DRIFT_STEP * walk


def grown(swing: float, ratio: float) -> float:
    """Amplitude of the swing, in [0.001, 1], after a step at so many times the critical rate.

    >>> grown(0.1, 0.5), grown(0.1, 1.5), grown(0.1, 10.0)
    (0.025, 0.225, 0.4)
    """
    return min(1.0, max(LEAST_SWING, swing * min(_FASTEST_GROWTH, ratio * ratio)))


def damaged(damage: float, swing: float, ratio: float, hazard: float) -> float:
    """Share of damage, in [0, 1], after that step. `hazard`: damage of a full swing at the critical rate."""
    harm = min(1.0, hazard * (swing - LEAST_SWING) * min(100.0, ratio))
    return min(1.0, damage + (1.0 - damage) * harm)
