"""Runs that differ in learning rate, method and seed: which run ended where, and how sensitive a method is.

It reads the training loss that was recorded, and calls a run that ended without a finite loss just that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lbw_sim.errors import ScoreError
from lbw_sim.values import nan

FIELDS = ("architecture", "method", "peak_lr", "seed")


class GridRun(NamedTuple):
    """One run's place in a grid, and how it ended."""

    run_id: str
    architecture: str
    method: str
    peak_lr: float
    seed: str
    initial_loss: float
    """nats; nan: not known."""
    final_loss: float
    """nats; nan: did not end with a finite loss."""


def place_in_grid(
    run_id: str, provenance: Mapping[str, object], pattern: str | None = None
) -> tuple[str, str, float, str] | None:
    """Architecture, method, peak learning rate and seed of a run; None when it has no learning rate.

    From its provenance or, with `pattern`, a regular expression whose groups `architecture`, `method`, `peak_lr` and
    `seed` are searched for in the run id; only `peak_lr` is needed. Raises ScoreError for a wrong pattern.

    >>> place_in_grid("gptL_adamw_5e-05", {}, "(?P<architecture>[^_]+)_(?P<method>[^_]+)_(?P<peak_lr>.+)")
    ('gptL', 'adamw', 5e-05, '')
    """
    found: dict[str, object] = {name: provenance.get(name) for name in FIELDS}
    if pattern is not None:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ScoreError(f"grid pattern {pattern!r} is no regular expression: {error}") from None
        if "peak_lr" not in compiled.groupindex:
            raise ScoreError(f"grid pattern {pattern!r} has no group (?P<peak_lr>...); groups: {', '.join(FIELDS)}")
        matched = compiled.search(run_id)
        if matched is None:
            return None
        found |= {name: text for name, text in matched.groupdict().items() if name in FIELDS}
    try:
        peak_lr = float(str(found["peak_lr"]))
    except ValueError:
        return None
    if not (0.0 < peak_lr < math.inf):
        return None
    words = ["" if found[name] is None else str(found[name]) for name in ("architecture", "method", "seed")]
    return words[0], words[1] or "as recorded", peak_lr, words[2]


def grids(runs: Iterable[GridRun]) -> dict[str, list[GridRun]]:
    """Architecture -> its runs, of those with two learning rates at least."""
    found: dict[str, list[GridRun]] = {}
    for run in runs:
        found.setdefault(run.architecture, []).append(run)
    return {name: mine for name, mine in sorted(found.items()) if len({run.peak_lr for run in mine}) > 1}


def lr_sensitivity(runs: Sequence[GridRun], best_loss: float) -> float:
    """Mean over learning rates of min(final, initial) loss minus `best_loss`: 0 when every one ends at the best.

    Wortsman et al., arXiv 2309.14322, for the learning rates at hand; seeds of one learning rate are averaged first. A
    run without a finite final loss counts as its initial loss; nan when that is not known either.

    >>> runs = [GridRun("a", "", "adamw", 0.1, "0", 5.0, 2.0), GridRun("b", "", "adamw", 1.0, "0", 5.0, nan)]
    >>> lr_sensitivity(runs, 2.0)
    1.5
    """
    by_lr: dict[float, list[float]] = {}
    for run in runs:
        ends = [loss for loss in (run.final_loss, run.initial_loss) if not math.isnan(loss)]
        by_lr.setdefault(run.peak_lr, []).append(min(ends, default=nan))
    means = [math.fsum(losses) / len(losses) for losses in by_lr.values()]
    return math.fsum(mean - best_loss for mean in means) / len(means) if means else nan
