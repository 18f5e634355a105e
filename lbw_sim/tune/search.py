"""Where to look: points of the unit cube, batches of them at a time. Seeded; the same points on every machine.

It knows nothing of guards and runs. What needs a library that is not installed says which extra brings it.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lbw_sim.errors import TuneError, unknown_name

Points = NDArray[np.float64]

CMA_POPULATION = 64
"""Two lanes' widths, so that two cores have something to do."""
CMA_SIGMA = 0.2
"""First step width, in units of a parameter's whole range."""


class Search(Protocol):
    """Hands out points and is told how they did."""

    def ask(self) -> Points:
        """The next batch, [points, dimensions]; empty: there is no more."""
        ...

    def tell(self, points: Points, ranks: NDArray[np.int64]) -> None:
        """How a batch did: 0 is the best of it."""
        ...


class Spread:
    """All points at once, spread over the cube by low discrepancy (Sobol 1967) or drawn at random.

    Half of a cube's volume in twenty dimensions lies where every parameter is far from where it started, and few guards
    are any good there. So a further coordinate says how far a point goes from the start towards its place.
    """

    def __init__(self, start: Points, count: int, seed: int, kind: str) -> None:
        self._points = spread(start, count, seed, kind)

    def ask(self) -> Points:
        """See `Search`."""
        points, self._points = self._points, self._points[:0]
        return points

    def tell(self, points: Points, ranks: NDArray[np.int64]) -> None:
        """Nothing is learnt."""


def spread(start: Points, count: int, seed: int, kind: str) -> Points:
    """`count` points around and beyond `start`; see `Spread`. Raises TuneError without scipy for `sobol`."""
    dimensions = len(start) + 1
    if kind == "random":
        cube = np.random.default_rng((seed, 3)).random((count, dimensions))
    else:
        try:
            from scipy.stats import qmc
        except ModuleNotFoundError:
            raise TuneError("a Sobol search needs scipy: pip install 'lbw-sim[tune]', or say --search random") from None
        # a whole power of two, as the sequence wants it
        cube = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng((seed, 3))).random_base2(
            math.ceil(math.log2(max(2, count)))
        )[:count]
    reach = cube[:, -1:]
    return np.asarray(start + reach * (cube[:, :-1] - start))


class CmaEs:
    """Covariance matrix adaptation (Hansen 2001), from the start on, by the library `cmaes`.

    When it stops, it begins anew at the best of its last batch.

    Only the order within a batch counts, so the rule that recommends is what it follows.
    """

    def __init__(self, start: Points, count: int, seed: int) -> None:
        try:
            from cmaes import CMA
        except ModuleNotFoundError:
            raise TuneError("this search needs cmaes: pip install 'lbw-sim[tune]'") from None
        self._make, self._seed, self._left = CMA, seed, count
        self._best = np.clip(start, 0.01, 0.99)
        self._strategy = self._begun()

    def _begun(self) -> Any:
        bounds = np.column_stack([np.zeros(len(self._best)), np.ones(len(self._best))])
        self._seed += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._make(
                mean=self._best, sigma=CMA_SIGMA, bounds=bounds, seed=self._seed, population_size=CMA_POPULATION
            )

    def ask(self) -> Points:
        """See `Search`."""
        if self._left < CMA_POPULATION:
            return np.empty((0, len(self._best)))
        self._left -= CMA_POPULATION
        return np.array([self._strategy.ask() for _ in range(CMA_POPULATION)])

    def tell(self, points: Points, ranks: NDArray[np.int64]) -> None:
        """See `Search`."""
        self._best = np.clip(points[int(np.argmin(ranks))], 0.01, 0.99)
        self._strategy.tell([(point, float(rank)) for point, rank in zip(points, ranks, strict=True)])
        if self._strategy.should_stop():
            self._strategy = self._begun()


SEARCHES = ("sobol", "random", "cmaes")


def search(kind: str, start: Points, count: int, seed: int) -> Search:
    """A search by name. Raises TuneError."""
    if kind not in SEARCHES:
        raise TuneError(unknown_name("search", kind, SEARCHES))
    return CmaEs(start, count, seed) if kind == "cmaes" else Spread(start, count, seed, kind)
