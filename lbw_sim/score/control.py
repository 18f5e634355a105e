"""Control: how much a guard did to a run. It never says whether that helped.

The columns of a shadow run give what the guard would have done; nothing in them was applied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.errors import ScoreError
from lbw_sim.trace.alarms import unsafe_rows


class ControlSummary(NamedTuple):
    """What a guard did in one run. The control effort of a step is 1 - scale."""

    steps: int
    control_energy: float
    """Sum of (1 - scale)^2."""
    control_active_steps: int
    """Steps with scale below 1."""
    regime_switches: int
    """Steps whose regime is not the one before."""
    stress_mode_steps: int
    """Steps in an unsafe regime."""
    mean_scale: float
    """nan without steps."""
    lr_mass_removed: float
    """Sum of effort × lr over sum of lr, in [0, 1], over steps whose lr was recorded; nan when that sum is 0."""
    skipped_steps: int
    """Updates that were dropped, as recorded; 0 in a shadow run."""
    rollbacks: int
    """Returns to a snapshot, as recorded; 0 in a shadow run."""


def control_summary(
    columns: Mapping[str, NDArray[Any]], everything: Mapping[str, NDArray[Any]] | None = None
) -> ControlSummary:
    """Measure one lineage of a trace: `columns` as `Trace.to_numpy()` gives. Raises ScoreError.

    `everything`: the columns of lineage `all`, in which rollbacks are counted: the row that went back is itself among
    those that were given up, so the final lineage holds none of them.

    >>> summary = control_summary({
    ...     "scale": np.array([1.0, 0.5, 1.0]), "lr": np.array([2.0, 1.0, 1.0]), "regime": np.array([1, 3, 1]),
    ...     "skipped": np.array([False, False, False]), "rolled_back_to": np.array([-1, -1, -1])})
    >>> summary.control_energy, summary.regime_switches, summary.lr_mass_removed
    (0.25, 2, 0.125)
    """
    missing = [name for name in ("scale", "lr", "regime", "skipped", "rolled_back_to") if name not in columns]
    if missing:
        raise ScoreError(f"control needs column {', '.join(missing)}; there is {', '.join(sorted(columns)) or 'none'}")
    scale, lr = np.asarray(columns["scale"], dtype=float), np.asarray(columns["lr"], dtype=float)
    regime = np.asarray(columns["regime"])
    effort = 1.0 - scale
    measured = ~np.isnan(lr)
    lr_mass = math.fsum(lr[measured])
    return ControlSummary(
        steps=len(scale),
        control_energy=math.fsum(effort**2),
        control_active_steps=int((scale < 1.0).sum()),
        regime_switches=int((regime[1:] != regime[:-1]).sum()),
        stress_mode_steps=int(unsafe_rows(regime).sum()),
        mean_scale=math.fsum(scale) / len(scale) if len(scale) else math.nan,
        lr_mass_removed=math.fsum((effort * lr)[measured]) / lr_mass if lr_mass else math.nan,
        skipped_steps=int(np.asarray(columns["skipped"], dtype=bool).sum()),
        rollbacks=int((np.asarray((columns if everything is None else everything)["rolled_back_to"]) >= 0).sum()),
    )
