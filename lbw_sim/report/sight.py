"""What a guard saw: its signals along a recorded run, and which of them decided.

Rebuilt by running the guard's own sensor and analyzer over the record. It refuses to show signals that do not lead to
the recorded regimes: then the run was resumed or rolled back, and its final lineage is not what the guard saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.guard import Guard
from lbw_sim.replay import telemetry_rows
from lbw_sim.values import Signals

MOST_ROWS = 100_000
"""Longer runs are too slow in plain Python to look into: some seconds each."""
ECHOES = ("loss", "lr", "grad_norm", "update_norm", "nonfinite")
"""Signals that repeat telemetry."""


class Sight(NamedTuple):
    """Along one run, one entry per row."""

    signals: dict[str, NDArray[np.float64]]
    """Name -> values, only of those that are ever measured; echoes of telemetry left out."""
    evidence: NDArray[np.float64]
    """What the analyzer gave as its reason; nan where it gave none."""
    seen: dict[str, NDArray[np.float64]]
    """The echoes: telemetry as the guard saw it, with its delay."""

    def deciding(self, row: int) -> str:
        """Name of the signal that the analyzer decided by at a row; empty when that cannot be told."""
        value = self.evidence[row]
        for name, values in (self.signals | self.seen).items():
            if values[row] == value:
                return name
        return ""


def look(guard: Guard, columns: Mapping[str, NDArray[Any]], regimes: NDArray[Any]) -> Sight | None:
    """The signals that lead to `regimes`, one per row of `columns`; None when they lead to others, or at more than
    `MOST_ROWS` rows.

    >>> from lbw_sim.guard import GuardSpec
    >>> columns = {"step": np.arange(3), "loss": np.array([2.0, 2.0, 9.0]), "nonfinite": np.zeros(3)}
    >>> sight = look(GuardSpec.load("never").build(), columns, np.ones(3))
    >>> sight.seen["loss"].tolist(), sight.deciding(2)
    ([2.0, 2.0, 9.0], '')
    """
    if len(columns["step"]) > MOST_ROWS:
        return None
    sensor_state, analyzer_state, before = guard.sensor.init(), guard.analyzer.init(), guard.not_yet
    table, evidence, found = [], [], []
    for now in telemetry_rows(columns, guard.extra_channels):
        sensor_state, signals = guard.sensor.step(sensor_state, guard.seen(now, before))
        analyzer_state, assessment = guard.analyzer.step(analyzer_state, signals)
        before = now
        table.append(signals[:-1])
        evidence.append(assessment.evidence)
        found.append(assessment.regime)
    if not np.array_equal(np.asarray(found), np.asarray(regimes)):
        return None
    values = np.array(table, dtype=float).reshape(len(table), len(Signals._fields) - 1)
    measured = {
        name: values[:, place]
        for place, name in enumerate(Signals._fields[:-1])
        if not np.isnan(values[:, place]).all()
    }
    return Sight(
        {name: column for name, column in measured.items() if name not in ECHOES},
        np.array(evidence, dtype=float),
        {name: column for name, column in measured.items() if name in ECHOES},
    )
