"""Every preset, at its defaults, on a folder of labelled traces: who saw what, how late, how often wrongly.

Writes docs/results/scoreboard.md. Run from the repository root:
python analysis/scoreboard.py TRACES "50 public training runs, hand-labelled; not shipped" default palm_rewind
The names behind the data are the presets that were calibrated on these very runs: their rows are marked.
The folder is one that `lbw import … --labels …` or `lbw record` made. Detection only: not what acting would gain.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lbw_sim.errors import ChannelError
from lbw_sim.guard import GuardSpec, preset_names
from lbw_sim.params import meta
from lbw_sim.replay import replay_many
from lbw_sim.score import (
    Column,
    DetectionCounts,
    RunScore,
    by_family,
    detection_rows,
    markdown,
    match,
    pooled,
)
from lbw_sim.score.detection import family_of, never_alarms, oracle_alarms, random_alarms
from lbw_sim.score.river_alarms import river_alarms, river_detectors
from lbw_sim.trace import Trace, read_traces

SEED = 0
LEAST_EVENTS = 5
"""A family with fewer events has no recall worth the weight of a family."""
RANDOM_SEEDS = range(20)
RANDOM_PER_10K = (1.0, 10.0, 100.0)
BOTH = "loss, grad norm where logged"
TARGET = Path("docs/results/scoreboard.md")


OVERALL = (
    Column("guard", "rule"),
    Column("sees", "sees"),
    Column("runs", "runs", "d"),
    Column("family_recall", "recall, mean of families (95 %)", ".2f", interval=True),
    Column("recall", "pooled (95 %)", ".2f", interval=True),
    Column("high_recall", "high confidence", ".2f"),
    Column("later_recall", "without start-up", ".2f"),
    Column("median_delay_rows", "delay, rows", ".0f"),
    Column("false_alarms_per_10k", "false alarms per 10k rows (95 %)", ".1f", interval=True),
    Column("baited", "baited", "d"),
    Column("latched_share", "latched", ".1%"),
)


def sees(spec: GuardSpec) -> str:
    """Which channels a preset's alarms hang on."""
    sensor, analyzer = str(spec.tables["sensor"]["name"]), spec.build().analyzer
    if sensor in ("grad_norm", "update_norm"):
        return sensor
    return BOTH if "channel = 1" in spec.to_toml() or "grad_ratio" in meta(analyzer).uses else "loss"


def replayed(spec: GuardSpec, traces: Sequence[Trace], without: Sequence[str] = ()) -> list[RunScore]:
    """One score per run that holds what the guard needs; channels in `without` are hidden from it."""
    scores = []
    guard = spec.build()
    for trace in traces:
        try:
            guard.require(set(trace.channels) - set(without), trace.run_id)
        except ChannelError:
            continue
        columns = {name: values for name, values in trace.to_numpy().items() if name not in without}
        (found,) = replay_many([columns], [spec], max_alarms=sys.maxsize)
        scores.append(match(found.alarms(0), trace.labels, columns["step"], trace.run_id))
    return scores


def references(traces: Sequence[Trace]) -> dict[str, list[RunScore]]:
    """What knows nothing and what knows the labels. The random rows hold every run once per seed."""
    steps = {trace.run_id: trace.to_numpy()["step"] for trace in traces}
    rows: dict[str, list[RunScore]] = {
        "nothing": [match(never_alarms(), t.labels, steps[t.run_id], t.run_id) for t in traces],
        "oracle": [
            match(oracle_alarms(t.labels, steps[t.run_id], t.run_id), t.labels, steps[t.run_id], t.run_id)
            for t in traces
        ],
    }
    for rate in RANDOM_PER_10K:
        rows[f"random, {rate:g} per 10k"] = [
            match(
                random_alarms(len(steps[t.run_id]), per_10k=rate, seed=1000 * seed + place),
                t.labels,
                steps[t.run_id],
                t.run_id,
            )
            for seed in RANDOM_SEEDS
            for place, t in enumerate(traces)
        ]
    return rows


def overall(
    scores: Mapping[str, list[RunScore]], channels: Mapping[str, str], families: Collection[str]
) -> list[dict[str, object]]:
    """One row per rule; the mean recall is that over `families`."""
    rows = []
    for name, runs in scores.items():
        all_runs = detection_rows({name: runs}, seed=SEED, families=False)[0]
        weighed = [run for run in runs if family_of(run.run_id) in families]
        mean = detection_rows({name: weighed}, seed=SEED, families=False)[1]
        ends = {f"family_{key}": mean[key] for key in ("recall", "recall_low", "recall_high")}
        rows.append({**all_runs, **ends, "sees": channels.get(name, "–")})
        if name.startswith("random"):
            # sums over seeds: as counts and as spread they would mislead
            spread = [key for key in rows[-1] if key.endswith(("_low", "_high"))]
            rows[-1] |= dict.fromkeys(["runs", "baited", *spread], math.nan)
    return rows


