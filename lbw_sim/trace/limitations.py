"""What a recorded or imported run cannot support, read from its provenance, in sentences for its user.

The facts are written by the importers, the sentences stand here and nowhere else: import, show, replay, score and
report print these. It judges how a run was logged, never whether the run went well; a run that a guard was attached to
has none of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lbw_sim.errors import TraceError
from lbw_sim.trace.provenance import Fact
from lbw_sim.wording import counted, some

REPEATS_SHARE = 0.01
"""Share of losses equal to the one before, above which a filter is suspected."""
SAMPLE_ROWS = 500
"""Rows that the sampled history of W&B returns unless asked for more."""
COARSE_DECIMALS = 4
MOST_NAMED = 5
"""Runs that a sentence names."""


class Limitation(NamedTuple):
    """One thing that a trace cannot show."""

    key: str
    """A short name: `windowed`, `sampled`, `gaps`, …"""
    text: str
    """One sentence, without the name of the run."""
    refuses: frozenset[str] = frozenset()
    """Uses that this rules out unless the user insists: `score`."""


def limitations(provenance: Mapping[str, Fact]) -> tuple[Limitation, ...]:
    """Everything that a reader should know before trusting the numbers, the gravest first.

    >>> [l.text for l in limitations({"imported": 1, "cadence_steps": 10.0, "cadence": "every 10 steps"})]
    ['logged every 10 steps: what happened between is not seen']
    >>> limitations({"seed": 0})
    ()
    """
    if provenance.get("imported") != 1:
        return ()
    return tuple(sorted(_found(provenance), key=lambda found: not found.refuses))


def refuse(runs: Iterable[tuple[str, Mapping[str, Fact]]], use: str) -> None:
    """Raise TraceError, all runs at once, when one of them (run id, provenance) rules `use` out."""
    problems: dict[str, list[str]] = {}
    for run_id, provenance in runs:
        for found in limitations(provenance):
            if use in found.refuses:
                problems.setdefault(found.text, []).append(run_id)
    if problems:
        raise TraceError(
            "; ".join(f"{some(ids, MOST_NAMED)}: {text}" for text, ids in problems.items())
            + f". A {use} of that would not mean what it says; --anyway gives it all the same, with this warning"
        )


def summary(runs: Iterable[tuple[str, Mapping[str, Fact]]]) -> list[str]:
    """One line per limitation, with the runs that have it.

    >>> summary([("a", {"imported": 1, "zero_losses": 2}), ("b", {"imported": 1, "zero_losses": 2})])
    ['a, b: 2 losses are exactly 0: a nan may have been logged as 0']
    """
    return by_text((run_id, [found.text for found in limitations(provenance)]) for run_id, provenance in runs)


def by_text(said: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    """One line per text, with the runs of which it is said.

    >>> by_text([("a", ["too short", "sampled"]), ("b", ["sampled"])])
    ['a: too short', 'a, b: sampled']
    """
    lines: dict[str, list[str]] = {}
    for run_id, texts in said:
        for text in texts:
            lines.setdefault(text, []).append(run_id)
    return [f"{some(ids, MOST_NAMED)}: {text}" for text, ids in lines.items()]


def _found(facts: Mapping[str, Fact]) -> Iterator[Limitation]:
    def count(name: str) -> int:
        value = facts.get(name)
        # a trace from a stranger may hold anything here
        return int(value) if isinstance(value, (int, float)) and abs(value) < 2.0**53 else 0

    gap, rows, decimals = count("cadence_steps"), count("rows"), facts.get("loss_decimals")
    no_score = frozenset({"score"})
    if facts.get("loss_is") == "window_mean" and gap != 1:
        window = f"{gap} steps" if gap else "steps"
        one = f"1/{gap}" if gap else "a part"
        yield Limitation(
            "windowed",
            f"each loss is the mean of the {window} since the row before: a spike of one step shows {one} of its "
            f"height, and a step of a guard is a row here",
            no_score,
        )
    elif gap > 1:
        yield Limitation("gaps", f"logged {facts.get('cadence')}: what happened between is not seen")
    if facts.get("sampled") == 1:
        yield Limitation(
            "sampled", "a sample of the logged rows and not all of them: spikes between them are gone", no_score
        )
    elif rows == SAMPLE_ROWS and (gap > 1 or facts.get("cadence") == "irregular"):
        yield Limitation(
            "maybe_sampled",
            f"exactly {SAMPLE_ROWS} rows, as the sampled history of W&B has: export all rows (scan_history) to be sure",
        )
    if facts.get("lost"):
        yield Limitation("lost", f"not all could be read: {facts['lost']}")
    if facts.get("nan_filtered") == 1:
        yield Limitation(
            "nan_filtered",
            "the logger does not show nan: it leaves such losses out of what it logs, so no guard can see them here",
        )
    if (falls := count("attempts") - 1) > 0:
        yield Limitation(
            "resumed",
            f"the step does not rise at {facts.get('first_fall')} ({falls} in all): the last row of a step counts"
            + (
                "; it begins anew each time, so if that is an epoch and no resumption, all epochs but the last are out "
                "of sight: name a column that counts on by --step"
                if falls > 1 and count("restarts") == falls
                else ""
            ),
        )
    if isinstance(decimals, (int, float)) and decimals <= COARSE_DECIMALS and rows - count("missing_losses") >= 20:
        yield Limitation("rounded", f"losses have at most {decimals:g} decimals: noise below that is rounding")
    if facts.get("loss_precision") == "bfloat16":
        yield Limitation("bfloat16", "losses have the precision of bfloat16: noise below 1/128 of the loss is rounding")
    if zeros := count("zero_losses"):
        yield Limitation(
            "zeros", f"{counted(zeros, 'loss is', 'losses are')} exactly 0: a nan may have been logged as 0"
        )
    repeats = count("repeated_losses")
    if repeats > max(2.0, REPEATS_SHARE * rows) and (decimals is None or count("loss_decimals") > COARSE_DECIMALS):
        yield Limitation(
            "repeats", f"{repeats} losses repeat the one before: a filter may hide nan, or losses are held"
        )
    missing, broken = count("missing_losses"), count("nonfinite_losses")
    if rows and count("finite_losses") == 0 and missing:
        yield Limitation("no_loss", "no loss is a number: empty ones are taken for nan that the writer left blank")
    elif missing:
        yield Limitation("missing", f"{counted(missing, 'row has', 'rows have')} no loss")
    elif broken and rows == broken:
        yield Limitation("all_nan", "every loss is nan or infinite")
    if facts.get("grad_norm_is") == "after_clipping":
        yield Limitation("clipped_norm", "grad_norm was logged after clipping: it never shows more than the limit")
    if facts.get("tokens_are") == "total":
        yield Limitation("tokens_total", "tokens rise at every row: a running total rather than tokens per step")
