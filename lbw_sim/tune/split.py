"""Which runs choose and which judge: whole groups of runs, so that near copies never stand on both sides.

Seeded. It refuses a search whose result no run would be left to judge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lbw_sim.errors import TuneError, unknown_name
from lbw_sim.score.detection import family_of
from lbw_sim.tune.runs import RunFacts
from lbw_sim.wording import counted

ENOUGH_FAMILIES = 3
"""From this many on, families are held out unless the user says otherwise: runs of one family are alike."""
PROVENANCE = "provenance:"


class Split(NamedTuple):
    """The two sides."""

    by: str
    tuning: tuple[RunFacts, ...]
    held_out: tuple[RunFacts, ...]
    held_out_groups: tuple[str, ...]


def group_of(run: RunFacts, by: str) -> str:
    """The group of a run.

    `by`: `run`; `family`, the run id up to the first `_` or `-`; `provenance:KEY`; else a regular expression that is
    searched in the run id and whose first group, or whole match, is the name. Raises TuneError.
    """
    if by == "run":
        return run.run_id
    if by == "family":
        return family_of(run.run_id)
    if by.startswith(PROVENANCE):
        key = by.removeprefix(PROVENANCE)
        if key not in run.provenance:
            raise TuneError(
                f"--split-by {by}: run {run.run_id!r} says nothing about {key!r}; it has "
                f"{', '.join(sorted(run.provenance)) or 'nothing'}"
            )
        return str(run.provenance[key])
    try:
        found = re.search(by, run.run_id)
    except re.error as error:
        raise TuneError(f"--split-by {by!r} is neither run, family, {PROVENANCE}KEY nor a pattern: {error}") from None
    if found is None:
        raise TuneError(f"--split-by {by!r} matches nothing in run {run.run_id!r}")
    return found[found.re.groups and 1] or ""


def split(runs: Sequence[RunFacts], *, by: str | None, held_out: Sequence[str], share: float, seed: int) -> Split:
    """Put whole groups aside: those named in `held_out`, else `share` of them, drawn with `seed`.

    Groups with labelled events and groups without are drawn separately, so that both sides have both where there are
    enough. `by` None: by family where there are three or more, else by run. Raises TuneError.
    """
    if by is None:
        by = "family" if len({family_of(run.run_id) for run in runs}) >= ENOUGH_FAMILIES else "run"
    groups: dict[str, list[RunFacts]] = {}
    for run in runs:
        groups.setdefault(group_of(run, by), []).append(run)
    if held_out:
        unknown = [unknown_name(f"group of runs, split by {by},", name, groups) for name in held_out
                   if name not in groups]  # fmt: skip
        if unknown:
            raise TuneError("; ".join(unknown))
        aside = set(held_out)
    else:
        if not (0.0 < share < 1.0):
            raise TuneError(f"share held out {share} is outside (0, 1)")
        rng, aside = np.random.default_rng((seed, 1)), set()
        for eventful in (True, False):
            names = sorted(n for n, members in groups.items() if any(run.events for run in members) == eventful)
            rng.shuffle(names)
            # the tuning side keeps one with events
            aside |= set(names[: min(len(names) - eventful, max(1, round(share * len(names))))])
    tuning = tuple(run for name, members in groups.items() if name not in aside for run in members)
    judged = tuple(run for name, members in groups.items() if name in aside for run in members)
    if not judged or not tuning:
        raise TuneError(
            f"split by {by}, {counted(len(runs), 'run makes', 'runs make')} {counted(len(groups), 'group')} "
            f"({', '.join(sorted(groups)[:5])}): none would be left {'to judge' if not judged else 'to tune on'}. Give "
            f"more runs, or another --split-by"
        )
    if not any(run.events for run in tuning):
        raise TuneError(
            f"no labelled event in the {counted(len(tuning), 'run')} to tune on: nothing could be missed. Label events "
            f"(lbw label --propose), or hold out other groups"
        )
    return Split(by, tuning, judged, tuple(sorted(aside)))


def in_order(runs: Sequence[RunFacts], seed: int) -> list[RunFacts]:
    """The order in which successive halving takes the runs: shuffled, runs with and without events spread evenly."""
    rng = np.random.default_rng((seed, 2))
    placed: list[tuple[float, int, RunFacts]] = []
    for kind, eventful in enumerate((True, False)):
        members = sorted((run for run in runs if bool(run.events) == eventful), key=lambda run: run.run_id)
        for at, place in enumerate(rng.permutation(len(members)).tolist()):
            placed.append(((at + 0.5 * kind) / len(members), kind, members[place]))
    return [run for _, _, run in sorted(placed, key=lambda one: one[:2])]


def rungs(count: int, halving: bool, keep: int) -> list[int]:
    """How many runs each rung of successive halving has seen at its end; without halving all at once.

    >>> rungs(50, True, 4), rungs(50, False, 4)
    ([4, 13, 50], [50])
    """
    if not halving:
        return [count]
    return sorted({max(1, math.ceil(count / keep**power)) for power in (2, 1, 0)})