def family_table(scores: Mapping[str, list[RunScore]], traces: Sequence[Trace]) -> str:
    """Detected of events, and false alarms per 10,000 clean rows, family by family."""
    families = sorted(by_family(references(traces)["nothing"]))
    columns = [Column("guard", "rule"), *(Column(family, family) for family in families)]
    rows = []
    for name, runs in scores.items():
        groups = by_family(runs)
        rows.append({"guard": name, **{family: cell(groups.get(family)) for family in families}})
    return markdown(rows, columns)


def cell(counts: DetectionCounts | None) -> str:
    """`detected/events, false alarms per 10k`."""
    if counts is None:
        return "–"
    found = f"{counts.detected}/{counts.events}, " if counts.events else ""
    return f"{found}{counts.false_alarms_per_10k:.1f}"


def main() -> None:
    """Score and write the page."""
    folder, data, calibrated = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    traces = read_traces(folder)
    scores: dict[str, list[RunScore]] = {}
    channels: dict[str, str] = {}
    for name in preset_names():
        started = time.perf_counter()
        spec = GuardSpec.load(name)
        shown = f"{name} †" if name in calibrated else name
        channels[shown] = sees(spec)
        scores[shown] = replayed(spec, traces)
        if channels[shown] == BOTH:
            scores[f"{shown}, loss alone"] = replayed(spec, traces, without=["grad_norm"])
            channels[f"{shown}, loss alone"] = "loss"
        print(f"{name}: {len(scores[shown])} runs, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    for name, make in river_detectors().items():
        channels[name] = "loss"
        scores[name] = [
            match(river_alarms(make(), columns["loss"].tolist()), trace.labels, columns["step"], trace.run_id)
            for trace in traces
            for columns in [trace.to_numpy()]
        ]
    known = references(traces)
    never = pooled(known["nothing"])
    families = [name for name, counts in by_family(known["nothing"]).items() if counts.events >= LEAST_EVENTS]
    rows = overall(scores, channels, families)
    # the rules that need a norm saw other runs than the rest: they stand apart
    rows.sort(key=lambda row: (-int(str(row["runs"])), -float(str(row["family_recall"])), str(row["guard"])))
    rows += overall(known, channels, families)
    with_grad_norm = sum("grad_norm" in trace.channels for trace in traces)
    imported = sum(bool(trace.meta.provenance.get("imported")) for trace in traces)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(
        "\n".join(
            [
                "# Published rules and our own on labelled runs, at their defaults",
                "",
                f"Made by `analysis/scoreboard.py`. Data: {data}. {len(traces)} runs ({imported} imported from logs), "
                f"{never.rows:,} rows, {never.events} events of high or medium confidence ({never.startup_events} at "
                f"start-up), {never.clean_rows:,} clean rows; {with_grad_norm} runs hold gradient norms. The mean of "
                f"families is over those with at least {LEAST_EVENTS} events: {', '.join(families)}. Thresholds are "
                f"defaults: those of the published rules are [their sources'](../published-rules.md), those of "
                f"`default`, `cusum` and `zscore` this project's own. The alarms of `palm_rewind` are those of "
                f"`default`. 95 % intervals: bootstrap over runs within families, "
                f"seed {SEED}, 2,000 resamples. Random rows: over {len(RANDOM_SEEDS)} seeds.",
                "",
                "† Calibrated on these very runs: an in-sample figure, which says nothing about other runs and cannot "
                "be set against rules that never saw these.",
                "",
                "Definitions: `lbw_sim/score/detection.py`. A rule that sees only a norm is scored on the runs that "
                "hold it, and on no other: its row is not comparable with those on all runs. Alarms are the rule's "
                "own, without any hold: a rule that flickers raises many. Detection only; no row says what acting on "
                "an alarm would have done to the loss.",
                "",
                markdown(rows, OVERALL),
                "",
                "## Family by family",
                "",
                "Detected/events, then false alarms per 10,000 clean rows. A family without events has only the "
                "second; runs of one family are correlated.",
                "",
                family_table(scores, traces),
            ]
        )
        + "\n",
        encoding="utf-8",
    )
    print(TARGET)


if __name__ == "__main__":
    main()
