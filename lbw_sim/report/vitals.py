"""What can be said of a run from its loss and gradient norm alone, before any guard is asked.

Descriptions in plain numbers, made with the whole run in view; no verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.plots.loss_axis import median_rows, running_median
from lbw_sim.values import nan

END_SHARE = 0.05
"""The end of a run is the last twentieth of its rows, 5 at least."""
PARTS = 10


class Vitals(NamedTuple):
    """Of one run. Losses in nats, from the running median, so that one odd batch does not decide; nan: not known."""

    start_loss: float
    """Median of the first 5 finite losses."""
    lowest_loss: float
    lowest_step: int
    end_loss: float
    """Median over the end; nan when a loss there is not finite or none was measured."""
    nonfinite_rows: int
    """Rows whose loss or gradient was measured and is not finite."""
    first_nonfinite_step: int | None
    grad_growth: float
    """Largest ratio of the median gradient norm of a tenth of the run to that of an earlier tenth; the first tenth,
    which is start-up, left out."""
    grad_low: float
    grad_high: float
    """The two medians of that ratio."""
    peak_lr: float

    @property
    def end_above_lowest(self) -> float:
        """By how much the run ends above its own best; nats."""
        return self.end_loss - self.lowest_loss

    @property
    def recovered_share(self) -> float:
        """Share of the fall from start to lowest that is left at the end; below 0 when it ends above its start."""
        fall = self.start_loss - self.lowest_loss
        return (self.start_loss - self.end_loss) / fall if fall > 0.0 else nan


def vitals(columns: Mapping[str, NDArray[Any]]) -> Vitals:
    """Measure one lineage: `columns` as `Trace.to_numpy()` gives, at least one row.

    >>> loss = np.concatenate([np.linspace(5.0, 2.0, 300), np.full(100, 2.5)])
    >>> columns = {"step": np.arange(400), "loss": loss, "nonfinite": np.zeros(400), "lr": np.full(400, 1e-3),
    ...            "grad_norm": np.repeat([1.0, 4.0], 200)}
    >>> found = vitals(columns)
    >>> found.end_loss, round(found.end_above_lowest, 1), found.grad_growth
    (2.5, 0.5, 4.0)
    """
    steps = np.asarray(columns["step"])
    loss = np.asarray(columns["loss"], dtype=float)
    broken = (np.asarray(columns["nonfinite"]) == 1.0) | np.isinf(loss)
    smooth = running_median(np.where(np.isfinite(loss), loss, np.nan), median_rows(len(loss)))
    finite = loss[np.isfinite(loss)]
    lowest = int(np.nanargmin(smooth)) if len(finite) else 0
    last = max(5, round(END_SHARE * len(loss)))
    end = loss[-last:][~np.isnan(loss[-last:])]
    low, high = _growth(np.asarray(columns["grad_norm"], dtype=float))
    lr = np.asarray(columns["lr"], dtype=float)
    return Vitals(
        start_loss=float(np.median(finite[:5])) if len(finite) else nan,
        lowest_loss=float(smooth[lowest]) if len(finite) else nan,
        lowest_step=int(steps[lowest]),
        end_loss=float(np.median(end)) if len(end) and not broken[-last:].any() else nan,
        nonfinite_rows=int(broken.sum()),
        first_nonfinite_step=int(steps[np.argmax(broken)]) if broken.any() else None,
        grad_growth=high / low if low > 0.0 else nan,
        grad_low=low,
        grad_high=high,
        peak_lr=float(np.nanmax(lr)) if np.isfinite(lr).any() else nan,
    )


def _growth(grad_norm: NDArray[np.float64]) -> tuple[float, float]:
    """The earlier and the later median whose ratio is largest; nan, nan where there are too few."""
    parts = [part[np.isfinite(part)] for part in np.array_split(grad_norm, PARTS)[1:]]
    medians = [float(np.median(part)) for part in parts if len(part) >= 5]
    pairs = [(low, high) for place, low in enumerate(medians) for high in medians[place + 1 :] if low > 0.0]
    return max(pairs, key=lambda pair: pair[1] / pair[0], default=(nan, nan))
