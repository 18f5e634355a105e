"""What every component must keep, checked by driving it: built in or a user's own.

Refuses to judge whether a component is any good: it says whether it may fly.
"""

from __future__ import annotations

import json
import marshal
import math
import random
from collections.abc import Iterator
from typing import Any

from lbw_sim.errors import ComponentError
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.guard import state_from_data, state_to_data
from lbw_sim.params import meta, params_of
from lbw_sim.values import Action, Assessment, Noise, Posture, Regime, Request, Signals, Telemetry
from lbw_sim.wording import counted

STEPS = 400
"""Length of each input that a component is driven with."""
_NUMBERS = frozenset({bool, int, float})
_FINITE_SIGNALS = ("loss_level", "loss_sd", "loss_trend", "loss_rise", "oscillation", "grad_ratio", "update_ratio")


def check_component(component: object, seed: int = 0) -> None:
    """Drive a component instance with ordinary and hostile input; raise ComponentError with all that is wrong.

    Checked: a docstring and a documented range for every parameter; same input, same output; a state of plain finite
    numbers that survives JSON; resumed from a saved state equals uninterrupted; finite, valid output under nan, inf,
    level shifts and constants; every decision inside the envelope; a dead plant stays dead.

    >>> from lbw_sim.guard.analyzers.cusum import Cusum
    >>> check_component(Cusum())
    """
    info = meta(component)
    who = f"{info.kind} {info.name!r}"
    problems = []
    # a dataclass without one is given its signature
    told = (type(component).__doc__ or "").strip()
    if not told or told.startswith(f"{type(component).__name__}("):
        problems.append("has no docstring")
    problems += [f"parameter {name} has no doc" for name, declared in params_of(component).items() if not declared.doc]
    found: dict[str, list[str]] = {}
    for label, inputs in _inputs(info.kind, len(info.extra), seed):
        try:
            for problem in _drive(component, info.kind, inputs):
                found.setdefault(problem, []).append(label)
        except Exception as error:
            found.setdefault(f"step raised {type(error).__name__}: {error}", []).append(label)
    for problem, labels in found.items():
        more = f" and {counted(len(labels) - 1, 'more input')}" if len(labels) > 1 else ""
        problems.append(f"{labels[0]}{more}: {problem}")
    if problems:
        raise ComponentError(f"{who} does not conform: " + "; ".join(problems))


def _drive(component: Any, kind: str, inputs: list[tuple[Any, ...]]) -> Iterator[str]:
    state = component.init()
    if not _same_bits(state, component.init()):
        yield "init() gives a different state each time"
    if not hasattr(state, "_fields"):
        yield f"init() gives a {type(state).__name__}, not a NamedTuple of numbers"
        return
    half = len(inputs) // 2
    outputs: list[Any] = []
    saved = "null"
    for number, arguments in enumerate(inputs):
        if number == half:
            saved = json.dumps(state_to_data(state))
        before = _bits(state)
        again = component.step(state, *arguments)
        state_after, output = component.step(state, *arguments)
        if not _same_bits(again, (state_after, output)):
            yield f"step {number}: same state and input, another output"
            return
        if _bits(state) != before:
            yield f"step {number}: changed the state that it was given"
            return
        if kind == "plant" and outputs and outputs[-1].dead == 1.0 and output.dead != 1.0:
            yield f"step {number}: was dead and is alive again"
            return
        state = state_after
        if not _all_finite(state):
            yield f"step {number}: the state holds a value that is not a finite number: {state}"
            return
        wrong = _wrong_output(kind, output)
        if wrong:
            yield f"step {number}: {wrong}"
            return
        outputs.append(output)
    state = component.init()
    for number, arguments in enumerate(inputs):
        state, output = component.step(state, *arguments)
        if not _same_bits(output, outputs[number]):
            yield f"step {number}: driven through the same input again, another output: it remembers outside its state"
            return
    resumed = state_from_data(component.init(), json.loads(saved))
    for number, arguments in enumerate(inputs[half:], start=half):
        resumed, output = component.step(resumed, *arguments)
        if not _same_bits(output, outputs[number]):
            yield f"step {number}: resumed from a saved state, another output"
            return


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _bits(value: Any) -> bytes:
    """Equal for equal bits; a window of a thousand numbers in microseconds, where its text takes half a millisecond."""

    def unnamed(part: Any) -> Any:
        if isinstance(part, tuple) and not _NUMBERS.issuperset(map(type, part)):
            return tuple(map(unnamed, part))
        return tuple(part) if hasattr(part, "_fields") else part

    try:
        return marshal.dumps(unnamed(value), 2)
    except ValueError:  # a number of somebody else's
        return repr(_plain(value)).encode()


def _same_bits(one: Any, other: Any) -> bool:
    """Any nan is like any other."""
    return _bits(one) == _bits(other) or repr(_plain(one)) == repr(_plain(other))


