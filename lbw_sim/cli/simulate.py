"""`lbw simulate`: guards flying a plant, many seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lbw_sim.cli.options import (
    Guards,
    Json,
    Plugins,
    SkipBroken,
    leaving_out,
    load_guards,
    load_traces,
    print_json,
    print_table,
    stages,
)
from lbw_sim.errors import SimulateError
from lbw_sim.wording import counted

if TYPE_CHECKING:
    from lbw_sim.simulate import Noise, PlantSpec, Rollouts
    from lbw_sim.trace import Trace


def simulate(
    plant: Annotated[
        str,
        typer.Option(
            "--plant", help="Plant TOML file from lbw calibrate, or the name of a plant that lbw components lists."
        ),
    ],
    guard: Guards = ["never", "default"],
    schedule: Annotated[
        list[str],
        typer.Option(
            "--schedule",
            help="constant:LR, cosine:PEAK (linear warm-up, down to a tenth), or a run's folder whose rates are taken; "
            "repeat.",
        ),
    ] = ["cosine:0.01"],
    steps: Annotated[int, typer.Option(min=1, help="Steps of constant and cosine.")] = 400,
    warmup: Annotated[int, typer.Option(min=0, help="Warm-up steps of cosine.")] = 20,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the noise.")] = 20,
    noise: Annotated[
        str | None,
        typer.Option("--noise", help="Traces whose batch noise is replayed, run after run, instead of drawn."),
    ] = None,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Also fly every draw of the calibration.")] = False,
    stop_outside: Annotated[
        bool, typer.Option("--stop-outside", help="Cut a rollout where it leaves the calibrated range.")
    ] = False,
    skip_broken: SkipBroken = False,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Fly guards on a plant (closed loop): what acting would have done, as far as the plant can tell.

    Says how each rollout ended, its final expected loss, control energy, steps damped, and whether it left the range
    for which the plant was calibrated: beyond that range there is no measurement behind any number.
    """
    import numpy as np

    from lbw_sim.score import Column
    from lbw_sim.simulate import PlantSpec, drawn_noise, rollouts

    guards = load_guards(guard, plugin)
    spec = PlantSpec.load(plant)
    rates = dict(rates_of(text, steps, warmup) for text in schedule)
    chance = drawn_noise(seeds, max(len(lr) for lr in rates.values()))
    if noise is not None:
        chance = _recorded(load_traces([noise], skip_broken), spec, chance)
    flown_plants = list(spec.ensemble()) if ensemble else [spec]
    with stages() as progress:
        flown = rollouts(
            flown_plants, guards, rates, chance, stop_outside=stop_outside,
            progress=lambda done, total: progress("simulating", done, total),
        )  # fmt: skip
    rows = [_row(flown, g, s, np.s_[:, g, s, :]) for s in range(len(flown.schedules)) for g in range(len(flown.guards))]
    if as_json:
        print_json(rows)
        return
    columns = [
        Column("schedule", "schedule"), Column("guard", "guard"), Column("rollouts", "rollouts", "d"),
        Column("completed", "com-\npleted", "d"), Column("diverged", "di-\nverged", "d"), Column("cut", "cut", "d"),
        Column("dead", "dead", "d"), Column("final_loss", "final loss,\nmedian", ".3f"), Column("low", "5 %", ".3f"),
        Column("high", "95 %", ".3f"), Column("energy", "energy", ".1f"),
        Column("damped_steps", "steps\ndamped", ".0f"),
        Column("left_range", "left\nrange", "d"), Column("why", "how"),
    ]  # fmt: skip
    print_table(rows, columns)
    typer.echo(
        f"plant {spec.name} {spec.fingerprint}; {counted(seeds, 'seed')}; "
        f"{'recorded' if noise else 'drawn'} batch noise."
    )
    if spec.fitted is None:
        typer.echo("The plant was never calibrated: these numbers show how it behaves, and nothing about a real run.")
    elif any(row["left_range"] for row in rows):
        typer.echo(
            "left range: rollouts that went where the plant was not calibrated; no measurement stands behind them."
        )


def _row(flown: Rollouts, guard: int, schedule: int, where: Any) -> dict[str, object]:
    import numpy as np

    finals = flown.final_loss[where]
    ended = flown.ended[where]
    why = sorted({word for text in flown.outside[where].ravel().tolist() for word in text.split()})
    return {
        "schedule": flown.schedules[schedule],
        "guard": flown.guards[guard].name,
        "rollouts": finals.size,
        **{name: int((ended == name).sum()) for name in ("completed", "diverged", "cut")},
        "dead": int(flown.dead[where].sum()),
        # a diverged run's loss is infinite: quantiles by rank stand that, means would not
        "final_loss": float(np.quantile(finals, 0.5, method="lower")),
        "low": float(np.quantile(finals, 0.05, method="lower")),
        "high": float(np.quantile(finals, 0.95, method="higher")),
        "energy": float(flown.energy[where].mean()),
        "damped_steps": float(flown.damped_steps[where].mean()),
        "left_range": int(flown.left_range[where].sum()),
        "why": " ".join(why),
    }


def rates_of(text: str, steps: int, warmup: int) -> tuple[str, Any]:
    """A schedule by its name on the command line: name and learning rate per step. Raises SimulateError, TraceError."""
    import numpy as np

    from lbw_sim.simulate.effect import warmup_cosine

    kind, _, value = text.partition(":")
    if kind in ("constant", "cosine"):
        try:
            peak = float(value)
        except ValueError:
            raise SimulateError(f"--schedule {text!r}: say {kind}:LEARNING_RATE, as in {kind}:0.01") from None
        return text, np.full(steps, peak) if kind == "constant" else warmup_cosine(peak, steps, warmup)
    if "://" not in text and not Path(text).exists():
        raise SimulateError(
            f"--schedule {text!r} is neither constant:LR nor cosine:PEAK, nor a run's folder: there is no such folder"
        )
    traces = load_traces([text], skip_broken=False)
    if len(traces) != 1:
        raise SimulateError(f"--schedule {text!r} holds {len(traces)} runs; name one run's folder")
    lr = np.asarray(traces[0].to_numpy()["lr"], dtype=np.float64)
    return traces[0].run_id, lr


def _recorded(runs: Sequence[Trace], spec: PlantSpec, drawn: Noise) -> Noise:
    """The drawn noise with the batches' difficulty replaced by that of recorded runs, run after run."""
    from lbw_sim.simulate import recorded_noise, usable_records

    records, unusable = usable_records(runs)
    leaving_out(unusable, len(runs))
    batch = recorded_noise(spec, records, drawn.batch.shape[1])
    return drawn._replace(batch=batch[[seed % len(batch) for seed in range(len(drawn.batch))]])
