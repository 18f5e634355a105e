"""What tuning is worth on families of runs that it has not seen.

Writes docs/results/tuning.md. Run from the repository root:
python analysis/tuning.py TRACES WORK -o docs/results/tuning.md
TRACES is a folder that `lbw import … --labels …` made; WORK keeps ledgers and guards, so that a run that was cut off
goes on. Detection only: not what acting on an alarm would gain.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lbw_sim.guard import GuardSpec
from lbw_sim.replay import replay_many
from lbw_sim.score import Column, RunScore, by_family, markdown, match, pooled
from lbw_sim.score.detection import bootstrap, family_mean, family_of, never_alarms
from lbw_sim.trace import Trace, read_traces
from lbw_sim.tune import Tuned, executor, tune, write

DATA = "50 public training runs, hand-labelled by one person; not shipped"
SEED = 0
LEAST_EVENTS = 5
"""A family with fewer events has no recall worth the weight of a family."""


class Way(NamedTuple):
    """One way of tuning."""

    title: str
    start: str
    search: str
    candidates: int
    halving: bool = False
    false_alarms_per_10k: float = 1.0


WAYS = (
    Way("default, sobol", "default", "sobol", 4_096),
    Way("default, sobol with halving", "default", "sobol", 10_000, halving=True),
    Way("default, cmaes", "default", "cmaes", 4_097),
    Way("zscore, sobol", "zscore", "sobol", 4_096),
)


class Fold(NamedTuple):
    """One family left out."""

    family: str
    spec: GuardSpec
    tuning: dict[str, float]
    """The tuned guard on the runs that chose."""
    changed: int
    warnings: tuple[str, ...]


def folds(way: Way, families: Sequence[str], traces: Path, work: Path) -> list[Fold]:
    """Tune once per family, without it."""
    found = []
    for family in families:
        place = work / way.title.replace(", ", "-").replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        kept = place / f"{family}.fold.json"
        if kept.exists():
            told = json.loads(kept.read_text())
            spec = GuardSpec.from_toml(told["spec"])
            found.append(Fold(family, spec, told["tuning"], told["changed"], tuple(told["warnings"])))
            continue
        began = time.process_time()
        tuned: Tuned = tune(
            [traces], GuardSpec.load(way.start), candidates=way.candidates, search=way.search, halving=way.halving,
            split_by="family", held_out=[family], false_alarms_per_10k=way.false_alarms_per_10k, seed=SEED,
            ledger=place / f"{family}.ledger", workers=executor("local", 1),
        )  # fmt: skip
        write(tuned, place / f"{family}.toml", command="analysis/tuning.py", about={"way": way._asdict()})
        row = next(row for row in tuned.tuning if row["guard"] == "tuned" and row["group"] == "all")
        own = {name: float(str(row[name])) for name in ("recall", "false_alarms_per_10k")}
        one = Fold(family, tuned.spec, own, len(tuned.start.differences(tuned.spec)), tuned.warnings)
        kept.write_text(json.dumps({**one._asdict(), "spec": tuned.spec.to_toml()}))
        print(f"{way.title} without {family}: {time.process_time() - began:.0f} CPU s", file=sys.stderr, flush=True)
        found.append(one)
    return found


def judged(spec: GuardSpec, runs: Sequence[Trace]) -> list[RunScore]:
    """One score per run."""
    found = replay_many(runs, [spec, spec], engine="compiled", threads=1, max_alarms=sys.maxsize)
    return [match(one.alarms(0), t.labels, one.steps, t.run_id) for one, t in zip(found, runs, strict=True)]


def measures(scores: Sequence[RunScore], families: Sequence[str]) -> dict[str, object]:
    """A row of the table."""
    groups, ends = by_family(scores), bootstrap(scores, seed=SEED)
    whole = pooled(scores)
    weighed = {family: groups[family] for family in families}
    return {
        **{family: f"{groups[family].detected}/{groups[family].events}" for family in families},
        "recall": family_mean(weighed, lambda counts: counts.recall),
        "pooled": whole.recall,
        "pooled_low": ends.recall.low,
        "pooled_high": ends.recall.high,
        "delay": whole.median_delay_rows,
        "false": whole.false_alarms_per_10k,
        "false_low": ends.false_alarms_per_10k.low,
        "false_high": ends.false_alarms_per_10k.high,
        "baited": whole.baited,
        "latched": whole.latched_share,
    }


def columns(families: Sequence[str], *first: Column) -> list[Column]:
    """How a row is shown."""
    return [
        *first,
        *(Column(family, f"{family} hits") for family in families),
        Column("recall", "mean recall", ".2f"),
        Column("pooled", "pooled recall (95 %)", ".2f", interval=True),
        Column("delay", "median delay, rows", ".0f"),
        Column("false", "false alarms per 10k (95 %)", ".2f", interval=True),
        Column("baited", "baited", "d"),
        Column("latched", "latched", ".2%"),
    ]


def page(traces: Path, work: Path) -> str:
    """All of it."""
    runs = read_traces(traces)
    silent = [match(never_alarms(), t.labels, t.to_numpy()["step"], t.run_id) for t in runs]
    groups = by_family(silent)
    families = list(groups)
    weighed = [family for family, one in groups.items() if one.events >= LEAST_EVENTS]
    members = {family: [t for t in runs if family_of(t.run_id) == family] for family in families}
    rows, parted, changes = [], [], []
    for way in WAYS:
        done = folds(way, families, traces, work)
        scores = [score for fold in done for score in judged(fold.spec, members[fold.family])]
        row = {"guard": f"tuned: {way.title} ({way.candidates:,})", **measures(scores, weighed), "way": way}
        rows.append(row)
        own = sum(fold.tuning["recall"] for fold in done) / len(done)
        rate = sum(fold.tuning["false_alarms_per_10k"] for fold in done) / len(done)
        parted.append(
            {
                "guard": way.title, "own": own, "out": row["pooled"], "own_rate": rate, "out_rate": row["false"],
                "warned": sum(bool(fold.warnings) for fold in done),
            }
        )  # fmt: skip
        counts = {path for fold in done for path, _, _ in GuardSpec.load(way.start).differences(fold.spec)}
        often = sorted(
            ((sum(path in {p for p, _, _ in GuardSpec.load(way.start).differences(f.spec)} for f in done), path)
             for path in counts), reverse=True,
        )  # fmt: skip
        changes.append(
            {
                "guard": way.title,
                "changed": ", ".join(str(fold.changed) for fold in done),
                "often": "; ".join(f"`{path}` in {count}" for count, path in often if count > 2) or "none",
            }
        )
    for name in ("default", "zscore"):
        shipped = measures(judged(GuardSpec.load(name), runs), weighed)
        rows.append({"guard": f"{name}, as shipped", **shipped})
    rows.append({"guard": "never", **measures(silent, weighed)})
    return "\n".join(text(runs, families, weighed, rows, parted, changes)) + "\n"


def text(
    runs: Sequence[Trace], families: Sequence[str], weighed: Sequence[str], rows: Sequence[dict[str, object]],
    parted: Sequence[dict[str, object]], changes: Sequence[dict[str, object]],
) -> list[str]:  # fmt: skip
    """The page's lines."""
    by_name = {str(row["guard"]): row for row in rows}
    lines = [
        "# What tuning is worth on runs of another family",
        "",
        f"Made by `analysis/tuning.py`, seed {SEED}. Data: {DATA}. {len(runs)} runs in {len(families)} families. Every "
        f"row `tuned` is {len(families)} searches by `lbw tune`, each without one family, each judged on that family "
        f"alone; the counts are added up. Behind it stands how many guards each search tried. Mean recall is over "
        f"{', '.join(weighed)}, the families with at least {LEAST_EVENTS} events. 95 % intervals: bootstrap over runs "
        f"within families; what another family would bring is not in them. Detection only.",
        "",
        markdown(rows, columns(weighed, Column("guard", "guard"))),
        "",
        "**The rows of shipped guards are not held out.** The default guard's limits and structure were chosen with "
        "all of these runs in view ([default_guard.md](default_guard.md)), by more search than here. So a tuned row "
        "that comes near it has lost nothing, and one that falls behind shows what its families did not teach. "
        "`zscore` was never fitted to anything: there the comparison is fair.",
        "",
    ]
    for start in ("default", "zscore"):
        shipped = by_name[f"{start}, as shipped"]
        for row in rows:
            way = row.get("way")
            if isinstance(way, Way) and way.start == start:
                lines.append(f"- {verdict(way, row, shipped)}")
    tuned = [row for row in rows if isinstance(way := row.get("way"), Way) and way.start == "default"]
    shipped = by_name["default, as shipped"]
    beaten = [row for row in tuned if float(str(row["pooled"])) > float(str(shipped["pooled"]))]
    lines += [
        "",
        f"So held out, {len(beaten) or 'none'} of {len(tuned)} searches from `default` sees more than `default` as "
        "shipped. On runs like these, fly the default; tune where your runs are unlike them, or where the guard was "
        "never fitted to anything.",
    ]
    return [
        *lines,
        "",
        "## How far tuning score and held-out score part",
        "",
        "Means over the searches on the runs that chose; pooled over the families left out. `Warned`: searches after "
        "which `lbw tune` printed a warning, that the two part, that the budget is kept on one side only, that few "
        "events were held out, or that the start is as good.",
        "",
        markdown(
            parted,
            [
                Column("guard", "search"),
                Column("own", "recall, tuning", ".2f"),
                Column("out", "recall, held out", ".2f"),
                Column("own_rate", "false alarms per 10k, tuning", ".2f"),
                Column("out_rate", "held out", ".2f"),
                Column("warned", f"warned, of {len(families)}", "d"),
            ],
        ),
        "",
        "## What was changed",
        "",
        "Parameters that differ from the start after simplification, by family left out: "
        f"{', '.join(families)}; and those that more than two of the searches changed.",
        "",
        markdown(changes, [Column("guard", "search"), Column("changed", "how many"), Column("often", "which, often")]),
    ]


def verdict(way: Way, row: dict[str, object], shipped: dict[str, object]) -> str:
    """One sentence."""
    recall, rate = float(str(row["pooled"])), float(str(row["false"]))
    base, base_rate = float(str(shipped["pooled"])), float(str(shipped["false"]))
    budget = way.false_alarms_per_10k
    kept = "keeps" if rate <= budget else "does not keep"
    more = "more" if recall > base else "fewer" if recall < base else "as many"
    how = f"sees {more} events" if more != "as many" else "sees as many events"
    return (
        f"`{way.title}`: held out it {how} ({recall:.2f} against {base:.2f} of `{way.start}` as shipped) with "
        f"{rate:.2f} false alarms per 10,000 against {base_rate:.2f}; it {kept} its budget of {budget:g}."
    )


def main() -> None:
    """Tune, judge and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("traces", type=Path, help="folder of labelled traces")
    parser.add_argument("work", type=Path, help="folder for ledgers and guards")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/tuning.md"))
    arguments = parser.parse_args()
    found = page(arguments.traces, arguments.work)
    arguments.output.write_text(found, encoding="utf-8")
    print(arguments.output)


if __name__ == "__main__":
    main()
