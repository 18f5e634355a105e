"""Where and how a run was made: the facts that a reader needs to judge or repeat it.

It looks only at what is loaded already and never starts a device: recording must not change what it records.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import lbw_sim

Fact = str | int | float | None
Provenance = dict[str, Fact]


def collect(*, seed: int | None = None, host: bool = True, **more: Fact) -> Provenance:
    """Time, versions, device, git revision of the working folder, world size; `more` is added, and wins.

    `host=False` leaves out the name of the machine, for traces that will be published. `git_revision` is None outside
    a repository, and does not tell whether files were changed since.

    >>> collect(seed=7, host=False, corpus="wikitext-103")["corpus"]
    'wikitext-103'
    """
    facts: Provenance = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "lbw_sim": lbw_sim.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "cpu_count": os.cpu_count(),
        "git_revision": _git_revision(),
        "seed": seed,
    }
    if host:
        facts["host"] = platform.node()
    for name in ("numpy", "torch"):
        version = getattr(sys.modules.get(name), "__version__", None)
        facts[name] = None if version is None else str(version)
    torch: Any = sys.modules.get("torch")
    facts["device"] = "cpu"
    facts["world_size"] = int(size) if (size := os.environ.get("WORLD_SIZE", "")).isdigit() else 1
    if torch is not None:
        # is_available() would already talk to the driver
        if torch.cuda.is_initialized():
            facts["device"] = torch.cuda.get_device_name()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            facts["world_size"] = torch.distributed.get_world_size()
    return facts | more


def _git_revision() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
