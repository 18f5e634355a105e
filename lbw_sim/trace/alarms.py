"""Where a guard is alarmed along a run: rows in an unsafe regime, and the stretches that they make.

It judges no alarm: what one was worth, see `lbw_sim.score`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lbw_sim.values import UNSAFE_REGIMES


def unsafe_rows(regimes: ArrayLike) -> NDArray[np.bool_]:
    """Which rows are in an unsafe regime. `regimes`: one `Regime` code per row.

    >>> unsafe_rows([1, 3, 3, 1, 8]).tolist()
    [False, True, True, False, True]
    """
    return np.isin(np.asarray(regimes), [int(regime) for regime in UNSAFE_REGIMES])


def stretches(marked: ArrayLike) -> NDArray[np.int64]:
    """(first row, last row) of each run of marked rows, in order; shape (stretches, 2).

    >>> stretches([False, True, True, False, True]).tolist()
    [[1, 2], [4, 4]]
    """
    edges = np.diff(np.asarray(marked, dtype=np.int8), prepend=0, append=0)
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1], axis=1).astype(np.int64)
