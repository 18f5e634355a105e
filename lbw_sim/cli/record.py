"""`lbw record`: real training runs of the tiny GPT, recorded as traces."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lbw_sim.cli.options import Json, Plugins, load_guards, print_json, say_next, stages
from lbw_sim.wording import counted, typed


def record(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of traces to add to.")] = Path("traces"),
    architecture: Annotated[list[str], typer.Option(help="post_ln, pre_ln or pre_ln_qk_norm; repeat.")] = ["post_ln"],
    lr: Annotated[list[float], typer.Option(help="Peak learning rate; repeat.")] = [5e-3],
    fault: Annotated[
        list[str],
        typer.Option(
            help="Injected fault: none, lr_bump, bad_labels, nan_loss, gradient_noise, repeated_batch, data_switch or "
            "warm_restart; repeat."
        ),
    ] = ["none"],
    onset: Annotated[int, typer.Option(help="Step of the fault, and of bump, ramp and drop.")] = 200,
    excite: Annotated[
        list[str] | None,
        typer.Option(help="Program on the learning rate, to identify a plant: bump, ramp, drop, dither; repeat."),
    ] = None,
    excite_factor: Annotated[float, typer.Option(help="How far a program moves the learning rate.")] = 4.0,
    excite_steps: Annotated[int, typer.Option(help="Length of bump and ramp; steps between two draws of dither.")] = 20,
    seed: Annotated[list[int], typer.Option(help="Seed of weights and data; repeat.")] = [0],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 400,
    method: Annotated[
        str, typer.Option(help="adamw, clip, static_cap (guard in shadow), or guard (active).")
    ] = "adamw",
    guard: Annotated[str, typer.Option("--guard", "-g", help="Preset name or TOML file.")] = "default",
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Train tiny byte-level GPTs for real, through a guard, and record every step as Parquet.

    One run per combination of architecture, learning rate, fault, excitation and seed. Excited runs carry the factor
    and the probability of its choice as extra channels. To record a training loop of your own, see
    `lbw_sim.live.attach` in the README.
    """
    from lbw_sim.stress import Excitation, RunPlan, train
    from lbw_sim.stress import fault as make_fault

    spec = load_guards([guard], plugin)[0]
    plans = [
        RunPlan(
            run_id=f"{arch.replace('_', '')}_lr{rate:g}_{kind}_{f'{program}_' if program else ''}{method}_s{s}",
            architecture=arch,
            lr=rate,
            seed=s,
            steps=steps,
            method=method,
            fault=None if kind == "none" else make_fault(kind, onset),
            spec=spec,
            excitation=None
            if not program
            else Excitation(kind=program, onset_step=onset, length_steps=excite_steps, factor=excite_factor),
        )
        for arch in architecture
        for rate in lr
        for kind in fault
        for program in excite or [""]
        for s in seed
    ]
    with stages() as progress:
        results = train(plans, out, lambda done, total: progress("training", done, total))
    rows = [
        {"run": r.run_id, "validation_loss": r.validation_loss, "energy": r.energy, "lost_rows": r.lost_rows}
        for r in results
    ]
    for r in results:
        if r.lost_rows:
            lost = counted(r.lost_rows, "row")
            print(f"warning: {r.run_id}: the last {lost} could not be recorded: no room in {out}?", file=sys.stderr)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['run']}: final validation loss {row['validation_loss']:.3f} nats per byte")
    typer.echo(f"{counted(len(rows), 'run')} in {out}.")
    say_next(f"lbw plot {typed(out)}", f"lbw score {typed(out)}")
