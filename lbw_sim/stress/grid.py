"""A suite before it flies: which runs it has, under which names, and whether it can be flown at all.

It trains nothing and reads no result; what a control does follows from a guarded run, and is settled in `suite`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lbw_sim.errors import LbwError, StressError
from lbw_sim.score.stress_results import BASELINE, CONTROLS
from lbw_sim.stress.methods import fitted, method
from lbw_sim.stress.plan import FlightPlan
from lbw_sim.stress.presets import Preset
from lbw_sim.stress.workloads import workload

UNTOUCHED = "untouched"
"""Method that trains nothing: flown once per workload and seed, for the loss before training."""


def short(spec: str) -> str:
    """A method as results and run ids call it: of a guard's file only the name, for paths are nobody's business.

    >>> short("guard:/home/me/mine.toml"), short("clip:0.5")
    ('guard:mine.toml', 'clip:0.5')
    """
    name, colon, argument = spec.partition(":")
    return f"{name}{colon}{Path(argument).name}"


class Job(NamedTuple):
    """One place in the grid."""

    workload: str
    method: str
    """A method of `stress.methods`, or a control of `CONTROLS`."""
    control_of: str
    lr: float
    seed: int

    @property
    def key(self) -> str:
        """What the ledger calls it."""
        return "|".join((self.workload, self.method, self.control_of, repr(self.lr), str(self.seed)))

    @property
    def run_id(self) -> str:
        """Name of its trace."""
        who = f"{self.method}-of-{short(self.control_of)}" if self.control_of else short(self.method)
        plain = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in who)
        return f"{self.workload}-{plain}-lr{self.lr:.4g}-seed{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """A preset with what the user wants otherwise. Raises StressError, all problems at once."""

    preset: Preset
    steps: int = 0
    """0: each workload's own."""
    device: str = "auto"
    data: Path | None = None
    random_weights: bool = False
    traces: bool = True
    """Whether every run is recorded."""
    plugins: tuple[Path, ...] = ()
    """Files or folders with components that guards need; loaded in every process."""

    def __post_init__(self) -> None:
        chosen = self.preset
        problems = [
            f"no {name} are named; give at least one"
            for name in ("workloads", "methods", "seeds")
            if not getattr(chosen, name)
        ]
        for values, what in ((chosen.workloads, "workload"), (chosen.methods, "method"), (chosen.seeds, "seed"),
                             (chosen.lrs, "learning rate")):  # fmt: skip
            twice = sorted({str(value) for value in values if values.count(value) > 1})
            problems += [f"{what} {value} is named twice" for value in twice]
        problems += [f"lr={lr} is not a positive number" for lr in chosen.lrs if not 0.0 < lr < math.inf]
        problems += [f"seed={seed} is below 0" for seed in chosen.seeds if seed < 0]
        if self.steps < 0:
            problems.append(f"steps={self.steps} is below 0")
        for name in chosen.workloads:
            problems += _complaint(workload, name)
        for spec in chosen.methods:
            if not _complaint(method, spec) and method(spec).control:
                problems.append(f"{spec} is a control, which is made from a guard's run; name the guard instead")
            else:
                problems += _complaint(fitted, spec, steps=1)
        shown = [short(spec) for spec in chosen.methods]
        problems += [f"two methods would be called {name}" for name in sorted(set(shown)) if shown.count(name) > 1]
        strangers = [guard for guard in chosen.controlled if guard not in chosen.methods]
        if strangers:
            problems.append(f"controls of {', '.join(strangers)}, which {'is' if len(strangers) == 1 else 'are'} not "
                            "among the methods")  # fmt: skip
        if chosen.controlled and BASELINE not in chosen.methods:
            problems.append(f"controls need {BASELINE} among the methods")
        if self.data is not None and not self.data.is_file():
            problems.append(f"no such file: {self.data}")
        if problems:
            raise StressError(f"stress suite {chosen.name!r}: {'; '.join(problems)}")

    def rates(self, name: str) -> tuple[float, ...]:
        """Learning rates of one workload, rising."""
        return tuple(sorted({*(self.preset.lrs or workload(name).rates), *self.preset.extra_lrs}))

    def steps_of(self, name: str) -> int:
        """Steps of a run of one workload."""
        return self.steps or workload(name).steps

    def jobs(self) -> list[Job]:
        """Every run that looks at no other run; seed by seed, so that a suite that is stopped has whole grids."""
        chosen = self.preset
        made = [Job(name, UNTOUCHED, "", workload(name).reference_lr, seed)
                for seed in chosen.seeds for name in chosen.workloads]  # fmt: skip
        return made + [
            Job(name, spec, "", lr, seed)
            for seed in chosen.seeds
            for name in chosen.workloads
            for lr in self.rates(name)
            for spec in chosen.methods
        ]

    def control_jobs(self) -> list[Job]:
        """Every control; what it does follows from guarded runs."""
        chosen = self.preset
        return [
            Job(name, control, guard, lr, seed)
            for seed in chosen.seeds
            for name in chosen.workloads
            for lr in self.rates(name)
            for guard in chosen.controlled
            for control in CONTROLS
        ]

    def flight(self, job: Job, lr: float | None = None, spec: str = "", scales: tuple[float, ...] = ()) -> FlightPlan:
        """The run of a job."""
        return FlightPlan(
            workload=job.workload, method=spec or job.method, lr=job.lr if lr is None else lr, seed=job.seed,
            steps=self.steps_of(job.workload), run_id=job.run_id, scales=scales, device=self.device, data=self.data,
            random_weights=self.random_weights and workload(job.workload).loads_weights,
        )  # fmt: skip


def _complaint(function: Callable[..., object], *arguments: object, **named: object) -> list[str]:
    try:
        function(*arguments, **named)
    except LbwError as error:
        return [str(error)]
    return []
