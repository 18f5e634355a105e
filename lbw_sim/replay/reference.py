"""Open-loop replay, the reference engine: recorded telemetry through a guard, in plain Python.

The losses in a trace happened under the recorded decisions; another guard would have seen others. So a replay says what
a guard would have decided on this record, never what its decisions would have done. Every faster engine must give the
bits that this one gives.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lbw_sim.errors import ComponentError
from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.notebook import grid, warned
from lbw_sim.trace import Trace
from lbw_sim.trace.alarms import stretches, unsafe_rows
from lbw_sim.values import Decision, Regime, Telemetry
from lbw_sim.wording import counted

DECIDED = ("regime", "posture", "scale", "energy", "reason")
"""The columns that a guard's decision fills, in the order of `Decision`."""
MOST_SHOWN = 20
"""Alarms that a notebook lists."""


class Replay(NamedTuple):
    """What one guard decides along one recorded run. Arrays have one entry per row of the final lineage."""

    run_id: str
    guard: str
    """Name of the spec."""
    fingerprint: str
    columns: dict[str, NDArray[np.generic]]
    """`step` and `lr` as recorded, and the decided columns: regime, posture and reason as enum codes, scale, energy."""
    limitations: tuple[str, ...] = ()
    """What this cannot show because of how the run was logged, a sentence each; none when a guard was attached."""

    @property
    def alarms(self) -> list[tuple[int, int]]:
        """(first row, last row) of each run of rows in an unsafe regime, in order."""
        return [(first, last) for first, last in stretches(unsafe_rows(self.columns["regime"])).tolist()]

    def _repr_html_(self) -> str:
        """For notebooks: the alarms, in steps."""
        steps, found = self.columns["step"], self.alarms
        title = (
            f"{self.guard} on {self.run_id}, open loop: {counted(len(found), 'alarm')} in {counted(len(steps), 'row')}"
        )
        regimes = self.columns["regime"]
        rows = [(steps[first], steps[last], Regime(int(regimes[first])).name) for first, last in found[:MOST_SHOWN]]
        more = [("…", f"{len(found) - MOST_SHOWN} more", "")] if len(found) > MOST_SHOWN else []
        return grid(title, ["from step", "to step", "began as"], [*rows, *more]) + warned(self.limitations)


def telemetry_rows(
    columns: Mapping[str, NDArray[np.generic]], extra_channels: Sequence[str] = ()
) -> Iterator[Telemetry]:
    """The telemetry of each row, in order. A channel that the columns lack is nan."""
    rows = len(columns["step"])
    missing = np.full(rows, np.nan)

    def numbers(name: str) -> list[float]:
        return list(columns.get(name, missing).tolist())

    extras = zip(*map(numbers, extra_channels), strict=True) if extra_channels else ((),) * rows
    for step, loss, lr, grad_norm, update_norm, tokens, nonfinite, extra in zip(
        columns["step"].tolist(),
        *map(numbers, ("loss", "lr", "grad_norm", "update_norm", "tokens", "nonfinite")),
        extras,
        strict=True,
    ):
        yield Telemetry(step, loss, lr, grad_norm, update_norm, tokens, nonfinite, extra)


def decide(guard: Guard, columns: Mapping[str, NDArray[np.generic]]) -> Iterator[Decision]:
    """The guard's decisions along telemetry columns, from its initial state, with its own delay.

    Raises ComponentError when a component raises.
    """
    state, before = guard.init(), guard.not_yet
    for row, now in enumerate(telemetry_rows(columns, guard.extra_channels)):
        try:
            state, decision = guard.step(state, guard.seen(now, before))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise ComponentError(
                f"a component of this guard raised {type(error).__name__}: {error} ({place.filename} line "
                f"{place.lineno}) at row {row} (step {now.step}); a step must never raise: a live run would go on "
                "from there without a guard"
            ) from error
        before = now
        yield decision


def replay(trace: Trace, spec: GuardSpec) -> Replay:
    """Run a guard along the final lineage of a recorded run.

    Raises ChannelError when the guard needs a channel that the trace does not hold, SpecError when a component of the
    spec is not installed, ComponentError when one raises.
    """
    guard = spec.build()
    guard.require(trace.channels, f"trace {trace.run_id!r}")
    columns = trace.to_numpy()
    decided = list(zip(*(decision[:5] for decision in decide(guard, columns)), strict=True))
    arrays: dict[str, NDArray[np.generic]] = {"step": columns["step"], "lr": columns["lr"]}
    for name, values in zip(DECIDED, decided or [()] * len(DECIDED), strict=True):
        arrays[name] = np.array(values, dtype=np.float64 if name in ("scale", "energy") else np.int8)
    limits = tuple(limitation.text for limitation in trace.limitations)
    return Replay(trace.run_id, spec.name, spec.fingerprint, arrays, limits)
