"""`lbw fork`: real runs from one checkpoint, with an action and without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lbw_sim.cli.options import Json, Plugins, load_guards, print_json, print_table, say_next, stages
from lbw_sim.errors import StressError
from lbw_sim.wording import counted, typed

if TYPE_CHECKING:
    from lbw_sim.stress.forks import Loop

TINY = "Tiny GPT"


def fork(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of traces to add to; a killed fork goes on there.")
    ] = Path("forks"),
    at: Annotated[list[int], typer.Option("--at", help="Step at which the trunk is forked; repeat.")] = [100],
    guard: Annotated[
        list[str] | None,
        typer.Option("--guard", "-g", help="A branch per guard: preset name or TOML file; repeat."),
    ] = None,
    action: Annotated[
        list[str] | None,
        typer.Option(
            "--action",
            "-a",
            help="A branch per action: lr:FACTOR or skip, with :FIRST-LAST for some steps only, counted from the "
            "fork, as in lr:0.3:0-39 or skip:0-4; repeat.",
        ),
    ] = None,
    seed: Annotated[list[int], typer.Option(help="A trunk per seed of weights and data; repeat.")] = [0, 1, 2],
    loop: Annotated[
        str | None,
        typer.Option(help="Your own training loop, as module:function, found from this folder. See docs/fork.md."),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option(help="post_ln (default), pre_ln or pre_ln_qk_norm.", rich_help_panel=TINY)
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default 0.03.", rich_help_panel=TINY)] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps of the trunk; default 300.", rich_help_panel=TINY)
    ] = None,
    fault: Annotated[
        str | None,
        typer.Option(help="Injected into the trunk and all its branches: a fault of lbw record.", rich_help_panel=TINY),
    ] = None,
    onset: Annotated[int | None, typer.Option(help="Step of the fault; default 200.", rich_help_panel=TINY)] = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Fork real runs: same checkpoint, same data, an action on and off; record all branches and compare them.

    Every trunk is forked at every --at: once with nothing done (`off`), once per --guard and --action.

    Guards have watched the trunk from its first step and act from the fork on. Without --loop the tiny GPT is trained.

    Each branch is recorded as a run of its own, from the fork on; lbw show tells which left which trunk where.
    """
    from lbw_sim.score import Column
    from lbw_sim.stress import RunPlan
    from lbw_sim.stress import fault as make_fault
    from lbw_sim.stress.forks import ForkAction, effects, fork_loop, fork_tiny

    actions = [ForkAction.of_guard(spec) for spec in load_guards(guard or (), plugin)]
    actions += [ForkAction.planned(text) for text in action or ()]
    if not actions:
        raise StressError("nothing to compare with `off`: name a --guard or an --action")
    if loop is not None:
        given = {"architecture": architecture, "lr": lr, "steps": steps, "fault": fault, "onset": onset}
        if mine := [f"--{name}" for name, value in given.items() if value is not None]:
            raise StressError(f"{', '.join(mine)}: of the tiny GPT only; a --loop sets these itself")
        with stages() as progress:
            found = fork_loop(_loop(loop), seed, at, actions, out, name=loop.partition(":")[2], progress=progress)
    else:
        architecture = "post_ln" if architecture is None else architecture
        lr, steps = 0.03 if lr is None else lr, 300 if steps is None else steps
        trunks = [
            RunPlan(
                run_id=f"{architecture.replace('_', '')}_lr{lr:g}_{fault or 'none'}_s{one}",
                architecture=architecture,
                lr=lr,
                seed=one,
                steps=steps,
                fault=None if fault is None else make_fault(fault, 200 if onset is None else onset),
            )
            for one in seed
        ]
        with stages() as progress:
            found = fork_tiny(trunks, at, actions, out, progress)
    rows = [effect._asdict() for effect in effects(found)]
    if as_json:
        print_json({"effects": rows, "branches": [one._asdict() for one in found]})
        return
    columns = [
        Column("branch", "branch"), Column("trunks", "trunks", "d"), Column("forks", "forks", "d"),
        Column("broken", "not\nfinite", "d"), Column("final_loss", "final\nloss", ".4f"),
        Column("difference", "minus\noff", "+.4f"),
        Column("low", "95 % over\ntrunks, from", "+.4f"), Column("high", "to", "+.4f"),
    ]  # fmt: skip
    print_table(rows, columns)
    unlike = [one.run_id for one in found if not one.is_trunk]
    if unlike:
        typer.echo(
            f"note: {len(unlike)} of {counted(len(at) * len(seed), 'branch', 'branches')} `off` are not their trunk to "
            f"the bit, {unlike[0]} for one: the loop draws on something that leg.keep() was not given, and every "
            "difference holds that too.",
            err=True,
        )
    else:
        typer.echo("Every branch `off` is its trunk to the bit: a difference is the action's, on that trunk.")
    branches = f"{counted(len(found), 'branch', 'branches')} of {counted(len(seed), 'trunk')}"
    typer.echo(f"{branches} in {out}.")
    say_next(f"lbw show {typed(out)}", f"lbw report {typed(out)}")


def _loop(text: str) -> Loop:
    """The function that module:function names; imports the module, which runs its code. Raises StressError."""
    import importlib
    import sys

    module, colon, name = text.partition(":")
    if not colon or not module or not name:
        raise StressError(f"--loop {text!r}: say module:function, as in train:loop for function loop of train.py")
    if "" not in sys.path:
        # as `python -m` does: the user's own folder
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise StressError(f"--loop {text!r}: {error}") from None
    if not callable(found):
        raise StressError(f"--loop {text!r}: module {module} has no function {name}")
    function: Loop = found
    return function
