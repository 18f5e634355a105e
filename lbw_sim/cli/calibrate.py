"""`lbw calibrate`: a plant fitted to recorded runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import (
    Plugins,
    SkipBroken,
    Traces,
    leaving_out,
    load_traces,
    print_table,
    say_next,
    stages,
)
from lbw_sim.errors import SimulateError
from lbw_sim.wording import counted, typed


def calibrate(
    traces: Traces,
    plant: Annotated[
        str, typer.Option("--plant", help="Plant (lbw components lists them), or a TOML file to start from.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="TOML file to write.")] = Path("plant.toml"),
    run: Annotated[list[str] | None, typer.Option("--run", help="Only runs whose id contains this; repeat.")] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", help="Runs whose id contains this are judged and not fitted; repeat."),
    ] = None,
    fix: Annotated[
        list[str] | None, typer.Option("--fix", help="Keep a parameter: name, or name=value; repeat.")
    ] = None,
    draws: Annotated[int, typer.Option(min=0, help="Fits to resampled runs, for the uncertainty.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of resampling and of the groups held out.")] = 0,
    skip_broken: SkipBroken = False,
    plugin: Plugins = None,
) -> None:
    """Fit a plant to recorded runs; say how well it predicts runs that it has not seen.

    Without --held-out, groups of runs are left out in turn. Runs at one fixed learning rate do not identify a plant:
    record excitation runs (lbw record --excite). Needs scipy, which comes with the extra `tune`.
    """
    from lbw_sim.guard import load_plugin
    from lbw_sim.score import Column
    from lbw_sim.simulate import PlantSpec, usable_records
    from lbw_sim.simulate import calibrate as fit

    for path in plugin or ():
        load_plugin(path)
    start, fixed = PlantSpec.load(plant), []
    for item in fix or ():
        name, equals, value = item.partition("=")
        fixed.append(name)
        if equals:
            try:
                start = start.with_parameters({name: float(value)})
            except ValueError:
                raise typer.BadParameter(f"{item!r} is not name=number", param_hint="--fix") from None
    runs = load_traces([traces], skip_broken)
    found = [trace for trace in runs if not run or any(part in trace.run_id for part in run)]
    records, unusable = usable_records(found)
    leaving_out(unusable, len(found))
    aside = [any(part in record.run_id for part in held_out or ()) for record in records]
    judged = [record for record, held in zip(records, aside, strict=True) if held]
    if held_out and not judged:
        raise SimulateError(f"--held-out {' '.join(held_out)}: no run that can be used has that in its id")
    with stages() as progress:
        spec = fit(
            [record for record, held in zip(records, aside, strict=True) if not held],
            start,
            fixed=fixed,
            held_out=judged if held_out else None,
            draws=draws,
            seed=seed,
            name=out.stem,
            progress=progress,
        )
    spec.save(out)
    rows = [
        {"parameter": name, "value": value, "sd": spec.uncertainty.get(name)}
        for name, value in spec.plant.items()
        if name not in ("name", "version")
    ]
    print_table(rows, [Column("parameter", "parameter"), Column("value", "value", ".4g"), Column("sd", "sd", ".2g")])
    columns = [Column("run_id", "run not seen by the fit"), Column("rmse", "rmse,\nnats", ".3f"),
               Column("final_error", "error at\nthe end", "+.3f")]  # fmt: skip
    if spec.held_out:
        print_table([error._asdict() for error in spec.held_out], columns)
    else:
        typer.echo("No run was left out of the fit: nothing tells how well this plant predicts. Give two runs or more.")
    assert spec.fitted is not None
    low, high, steps, rise, fall, scale = spec.fitted
    typer.echo(
        f"{counted(len(spec.training), 'run')} fitted: learning rate {low:.3g} to {high:.3g}, up to {steps} steps, "
        f"from step to step up to × {rise:.3g} and ÷ {fall:.3g}, scale down to {scale:.3g}."
    )
    typer.echo(f"{out}: plant {spec.fingerprint}.")
    say_next(f"lbw simulate --plant {typed(out)} --guard default")
