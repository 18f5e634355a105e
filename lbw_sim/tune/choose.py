"""What is wanted of a guard, in numbers; the Pareto set; and the one guard that is recommended, by a stated rule.

It judges numbers that were measured on runs that chose, so they flatter: what a guard is worth is said elsewhere, on
runs that were held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


class Objectives(NamedTuple):
    """One value per candidate; less is better in all of them. Those of simulation are nan without plants."""

    missed: Values
    """Share of labelled events that were not seen."""
    false_alarms_per_10k: Values
    """Per 10,000 clean rows."""
    delay_steps: Values
    """Median over the events seen; nan when none was, which is worse than any."""
    energy: Values
    """Control energy asked for, per 1,000 rows."""
    final_loss: Values
    """Mean over the simulated runs; nats."""
    harm: Values
    """Mean loss by which healthy simulated runs end higher than without a guard; nats."""

    def take(self, places: Sequence[int] | NDArray[np.int64]) -> Objectives:
        """Of some candidates."""
        return Objectives(*(values[np.asarray(places)] for values in self))

    def used(self) -> list[str]:
        """Those that were measured at all."""
        return [name for name, values in zip(self._fields, self, strict=True)
                if not bool(np.isnan(values).all()) or name in ("missed", "delay_steps")]  # fmt: skip


class Rule(NamedTuple):
    """Who is recommended."""

    false_alarms_per_10k: float
    """Budget."""
    harm: float
    """Most harm to healthy simulated runs; nats."""

    def sentence(self, flown: bool) -> str:
        """The rule in words."""
        harm = f" and healthy simulated runs end at most {self.harm:g} nats higher" if flown else ""
        loss = "then the least simulated loss, " if flown else ""
        alarms = f"{self.false_alarms_per_10k:g} false alarm{'s' * (self.false_alarms_per_10k != 1)}"
        return (
            f"at most {alarms} per 10,000 clean rows{harm}; of those the most events seen, {loss}then the least delay, "
            f"then the least energy; if none keeps to that, the one that exceeds it least"
        )

    def keeps(self, found: Objectives) -> NDArray[np.bool_]:
        """Who stays within the budgets."""
        alarms = self._over(found.false_alarms_per_10k, self.false_alarms_per_10k)
        return np.asarray((alarms == 0.0) & (self._over(found.harm, self.harm) == 0.0))

    def order(self, found: Objectives) -> NDArray[np.int64]:
        """Candidates, the recommended one first; equals in their own order, in which the start is the first."""
        keys = (
            self._over(found.false_alarms_per_10k, self.false_alarms_per_10k),
            self._over(found.harm, self.harm),
            found.missed,
            np.nan_to_num(found.final_loss, nan=0.0),
            np.nan_to_num(found.delay_steps, nan=np.inf),
            found.energy,
            np.arange(len(found.missed)),
        )
        return np.lexsort(keys[::-1])

    @staticmethod
    def _over(values: Values, limit: float) -> Values:
        return np.maximum(0.0, np.nan_to_num(values, nan=0.0) - limit)


def pareto(found: Objectives) -> NDArray[np.int64]:
    """Candidates that no other beats in one objective without losing in another; of equals the first.

    >>> o = Objectives(*(np.array(v, float) for v in ([0, 0, 1], [2, 1, 0], [1, 1, 1], [5, 5, 5], [np.nan] * 3,
    ...                [np.nan] * 3)))
    >>> pareto(o).tolist()
    [1, 2]
    """
    table = np.column_stack([np.nan_to_num(getattr(found, name), nan=np.inf) for name in found.used()])
    _, first = np.unique(table, axis=0, return_index=True)
    # no point can be beaten by one that comes after it in this order
    order = first[np.lexsort(table[first].T[::-1])]
    front: list[int] = []
    kept = np.empty((0, table.shape[1]))
    for place in order.tolist():
        if not bool((kept <= table[place]).all(axis=1).any()):
            front.append(place)
            kept = np.vstack([kept, table[place]])
    return np.array(sorted(front), dtype=np.int64)
