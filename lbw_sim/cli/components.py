"""`lbw components`: what a guard can be made of."""

from __future__ import annotations

from typing import Annotated

import typer

from lbw_sim.cli.options import Json, Plugins, print_json


def components(
    plugin: Plugins = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Drive components through the conformance checks: those of --plugin, else all."),
    ] = False,
    as_json: Json = False,
) -> None:
    """List sensors, analyzers, policies and plants with their parameters and ranges, and the presets made of them."""
    from lbw_sim.guard import components as registered
    from lbw_sim.guard import load_plugin, preset_names
    from lbw_sim.guard.conformance import check_component
    from lbw_sim.guard.envelope import Envelope
    from lbw_sim.params import meta, params_of

    plugged_in = [found for path in plugin or () for found in load_plugin(path)]
    classes = [cls for kind in ("sensor", "analyzer", "policy", "plant") for cls in registered(kind).values()] + [
        Envelope
    ]
    # whoever brings components of his own asks about those
    checked = [cls for cls in classes if check and (not plugged_in or meta(cls) in plugged_in)]
    for cls in checked:
        check_component(cls())
    if as_json:
        print_json(
            [
                {
                    **{key: value for key, value in meta(cls)._asdict().items() if key in ("kind", "name", "version")},
                    "parameters": {name: info._asdict() for name, info in params_of(cls).items()},
                }
                for cls in classes
            ]
        )
        return
    for cls in classes:
        info = meta(cls)
        typer.secho(f"{info.kind} {info.name}", bold=True, nl=False)
        typer.echo(f"  version {info.version}{'  conforms' if cls in checked else ''}")
        typer.echo(f"  {(cls.__doc__ or '').strip().splitlines()[0]}")
        for name, declared in params_of(cls).items():
            unit = f" {declared.unit}" if declared.unit else ""
            typer.echo(f"    {name} = {declared.default}  [{declared.low}, {declared.high}]{unit}  {declared.doc}")
    typer.secho("presets", bold=True)
    typer.echo(f"  {', '.join(preset_names())}")
    typer.echo("  Guards that ship; lbw show NAME prints one, and its output is a file to change.")
