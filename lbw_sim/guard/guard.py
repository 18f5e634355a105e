"""The guard: sensor, analyzer, policy and envelope in one pure loop.

The same object watches a live run and is tried on recorded ones. It does no I/O, reads no clock and draws no random
number; its whole memory is the state that it is handed. It does not know what acts on its decisions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lbw_sim.errors import ChannelError, ComponentError
from lbw_sim.guard.envelope import Envelope, EnvelopeState
from lbw_sim.params import meta, parts_of
from lbw_sim.values import Assessment, Decision, Request, Signals, Telemetry, nan


@runtime_checkable
class Sensor(Protocol):
    """Telemetry to signals. State is a NamedTuple of plain numbers (or tuples of them)."""

    def init(self) -> Any: ...
    def step(self, state: Any, telemetry: Telemetry, /) -> tuple[Any, Signals]: ...


@runtime_checkable
class Analyzer(Protocol):
    """Signals to a regime."""

    def init(self) -> Any: ...
    def step(self, state: Any, signals: Signals, /) -> tuple[Any, Assessment]: ...


@runtime_checkable
class Policy(Protocol):
    """A regime, and the scale now in force, to a request."""

    def init(self) -> Any: ...
    def step(self, state: Any, assessment: Assessment, scale: float, /) -> tuple[Any, Request]: ...


class GuardState(NamedTuple):
    """The guard's whole memory; goes into a checkpoint as JSON."""

    sensor: Any
    analyzer: Any
    policy: Any
    envelope: EnvelopeState


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Sensor → analyzer → policy → envelope.

    `delay_steps` is part of the guard: with 1, the decision of step t is taken on what was measured at step t - 1, so
    that nobody has to wait for the device. Whoever feeds the guard (live loop, replay, simulation) keeps that delay.

    Raises ComponentError when a part is of the wrong kind or needs a signal that the sensor does not emit.

    >>> from lbw_sim import GuardSpec, Telemetry
    >>> guard = GuardSpec.load("default").build()
    >>> now = Telemetry(step=0, loss=5.5, lr=1e-3, nonfinite=0.0)
    >>> state, decision = guard.step(guard.init(), guard.seen(now, guard.not_yet))
    >>> decision.scale
    1.0
    """

    sensor: Sensor
    analyzer: Analyzer
    policy: Policy
    envelope: Envelope
    delay_steps: int = 0

    def __post_init__(self) -> None:
        for kind in ("sensor", "analyzer", "policy", "envelope"):
            found = meta(getattr(self, kind))
            if found.kind != kind:
                raise ComponentError(f"{found.name!r} is a component of kind {found.kind}, not {kind}")
        # a type of its own: 1.0 would be the same guard under another fingerprint
        if type(self.delay_steps) is not int or self.delay_steps not in (0, 1):
            raise ComponentError(f"delay_steps={self.delay_steps!r} is not 0 or 1")
        emitted = meta(self.sensor).emits
        missing = [name for name in _signals_needed(self.analyzer) if name not in emitted]
        if missing:
            raise ComponentError(
                f"analyzer {meta(self.analyzer).name!r} needs {', '.join(missing)}, which sensor "
                f"{meta(self.sensor).name!r} does not emit; it emits {', '.join(emitted)}"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Telemetry channels without which this guard cannot work, the analyzer's own included."""
        passed_on = [name for name in _signals_needed(self.analyzer) if name in Telemetry._fields]
        return tuple(dict.fromkeys([*meta(self.sensor).needs, *passed_on, *meta(self.sensor).extra]))

    @property
    def extra_channels(self) -> tuple[str, ...]:
        """Names of the channels expected in `Telemetry.extra`, in this order."""
        return meta(self.sensor).extra

    def missing(self, channels: Collection[str]) -> tuple[str, ...]:
        """Which of the needed channels are not among these."""
        return tuple(name for name in self.needs if name not in channels)

    def require(self, channels: Iterable[str], where: str) -> None:
        """Refuse a source that lacks a needed channel. `where` names the source. Raises ChannelError."""
        there = set(channels)
        if missing := self.missing(there):
            raise ChannelError(
                f"sensor {meta(self.sensor).name!r} with analyzer {meta(self.analyzer).name!r} needs channel "
                f"{', '.join(missing)}, which {where} does not hold; it holds {', '.join(sorted(there)) or 'none'}. "
                f"Choose another guard, record that channel, or leave this out"
            )

    def init(self) -> GuardState:
        """The state before the first step."""
        return GuardState(self.sensor.init(), self.analyzer.init(), self.policy.init(), self.envelope.init())

    @property
    def not_yet(self) -> Telemetry:
        """The telemetry before the first step: nothing was measured, every extra channel included."""
        return Telemetry(-1, extra=(nan,) * len(self.extra_channels))

    def seen(self, now: Telemetry, before: Telemetry) -> Telemetry:
        """What this guard sees at the step of `now`; `before` is the telemetry of the step before it.

        The update norm is always that of the last update: this step's comes after the decision. With `delay_steps` = 1
        every measured channel, tokens and extra ones included, is that of the step before. Before the first step,
        pass `not_yet`. Live loop, replay and simulation all go through here: there is no second notion of the delay.
        """
        step, loss, lr, grad_norm, _, tokens, nonfinite, extra = now
        if self.delay_steps > 0:
            _, loss, _, grad_norm, _, tokens, nonfinite, extra = before
        # not _replace, which takes twice as long: this is done at every step of a live run
        return Telemetry(step, loss, lr, grad_norm, before.update_norm, tokens, nonfinite, extra)

    def step(self, state: GuardState, telemetry: Telemetry) -> tuple[GuardState, Decision]:
        """Decide one optimizer step on what `seen` gives. Pure; any telemetry gives a decision inside the envelope."""
        sensor, signals = self.sensor.step(state.sensor, telemetry)
        analyzer, assessment = self.analyzer.step(state.analyzer, signals)
        policy, request = self.policy.step(state.policy, assessment, state.envelope.scale)
        envelope, decision = self.envelope.step(state.envelope, assessment.regime, request)
        return GuardState(sensor, analyzer, policy, envelope), decision


def _signals_needed(analyzer: object) -> list[str]:
    """What an analyzer and everything that it wraps cannot do without."""
    inner = [name for part in parts_of(analyzer) for name in _signals_needed(getattr(analyzer, part))]
    return [*meta(analyzer).needs, *inner]


def state_to_data(state: Any) -> Any:
    """Guard or component state as nested lists of numbers: JSON carries it and gives the same bits back."""
    return [state_to_data(item) for item in state] if isinstance(state, tuple) else state


def state_from_data(template: Any, data: Any) -> Any:
    """The inverse of `state_to_data`; `template` is a state of the same guard, e.g. `guard.init()`.

    Raises ComponentError when the shape does not fit: the state was saved by another guard or version.
    """
    if not isinstance(template, tuple):
        if isinstance(data, bool) or not isinstance(data, (int, float)):
            raise ComponentError(f"saved guard state holds {data!r} where a number belongs")
        return data
    if not isinstance(data, (list, tuple)) or (hasattr(template, "_fields") and len(data) != len(template)):
        raise ComponentError(
            f"saved guard state does not fit {type(template).__name__}: it was saved by another guard or version"
        )
    if hasattr(template, "_fields"):
        return type(template)(*(state_from_data(t, d) for t, d in zip(template, data, strict=True)))
    return tuple(data)  # a window: its length may grow
