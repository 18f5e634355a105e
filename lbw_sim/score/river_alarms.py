"""Drift detectors of the river library, as rows beside the guards.

Adapters, not rewrites: river's own objects, at river's defaults. Their memory is not plain numbers, so they cannot be
guard components, be verified or fly; they are here to be compared with. Needs the extra `river`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from lbw_sim.errors import ScoreError
from lbw_sim.score.detection import Alarm


def river_detectors() -> dict[str, Callable[[], Any]]:
    """ADWIN, KSWIN and Page-Hinkley by name; call one for a fresh detector. Raises ScoreError without river."""
    try:
        from river import drift
    except ModuleNotFoundError:
        raise ScoreError("river's detectors need river: pip install 'lbw-sim[river]'") from None
    return {
        "river ADWIN": drift.ADWIN,
        # its sample of the window is drawn at random
        "river KSWIN": lambda: drift.KSWIN(seed=0),
        "river PageHinkley": drift.PageHinkley,
    }


def river_alarms(detector: Any, losses: Iterable[float]) -> list[Alarm]:
    """One row of alarm wherever the detector says that the stream has drifted.

    A loss that is not finite is not shown to it.
    `detector`: anything with river's `update(value)` and `drift_detected`.
    """
    alarms = []
    for row, loss in enumerate(losses):
        if math.isfinite(loss):
            detector.update(loss)
            if detector.drift_detected:
                alarms.append(Alarm(row, row))
    return alarms
