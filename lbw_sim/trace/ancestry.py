"""Where a forked run comes from: its trunk, the step at which it left it, and the name of what was done differently.

It stands in the provenance of the branch. A branch holds the rows from its fork on only; those before are the trunk's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lbw_sim.trace.provenance import Provenance
from lbw_sim.trace.store import Trace

OFF = "off"
"""The branch on which nothing is done."""
LAST_SHARE = 0.1
"""Of a branch's steps: their mean loss is its loss at the end."""


class Ancestry(NamedTuple):
    """Of one branch.

    >>> Ancestry.of(Ancestry("trunk", 100, "off").provenance())
    Ancestry(trunk='trunk', step=100, branch='off')
    """

    trunk: str
    """Run id of the run that was forked."""
    step: int
    """First step that the branch took by itself."""
    branch: str
    """`off`, or what was done."""

    def provenance(self) -> Provenance:
        """As the branch's trace carries it."""
        return {"forked_from": self.trunk, "forked_at_step": self.step, "fork_branch": self.branch}

    @classmethod
    def of(cls, provenance: Mapping[str, object]) -> Ancestry | None:
        """What a trace says about its origin; None: it is no branch."""
        trunk, step, branch = (provenance.get(key) for key in ("forked_from", "forked_at_step", "fork_branch"))
        if isinstance(trunk, str) and isinstance(step, int) and isinstance(branch, str):
            return cls(trunk, step, branch)
        return None


def ancestry_rows(traces: Sequence[Trace]) -> list[dict[str, object]]:
    """One row per branch among the traces: its origin, its loss at the end, and that against the branch `off`.

    Losses are training losses over the last tenth of the steps since the fork. Branches of one fork share every batch,
    so that the batches' difficulty cancels in the difference; it is nan where no branch `off` was recorded.
    """
    found = [(trace, origin) for trace in traces if (origin := Ancestry.of(trace.meta.provenance))]
    last = {trace.run_id: _last_loss(trace) for trace, _ in found}
    off = {origin[:2]: last[trace.run_id] for trace, origin in found if origin.branch == OFF}
    return [
        {
            "trunk": origin.trunk,
            "fork_step": origin.step,
            "branch": origin.branch,
            "run_id": trace.run_id,
            "last_loss": last[trace.run_id],
            "difference": last[trace.run_id] - off.get(origin[:2], float("nan")),
        }
        for trace, origin in sorted(found, key=lambda pair: (pair[1].trunk, pair[1].step, pair[1].branch != OFF))
    ]


def _last_loss(trace: Trace) -> float:
    loss = trace.to_numpy()["loss"]
    return float(np.mean(loss[-max(1, round(LAST_SHARE * len(loss))) :])) if len(loss) else float("nan")
