"""How many processor cores this process may use, for whoever starts threads or processes."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """At least 1. A container or batch system may grant fewer than the machine has; where the system does not tell, as
    on macOS and Windows, all of them.

    >>> 1 <= usable_cores() <= os.cpu_count()
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
