"""How far the hindsight labeller agrees with hand labels, family by family.

Writes a Markdown page. Run from the repository root:
python analysis/hindsight_agreement.py TRACES -o docs/results/hindsight_agreement.md
The folder is one that `lbw import … --labels …` made. Agreement only: neither side is the truth.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lbw_sim.score import Column, markdown
from lbw_sim.score.detection import family_of
from lbw_sim.score.hindsight import overlap, propose
from lbw_sim.trace import Label, Trace, read_traces
from lbw_sim.trace.labels import EVENT_KINDS

SEED = 0
SHIFTS = 20

COLUMNS = (
    Column("family", "family"),
    Column("runs", "runs", "d"),
    Column("events", "hand events", "d"),
    Column("found", "overlapped by a proposal", "d"),
    Column("found_share", "share", ".2f"),
    Column("chance_found", "by chance", ".2f"),
    Column("same_kind", "share, same kind", ".2f"),
    Column("onset_rows", "onset apart, rows", ".0f"),
    Column("proposals", "proposed events", "d"),
    Column("backed", "overlapping a hand label", "d"),
    Column("backed_share", "share", ".2f"),
    Column("chance_backed", "by chance", ".2f"),
    Column("low", "of low confidence", "d"),
    Column("outliers", "proposed outliers", "d"),
    Column("outliers_backed", "overlapping a hand label", "d"),
)


@dataclass
class Agreement:
    """Counts of one run, or of several added up."""

    runs: int = 0
    events: int = 0
    found: int = 0
    kind: int = 0
    proposals: int = 0
    backed: int = 0
    low: int = 0
    outliers: int = 0
    outliers_backed: int = 0
    shifted_found: int = 0
    shifted_backed: int = 0
    onsets: tuple[int, ...] = ()
    """Rows from each overlapped hand event's onset to that of the nearest proposal that overlaps it."""

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def row(self, family: str) -> dict[str, object]:
        """The table's row."""
        return {
            "family": family, "runs": self.runs, "events": self.events, "found": self.found,
            "found_share": share(self.found, self.events), "same_kind": share(self.kind, self.events),
            "chance_found": share(self.shifted_found, SHIFTS * self.events),
            "onset_rows": float(np.median(np.abs(self.onsets))) if self.onsets else math.nan,
            "proposals": self.proposals, "backed": self.backed, "backed_share": share(self.backed, self.proposals),
            "chance_backed": share(self.shifted_backed, SHIFTS * self.proposals),
            "low": self.low, "outliers": self.outliers, "outliers_backed": self.outliers_backed,
        }  # fmt: skip


def share(part: int, whole: int) -> float:
    """nan without a whole."""
    return part / whole if whole else math.nan


def agreement(trace: Trace, rng: np.random.Generator) -> Agreement:
    """One run."""
    columns = trace.to_numpy()
    steps = columns["step"]
    labels = trace.labels
    proposed = propose(steps, columns["loss"])
    events = [label for label in labels if label.kind in EVENT_KINDS and label.confidence != "low"]
    found = [label for label in proposed if label.kind in EVENT_KINDS]
    sure = [label for label in found if label.confidence != "low"]
    outliers = [label for label in proposed if label.kind not in EVENT_KINDS]
    onsets = []
    for event in events:
        rows = np.searchsorted(steps, [p.start_step for p in found if overlap(p, event)])
        if len(rows):
            onsets.append(min((int(row) - int(np.searchsorted(steps, event.start_step)) for row in rows), key=abs))
    shifted = [moved(found, int(by), int(steps[-1])) for by in rng.integers(0, steps[-1] + 1, size=SHIFTS)]
    return Agreement(
        runs=1,
        events=len(events),
        found=count(events, found),
        kind=sum(any(overlap(e, p) and e.kind == p.kind for p in found) for e in events),
        proposals=len(sure),
        backed=count(sure, labels),
        low=len(found) - len(sure),
        outliers=len(outliers),
        outliers_backed=count(outliers, labels),
        shifted_found=sum(count(events, some) for some in shifted),
        shifted_backed=sum(count([p for p in some if p.confidence != "low"], labels) for some in shifted),
        onsets=tuple(onsets),
    )


def count(these: Sequence[Label], those: Sequence[Label]) -> int:
    """How many of `these` overlap any of `those`."""
    return sum(any(overlap(one, other) for other in those) for one in these)


def moved(labels: Sequence[Label], by: int, last: int) -> list[Label]:
    """The labels `by` steps later; one that would pass the end starts over at the beginning, whole."""
    at = [(label, (label.start_step + by) % (last + 1)) for label in labels]
    starts = [(label, min(start, last - (label.end_step - label.start_step))) for label, start in at]
    return [label._replace(start_step=s, end_step=s + label.end_step - label.start_step) for label, s in starts]


def main() -> None:
    """Compare and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--data", default="50 public training runs, hand-labelled; not shipped")
    options = parser.parse_args()
    rng = np.random.default_rng(SEED)
    families: dict[str, Agreement] = {}
    for trace in read_traces(options.traces):
        family = family_of(trace.run_id)
        families[family] = families.get(family, Agreement()) + agreement(trace, rng)
    rows = [counts.row(family) for family, counts in families.items()]
    rows.append(sum(families.values(), Agreement()).row("all"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        f"""# Hindsight labels against hand labels

Made by `analysis/hindsight_agreement.py`. Data: {options.data}. The labeller (`lbw_sim/score/hindsight.py`) reads the
whole run's loss; its thresholds were chosen with these runs in sight, so this is no held-out figure.

Overlap means one step in common, whatever the kind; a label that spans a run overlaps all in it, so the chance column
stands beside: the same proposals, each run's moved along it by a random number of steps ({SHIFTS} times, seed {SEED}).
Hand events: high and medium confidence. Proposed events: high and medium; a hand label of any kind and confidence
backs them; hand events may also be overlapped by a low proposal. Onset apart: median distance from a hand event's
onset to that of the nearest proposal that overlaps it. Outliers (single rows): the hand labels hold a few examples per
run, not all, so what is not backed is not thereby wrong.

{markdown(rows, COLUMNS)}
""",
        encoding="utf-8",
    )
    print(options.out)


if __name__ == "__main__":
    main()
