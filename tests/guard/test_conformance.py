"""Every registered component keeps the contract, and the check notices those that don't."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from lbw_sim.errors import ComponentError
from lbw_sim.guard.conformance import check_component
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.registry import components
from lbw_sim.params import analyzer, meta
from lbw_sim.values import Assessment, Signals

ALL = [cls for kind in ("sensor", "analyzer", "policy", "plant") for cls in components(kind).values()] + [Envelope]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: f"{meta(cls).kind}-{meta(cls).name}")
def test_component_conforms(cls: type) -> None:
    check_component(cls(), seed=1)


@pytest.mark.parametrize("cls", ALL[:-1], ids=lambda cls: meta(cls).name)
def test_file_is_named_after_its_component(cls: type) -> None:
    assert cls.__module__.rpartition(".")[2] == meta(cls).name


class CountState(NamedTuple):
    total: float


def test_hidden_memory_is_noticed() -> None:
    calls = []

    @analyzer(version=1)
    class Remembers:
        """Keeps a memory outside its state."""

        def init(self) -> CountState:
            return CountState(0.0)

        def step(self, state: CountState, signals: Signals) -> tuple[CountState, Assessment]:
            calls.append(1)
            return state, Assessment(len(calls) % 5)

    with pytest.raises(ComponentError, match="same state and input, another output"):
        check_component(Remembers())


def test_a_memory_that_shows_late_is_noticed() -> None:
    calls = []

    @analyzer(version=1)
    class Tires:
        """Has enough of it after three inputs' worth of steps."""

        def init(self) -> CountState:
            return CountState(0.0)

        def step(self, state: CountState, signals: Signals) -> tuple[CountState, Assessment]:
            calls.append(1)
            return state, Assessment(3 if len(calls) % 2400 > 805 else 1)

    with pytest.raises(ComponentError, match="remembers outside its state"):
        check_component(Tires())


def test_a_missing_docstring_is_noticed() -> None:
    @analyzer(version=1)
    class Silent:
        def init(self) -> CountState:
            return CountState(0.0)

        def step(self, state: CountState, signals: Signals) -> tuple[CountState, Assessment]:
            return state, Assessment(1)

    with pytest.raises(ComponentError, match="has no docstring"):
        check_component(Silent())


def test_a_state_that_turns_nan_is_noticed() -> None:
    @analyzer(version=1)
    class Poisoned:
        """Adds nan to its memory."""

        def init(self) -> CountState:
            return CountState(0.0)

        def step(self, state: CountState, signals: Signals) -> tuple[CountState, Assessment]:
            return CountState(state.total + signals.loss), Assessment(1)

    with pytest.raises(ComponentError, match="not a finite number"):
        check_component(Poisoned())


def test_a_step_that_raises_is_noticed() -> None:
    @analyzer(version=1)
    class Raises:
        """Divides by the loss."""

        def init(self) -> CountState:
            return CountState(0.0)

        def step(self, state: CountState, signals: Signals) -> tuple[CountState, Assessment]:
            return state, Assessment(int(1.0 / signals.loss_z))

    with pytest.raises(ComponentError, match="step raised") as told:
        check_component(Raises())
    assert len(str(told.value)) < 500, "said once, and not for each of the inputs"
