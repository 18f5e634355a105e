"""`lbw components`: what a guard can be made of."""

from __future__ import annotations

from typing import Annotated

import typer

from lbw_sim.cli.options import Json, Plugins, print_json


def components(
    plugin: Plugins = None,
    check: Annotated[
        bool, typer.Option("--check", help="Drive every component through the conformance checks.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List sensors, analyzers, policies and plants with their parameters and ranges."""
    from lbw_sim.guard import components as registered
    from lbw_sim.guard import load_plugin
    from lbw_sim.guard.conformance import check_component
    from lbw_sim.guard.envelope import Envelope
    from lbw_sim.params import meta, params_of

    for path in plugin or ():
        load_plugin(path)
    classes = [cls for kind in ("sensor", "analyzer", "policy", "plant") for cls in registered(kind).values()] + [
        Envelope
    ]
    if check:
        for cls in classes:
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
        typer.echo(f"  version {info.version}{'  conforms' if check else ''}")
        typer.echo(f"  {(cls.__doc__ or '').strip().splitlines()[0]}")
        for name, declared in params_of(cls).items():
            unit = f" {declared.unit}" if declared.unit else ""
            typer.echo(f"    {name} = {declared.default}  [{declared.low}, {declared.high}]{unit}  {declared.doc}")
