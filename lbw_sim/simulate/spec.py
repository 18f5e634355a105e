"""PlantSpec: a plant as a TOML file, with what it was fitted on and how well it did on runs that it had not seen.

It never holds code, and reading one imports nothing that it asks for. A plant without calibration is one as well, and
everything flown on it says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from lbw_sim.errors import LbwError, SimulateError
from lbw_sim.guard.document import fingerprint_of, tables_of, text_of
from lbw_sim.guard.registry import component, components
from lbw_sim.params import build, meta, params_of
from lbw_sim.whole_file import write_whole

FORMAT = 1


class FittedRange(NamedTuple):
    """What the runs of a calibration held. A rollout outside has no measurement behind it."""

    lowest_lr: float
    """Lowest effective learning rate with which a step was taken."""
    highest_lr: float
    longest_steps: int
    """Steps of the longest run."""
    sharpest_rise: float
    """Largest factor between the effective learning rates of two steps in a row, upwards."""
    sharpest_fall: float
    """Downwards."""
    lowest_scale: float
    """Lowest scale that a guard or an experiment applied."""

    def limits(self) -> dict[str, float]:
        """As `Loop` takes them, with room for rounding."""
        return {
            "lowest_lr": self.lowest_lr * (1.0 - 1e-9),
            "highest_lr": self.highest_lr * (1.0 + 1e-9),
            "longest_steps": float(self.longest_steps),
            "sharpest_rise": max(1.0, self.sharpest_rise * (1.0 + 1e-9)),
            "sharpest_fall": max(1.0, self.sharpest_fall * (1.0 + 1e-9)),
        }


class RunError(NamedTuple):
    """How a plant did on one run."""

    run_id: str
    rows: int
    """Rows compared."""
    rmse: float
    """Root mean square of (plant - record), the record smoothed as calibration smooths it; nats."""
    final_error: float
    """Mean of (plant - record) over the last tenth of the run; nats, positive: the plant is too high."""


@dataclasses.dataclass(frozen=True)
class PlantSpec:
    """A plant, written down.

    >>> spec = PlantSpec.load("tissue_law")
    >>> PlantSpec.from_toml(spec.to_toml()) == spec
    True
    """

    name: str
    """For people; not part of the fingerprint."""
    plant: Mapping[str, Any]
    """Component name, version and every parameter."""
    fitted: FittedRange | None = None
    """None: never calibrated."""
    uncertainty: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Parameter -> standard deviation over bootstrap draws, or from the curvature of the fit where there is one run."""
    draws: tuple[Mapping[str, float], ...] = ()
    """Parameters fitted to resampled runs: fly them all to see how far the calibration itself is uncertain."""
    training: tuple[RunError, ...] = ()
    """Errors on the runs of the fit: how well the law can bend, not how well it predicts."""
    held_out: tuple[RunError, ...] = ()
    """Errors on runs left out: each predicted by a fit to the others, or by the fit where a set was held out."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits: equal exactly when two specs give the same rollouts and the same range."""
        return fingerprint_of([dict(self.plant), self.fitted])

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @classmethod
    def of(cls, plant: object, name: str = "") -> PlantSpec:
        """The spec of a plant that was built in Python, without calibration."""
        info = meta(plant)
        values = {key: getattr(plant, key) for key in params_of(plant)}
        return cls(name or info.name, {"name": info.name, "version": info.version, **values})

    @classmethod
    def load(cls, source: str | Path) -> PlantSpec:
        """A plant by component name, at its defaults and uncalibrated, or from a TOML file. Raises SimulateError."""
        if isinstance(source, str) and source in components("plant"):
            return cls.of(component("plant", source)())
        text = text_of(Path(source), "plant", components("plant"), SimulateError)
        return cls.from_toml(text, where=str(source))

    @classmethod
    def from_toml(cls, text: str, where: str = "plant") -> PlantSpec:
        """Parse and check. `where` names the source in errors. Raises SimulateError."""
        allowed = ("fingerprint", "plant", "fitted", "uncertainty", "draws", "training", "held_out")
        raw = tables_of(
            text, where, mark="lbw_plant", format_number=FORMAT, allowed=allowed, required=("plant",),
            error=SimulateError,
        )  # fmt: skip
        try:
            spec = cls(
                str(raw.get("name", "unnamed")),
                _completed(raw.get("plant")),
                None if "fitted" not in raw else FittedRange(**raw["fitted"]),
                _numbers(raw.get("uncertainty", {})),
                tuple(_numbers(draw) for draw in raw.get("draws", [])),
                tuple(RunError(**one) for one in raw.get("training", [])),
                tuple(RunError(**one) for one in raw.get("held_out", [])),
            )
            spec.build()
            spec.ensemble()
            for value in spec.fitted or ():
                if isinstance(value, bool) or not (
                    isinstance(value, (int, float)) and value >= 0 and math.isfinite(value)
                ):
                    raise SimulateError(f"[fitted] holds {value!r}, not a number from 0 on")
        except (LbwError, TypeError) as error:
            raise SimulateError(f"{where}: {error}") from None
        if raw.get("fingerprint", spec.fingerprint) != spec.fingerprint:
            raise SimulateError(
                f"{where}: its fingerprint is {raw['fingerprint']!r} and its content has {spec.fingerprint!r}: "
                f"parameters or range were edited after the fit. Without both it flies as uncalibrated"
            )
        return spec

    def to_toml(self) -> str:
        """The file's text; `from_toml` gives an equal spec back."""
        document: dict[str, Any] = {"lbw_plant": FORMAT, "name": self.name, "fingerprint": self.fingerprint}
        document["plant"] = dict(self.plant)
        if self.fitted is not None:
            document["fitted"] = self.fitted._asdict()
        document |= {"uncertainty": dict(self.uncertainty)} if self.uncertainty else {}
        for key, errors in (("training", self.training), ("held_out", self.held_out)):
            document |= {key: [one._asdict() for one in errors]} if errors else {}
        document |= {"draws": [dict(draw) for draw in self.draws]} if self.draws else {}
        return tomli_w.dumps(document)

    def save(self, path: str | Path) -> None:
        """Write the TOML file, replacing what was there."""
        write_whole(path, self.to_toml())

    def build(self) -> Any:
        """The plant itself. Raises SimulateError when its component is unknown here, or of another version."""
        values = dict(self.plant)
        try:
            cls = component("plant", str(values.pop("name", "")))
            version = values.pop("version", meta(cls).version)
            if version != meta(cls).version:
                raise SimulateError(
                    f"plant {meta(cls).name} version {version} was fitted and version {meta(cls).version} is here: "
                    f"calibrate it again"
                )
            return build(cls, values)
        except SimulateError:
            raise
        except LbwError as error:
            raise SimulateError(f"plant {self.name!r}: {error}") from None

    def with_parameters(self, values: Mapping[str, float]) -> PlantSpec:
        """A copy with other parameters and the same range. Raises SimulateError."""
        changed = dataclasses.replace(self, plant={**self.plant, **values})
        changed.build()
        return changed

    def ensemble(self) -> Sequence[PlantSpec]:
        """The plants of the bootstrap draws; this one alone where there are none."""
        return [dataclasses.replace(self.with_parameters(draw), draws=()) for draw in self.draws] or [self]


def _completed(table: object) -> dict[str, Any]:
    """A [plant] table with today's defaults for whatever it leaves out. Raises LbwError."""
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise SimulateError("has no [plant] table with a name")
    built = PlantSpec("", table).build()
    return dict(PlantSpec.of(built).plant)


def _numbers(table: object) -> dict[str, float]:
    if not isinstance(table, dict) or any(
        isinstance(v, bool) or not isinstance(v, (int, float)) for v in table.values()
    ):
        raise SimulateError(f"{str(table)[:60]} is not a table of numbers")
    return dict(table)