def _all_finite(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        if _NUMBERS.issuperset(map(type, data)):
            return all(map(math.isfinite, data))
        return all(map(_all_finite, data))
    return isinstance(data, (int, float)) and math.isfinite(data)


def _wrong_output(kind: str, output: Any) -> str:
    """What is wrong with one output; empty when nothing is."""
    if kind == "sensor":
        bad = [name for name in _FINITE_SIGNALS if math.isinf(getattr(output, name))]
        return f"signals {', '.join(bad)} are infinite; nan says 'no evidence'" if bad else ""
    if kind == "analyzer" and output.regime not in set(Regime):
        return f"regime {output.regime!r} is none of {', '.join(Regime.__members__)}"
    if kind == "plant":
        if (output.nonfinite == 1.0) == math.isfinite(output.loss):
            return f"loss {output.loss} with nonfinite {output.nonfinite}"
        if output.dead not in (0.0, 1.0):
            return f"dead is {output.dead}, not 0.0 or 1.0"
    if kind == "policy":
        if output.posture not in set(Posture):
            return f"posture {output.posture!r} is none of {', '.join(Posture.__members__)}"
        limits = Envelope()
        _, decision = limits.step(limits.init(), int(Regime.STABLE), output)
        if not (limits.min_scale <= decision.scale <= 1.0):
            return f"the envelope let a scale of {decision.scale} through"
    return ""


def _inputs(kind: str, extra: int, seed: int) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Named input sequences for one kind of component; deterministic in the seed."""
    for label, losses in _losses(seed):
        rng = random.Random(f"{seed} {label}")
        inputs: list[tuple[Any, ...]]
        if kind == "sensor":
            inputs = [(t,) for t in _telemetry(losses, extra, rng)]
        elif kind == "analyzer":
            inputs = [(s,) for s in _signals(losses, extra, rng)]
        elif kind == "policy":
            inputs = [
                (Assessment(rng.choice(list(Regime)), loss), rng.choice([1.0, 0.5, 0.1, rng.random()]))
                for loss in losses
            ]
        elif kind == "plant":
            # a loss in nats is an absurd learning rate: a hundredth of it is high, a thousandth ordinary
            inputs = [
                (
                    Action(loss * rng.choice([1e-2, 1e-3, 1e-4]), float(rng.random() < 0.05)),
                    Noise(rng.choice([rng.gauss(0.0, 1.0), loss - 2.0]), rng.gauss(0.0, 1.0)),
                )
                for loss in losses
            ]
        else:
            inputs = [
                (int(rng.choice(list(Regime))), Request(int(rng.choice(list(Posture))), loss, rng.randrange(-3, 50)))
                for loss in losses
            ]
        yield label, inputs


def _losses(seed: int) -> Iterator[tuple[str, list[float]]]:
    rng = random.Random(seed)
    falling = [2.0 + 5.0 / (1.0 + step / 30.0) + rng.gauss(0.0, 0.03) for step in range(STEPS)]
    yield "falling loss", falling
    yield "constant", [3.0] * STEPS
    yield "zero", [0.0] * STEPS
    yield "all nan", [math.nan] * STEPS
    yield "all infinite", [math.inf] * STEPS
    yield "level shift", [loss + (3.0 if step > 150 else 0.0) for step, loss in enumerate(falling)]
    hostile = [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300, 0.0, -0.0, 1e12, 3.0]
    yield "hostile mixture", [rng.choice([*hostile, loss, loss]) for loss in falling]
    yield "nan episode", [math.nan if 100 <= step < 130 else loss for step, loss in enumerate(falling)]


def _telemetry(losses: list[float], extra: int, rng: random.Random) -> Iterator[Telemetry]:
    for step, loss in enumerate(losses):
        broken = 0.0 if math.isfinite(loss) else 1.0
        yield Telemetry(
            step,
            loss,
            1e-3,
            rng.choice([math.nan, abs(loss), rng.random()]),
            rng.choice([math.nan, abs(loss), rng.random()]),
            1024.0,
            rng.choice([math.nan, broken, broken]),
            tuple(rng.choice([math.nan, loss, rng.random()]) for _ in range(extra)),
        )


def _signals(losses: list[float], extra: int, rng: random.Random) -> Iterator[Signals]:
    names = [name for name in Signals._fields if name not in ("extra", "nonfinite")]
    for loss in losses:
        values = {name: rng.choice([math.nan, loss, rng.gauss(0.0, 3.0), rng.gauss(0.0, 30.0)]) for name in names}
        yield Signals(
            **values,
            nonfinite=rng.choice([math.nan, 0.0, 0.0, 0.0, 1.0]),
            extra=tuple(rng.choice([math.nan, loss]) for _ in range(extra)),
        )
