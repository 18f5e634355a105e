"""`lbw backtest`: the report that a guard needs before it may act."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lbw_sim.cli.options import (
    Json,
    ManyTraces,
    Plugins,
    SkipBroken,
    load_guards,
    load_usable,
    print_table,
    stages,
)
from lbw_sim.errors import LbwError
from lbw_sim.wording import counted

if TYPE_CHECKING:
    from lbw_sim.guard import BacktestReport, GuardSpec


def backtest(
    guard: Annotated[str, typer.Argument(help="The guard: a TOML file or the name of a preset.")],
    traces: ManyTraces,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The report; default: GUARD.backtest.json beside the guard.")
    ] = None,
    plant: Annotated[
        list[Path] | None,
        typer.Option("--plant", help="Also fly it on this calibrated plant, a TOML file from lbw calibrate; repeat."),
    ] = None,
    plant_seeds: Annotated[int, typer.Option(min=2, help="Seeds of the noise that each plant meets.")] = 20,
    plugin: Plugins = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap over runs; the first of --plant-seeds.")] = 0,
    skip_broken: SkipBroken = False,
    as_json: Json = False,
) -> None:
    """Replay a guard along recorded runs and write the report that active mode asks for.

    What it saw of the labelled events, how often it was wrong, how much control it asked for, and what these runs
    cannot say about it. With --plant also what acting does to a calibrated plant: final loss with the guard against
    without, at learning rates that are healthy for the plant and at ones that are too high. No real effect is in it.
    """
    from lbw_sim.backtest import backtest as make
    from lbw_sim.simulate import PlantSpec

    spec = load_guards([guard], plugin)[0]
    out = Path(guard).with_suffix(".backtest.json") if out is None else out
    if not out.resolve().parent.is_dir():
        raise LbwError(f"{out}: its folder is not there, so the report could not be written")
    plants = [PlantSpec.load(path) for path in plant or ()]
    loaded = load_usable(traces, [spec], skip_broken)
    with stages() as progress:
        report = make(
            spec, loaded.runs, plants=plants, plant_seeds=plant_seeds, seed=seed, left_out=loaded.unread,
            unusable=loaded.unusable, progress=progress,
        )  # fmt: skip
    report.save(out)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    else:
        _print(report, spec, guard, out)


def _print(report: BacktestReport, spec: GuardSpec, guard: str, out: Path) -> None:
    from lbw_sim.backtest import worst
    from lbw_sim.score import DETECTION_COLUMNS, FALSE_ALARM_BUDGET_PER_10K, Column

    high = Column("high_recall", "of high\nconfidence", ".2f")
    # what fits 80 columns; the report has the rest, and the families
    hidden = ("group", "runs", "baited", "latched_share")
    columns = [column for column in DETECTION_COLUMNS if column.key not in hidden]
    place = next(i for i, column in enumerate(columns) if column.key == "recall") + 1
    pooled = [line._asdict() for line in report.detection if line.group == "all"]
    print_table(pooled, [*columns[:place], high, *columns[place:]])
    limits = spec.tables["envelope"]

    def per_1000(allowance: float) -> str:
        return f"{allowance:g} + {allowance:g} per 1,000 steps"

    budget = {
        "energy": ("energy", ".1f", per_1000(limits["energy_per_1000_steps"])),
        "damped_steps": ("damped steps", "d", f"{limits['max_damped_steps']} in a row"),
        "lowest_scale": ("lowest scale", ".3g", f"{limits['min_scale']:g}"),
        "skips": ("skips", "d", per_1000(limits["skips_per_1000_steps"])),
        "rollbacks": ("rollbacks", "d", f"{limits['max_rollbacks']}"),
    }
    found = worst(report.runs)
    rows = []
    for key, (title, style, limit) in budget.items():
        value, run = found[key]
        quiet = value == (1.0 if key == "lowest_scale" else 0)
        rows.append({"what": title, "worst": format(value, style), "run": "" if quiet else run, "limit": limit})
    shown = (
        ("what", "control\nasked for"),
        ("worst", "in the\nworst run"),
        ("limit", "envelope's limit"),
        ("run", "which run"),
    )
    print_table(rows, [Column(key, title) for key, title in shown])
    _print_effects(report)
    typer.echo("Not tested on:")
    for sentence in report.not_tested_on:
        typer.echo(f"  {sentence}")
    typer.echo(report.caveat)
    whole = report.detection[0]
    if (whole.false_alarms_per_10k or 0.0) > FALSE_ALARM_BUDGET_PER_10K:
        typer.echo(
            f"It cries wolf: {whole.false_alarms_per_10k:.1f} false alarms per 10,000 clean rows; guards are compared "
            f"at {FALSE_ALARM_BUDGET_PER_10K:g}."
        )
    recalled = (
        f"saw {whole.detected} of {counted(whole.events, 'labelled event')}"
        if whole.events
        else "had nothing labelled to see"
    )
    typer.echo(
        f'{out}: promoted with it, attach(…, "{guard}", mode="active", backtest="{out}"), guard {spec.name!r} '
        f"({spec.fingerprint}) acts on a live run on the word of {counted(len(report.runs), 'recorded run')}, in "
        f"which it {recalled} and raised {counted(whole.false_alarms or 0, 'false alarm')}."
    )


def _print_effects(report: BacktestReport) -> None:
    from lbw_sim.score import Column

    if not report.simulated:
        typer.echo("No effect was simulated: --plant PLANT.toml, from lbw calibrate, flies the guard on a plant.")
        return
    rows = []
    for effect in report.simulated:
        between = effect.effect_low is not None and effect.effect_high is not None
        rows.append(
            {
                **effect._asdict(),
                "rate": f"{effect.peak_lr:.3g}, {effect.kind}",
                "between": f"{effect.effect_low:+.3f} to {effect.effect_high:+.3f}" if between else "",
                "lost": f"{effect.lost_without} → {effect.lost_with}",
                "flown": effect.rollouts - effect.cut,
            }
        )
    columns = [
        Column("plant", "plant"), Column("rate", "peak\nlearning rate"), Column("flown", "rollouts", "d"),
        Column("loss_without", "final loss\nwithout", ".3f"), Column("loss_with", "with", ".3f"),
        Column("effect", "effect", "+.3f"), Column("between", "95 %"), Column("lost", "lost"),
        Column("left_range_with", "left\nrange", ".0%"),
    ]  # fmt: skip
    print_table(rows, columns)
    typer.echo("effect: final loss with the guard less without, nats; below 0 it helps this plant.")
