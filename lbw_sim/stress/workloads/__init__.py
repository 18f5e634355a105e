"""Every workload: one file each, or one per family where they differ in numbers only; found by scanning.

A file declares `Workload`s as constants of its module. Nothing here imports transformers, peft or datasets before a
session asks for them.
"""

from __future__ import annotations

import sys

from lbw_sim.errors import StressError, unknown_name
from lbw_sim.stress.scan import declared_in
from lbw_sim.stress.workload import Workload

WORKLOADS: dict[str, Workload] = declared_in(sys.modules[__name__], Workload)
"""By name."""


def workload(name: str) -> Workload:
    """A workload by name. Raises StressError.

    >>> workload("post_ln").parameters
    33792
    """
    if name not in WORKLOADS:
        raise StressError(unknown_name("workload", name, WORKLOADS))
    return WORKLOADS[name]
