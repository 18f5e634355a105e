"""The compiled engine gives the bits of the reference engine, and is never stale."""

from __future__ import annotations

import itertools
import math
import os
import platform
import random
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbw_sim.errors import ComponentError
from lbw_sim.guard import Envelope, Guard, GuardSpec, load_plugin
from lbw_sim.guard.analyzers.composite import Composite
from lbw_sim.guard.analyzers.cusum import Cusum
from lbw_sim.guard.analyzers.debounce import Debounce
from lbw_sim.guard.analyzers.never import Never
from lbw_sim.guard.analyzers.threshold import Threshold
from lbw_sim.guard.policies.damp_release import DampRelease
from lbw_sim.guard.policies.hold import Hold
from lbw_sim.guard.sensors.ewma import Ewma
from lbw_sim.guard.sensors.raw import Raw
from lbw_sim.guard.sensors.robust_loss import RobustLoss
from lbw_sim.params import params_of, parts_of
from lbw_sim.replay import CompileWarning, Replays, compiled, kernel_files, kernels, replay_bytes, replay_many
from lbw_sim.replay.compiled import Engine, _seen
from lbw_sim.replay.symbolic import CannotInline, Num
from lbw_sim.replay.writing import _COMPARED, _foregone

STRUCTURES: dict[str, tuple[Any, Any, Any]] = {
    "default": (RobustLoss, Composite, DampRelease),
    "zscore": (Ewma, Threshold, DampRelease),
    "cusum": (Ewma, Cusum, DampRelease),
    "never": (Raw, Never, Hold),
    "wrapped": (Ewma, Debounce, DampRelease),
    "wrapped twice": (RobustLoss, lambda **values: Debounce(**{**values, "inner": Debounce(inner=Composite())}), Hold),
}
HOSTILE = [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300, 0.0, -0.0, 1e12, 3.0, 50.0]


def telemetry(rows: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """A falling loss with jumps, swings, constants, and values that are not finite."""
    rng = np.random.default_rng(seed)
    loss = 3.0 + np.exp(-np.arange(rows) / 60) + 0.03 * rng.standard_normal(rows)
    for _ in range(3):
        start = int(rng.integers(0, max(1, rows)))
        length = int(rng.integers(1, 40))
        kind = rng.integers(0, 4)
        part = slice(start, start + length)
        if kind == 0:
            loss[part] += rng.choice([0.5, 5.0, 1e6])
        elif kind == 1:
            loss[part] += np.where(np.arange(len(loss[part])) % 2, 0.8, -0.8)
        elif kind == 2:
            loss[part] = 3.0
        else:
            loss[part] = rng.choice(HOSTILE)
    norms = rng.lognormal(0.0, 0.5, (2, rows))
    norms[rng.random((2, rows)) < 0.05] = rng.choice(HOSTILE)
    return {
        "step": np.arange(rows),
        "loss": loss,
        "lr": np.where(rng.random(rows) < 0.02, math.nan, 1e-3),
        "grad_norm": norms[0],
        "update_norm": norms[1],
        "tokens": np.full(rows, 64.0),
        "nonfinite": np.where(rng.random(rows) < 0.05, math.nan, ~np.isfinite(loss)),
    }


def drawn(cls: Any, rng: random.Random) -> Any:
    """A component with random parameters inside their ranges."""
    made = cls()
    values: dict[str, Any] = {}
    for name, info in params_of(made).items():
        value = rng.choice([info.low, info.high, info.default, rng.uniform(info.low, info.high)])
        if rng.random() < 0.5 and info.log:
            value = math.exp(rng.uniform(math.log(info.low), math.log(info.high)))
        value = min(info.high, max(info.low, value))
        values[name] = round(value) if info.integer else value
    for name in parts_of(made):
        values[name] = drawn(type(getattr(made, name)), rng)
    return cls(**values)


def drawn_specs(structure: str, delay_steps: int, count: int, seed: int) -> list[GuardSpec]:
    rng = random.Random(seed)
    sensor, analyzer, policy = STRUCTURES[structure]
    specs = []
    for number in range(count):
        guard = Guard(
            sensor=drawn(sensor, rng),
            analyzer=drawn(analyzer, rng),
            policy=drawn(policy, rng),
            envelope=drawn(Envelope, rng),
            delay_steps=delay_steps,
        )
        specs.append(GuardSpec.of(guard, f"{structure} {number}"))
    return specs


def assert_same(a: Replays, b: Replays) -> None:
    """Equal bits in every field."""
    for name in Replays._fields:
        one, other = getattr(a, name), getattr(b, name)
        if name == "decided" and one is not None:
            for guard, (mine, theirs) in enumerate(zip(one, other, strict=True)):
                for column in theirs:
                    assert mine[column].dtype == theirs[column].dtype
                    assert mine[column].tobytes() == theirs[column].tobytes(), (a.specs[guard], column)
        elif isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, name
            assert one.tobytes() == other.tobytes(), (name, one, other)


def both(columns: Any, specs: list[GuardSpec], rows: bool = True, **options: Any) -> Replays:
    """Replay by both engines, demand equal bits, return the result."""
    (fast,) = replay_many([columns], specs, rows=rows, engine="compiled", **options)
    (slow,) = replay_many([columns], specs, rows=rows, engine="python", **options)
    assert_same(fast, slow)
    return fast


# a kernel takes seconds to compile, and the delay is in what every guard sees, whatever its components
@pytest.mark.parametrize(("structure", "delay_steps"), [*((name, 0) for name in STRUCTURES), ("zscore", 1)])
@settings(max_examples=7, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(0, 300),
    edits=st.lists(st.tuples(st.integers(0, 299), st.sampled_from(HOSTILE)), max_size=20),
)
def test_vector_lanes_give_the_bits_of_python(
    structure: str, delay_steps: int, seed: int, rows: int, edits: list[tuple[int, float]]
) -> None:
    columns = telemetry(rows, seed)
    for row, value in edits:
        if row < rows:
            columns["loss"][row] = value
            columns["grad_norm"][row] = -value
    both(columns, drawn_specs(structure, delay_steps, 5, seed))


@pytest.mark.parametrize(("structure", "delay_steps"), [("default", 0), ("zscore", 1)])
def test_the_scalar_kernel_gives_the_bits_of_python(structure: str, delay_steps: int) -> None:
    for seed in range(8):
        both(telemetry(300, seed), drawn_specs(structure, delay_steps, 1, seed))


def test_guards_of_several_structures_come_back_in_the_order_they_were_given() -> None:
    names = ["never", "default", "zscore", "never", "default", "cusum", "default"]
    specs = [GuardSpec.load(name) for name in names]
    found = both(telemetry(300, 1), specs)
    assert found.unsafe_steps[0] == 0
    assert found.unsafe_steps[1] == found.unsafe_steps[4] == found.unsafe_steps[6] > 0


def test_more_candidates_than_lanes_and_several_threads_change_nothing() -> None:
    specs = drawn_specs("default", 0, 2 * compiled.LANES + 5, seed=7)
    columns = telemetry(300, 7)
    (one,) = replay_many([columns], specs, engine="compiled", threads=1)
    (four,) = replay_many([columns], specs, engine="compiled", threads=4)
    assert_same(one, four)
    assert len(set(one.unsafe_steps.tolist())) > 5
    (slow,) = replay_many([columns], specs[-5:], engine="python")
    assert one.unsafe_steps[-5:].tolist() == slow.unsafe_steps.tolist()


def test_blocks_and_words_do_not_cut_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BLOCK_ROWS", kernels.WORD_ROWS)
    columns = telemetry(500, 3)
    columns["loss"][90:200] = 50.0  # over two words' edges, 96 and 144
    columns["loss"][480:] = 90.0  # to the last row
    found = both(columns, drawn_specs("zscore", 0, 12, seed=3), rows=False)
    alarms = [alarm for guard in range(12) for alarm in found.alarms(guard)]
    assert any(first < 96 <= last for first, last in alarms)
    assert any(last == 499 for _, last in alarms)


def test_listed_alarms_are_bounded_and_all_are_counted() -> None:
    columns = telemetry(300, 0)
    columns["nonfinite"] = (np.arange(300) % 2).astype(float)
    spec = GuardSpec.load("zscore").with_changes({"analyzer.warmup_steps": 0, "analyzer.hold_steps": 1})
    found = both(columns, [spec, spec], rows=False, max_alarms=7)
    assert len(found.alarms(1)) == 7
    assert found.alarm_counts[1] > 100


# ---- components of strangers ---------------------------------------------------------------------------------------

PLUGIN = '''\
"""A rule."""
from __future__ import annotations
import math
from typing import NamedTuple
from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime, Signals

LIMIT = 3.5

class State(NamedTuple):
    """One number."""
    seen: float
    window: tuple[float, ...]

def above(value: float) -> bool:
    return value > LIMIT

@analyzer(version=1, needs=("loss",))
class {name}:
    """A rule."""
    window_steps: int = param(5, low=1, high=100, doc="window")
    start: float = param(0.0, low=-10.0, high=10.0, doc="start")

    def init(self) -> State:
        """Nothing."""
        return State(self.start, (0.0,) * self.window_steps)

    def step(self, state: State, signals: Signals) -> tuple[State, Assessment]:
        """One step."""
{body}
'''
RETURN = "return State(state.seen + 1.0, state.window), Assessment(int(Regime.SPIKE) if {} else int(Regime.STABLE))"


def plugin(folder: Path, name: str, body: str) -> Path:
    file = folder / f"{name.lower()}.py"
    file.write_text(PLUGIN.format(name=name, body="\n".join("        " + line for line in body.splitlines())))
    return file


def spec_of(name: str, **changes: object) -> GuardSpec:
    spec = GuardSpec.load("never").with_changes({})
    tables = {**spec.tables, "analyzer": {"name": name.lower()}}
    return GuardSpec.of(GuardSpec(name, tables).build(), name).with_changes(
        {f"analyzer.{key}": value for key, value in changes.items()}
    )


COMPILED = {
    "Branches": """\
level = state.seen
if signals.loss > 3.2:
    if signals.loss > 3.4:
        return State(0.0, state.window), Assessment(int(Regime.SPIKE), signals.loss)
    level = level + 1.0
elif signals.loss != signals.loss:
    return state, Assessment(int(Regime.NONFINITE))
else:
    level -= 0.5
a, (b, c) = level, (1.0, 2)
a, b = b, a
regime = int(Regime.STRESSED) if not (-3.0 <= b < 3.0) or b == 1 else int(Regime.STABLE)
return state._replace(seen=max(min(b, 50.0), -50.0)), Assessment(regime)""",
    "Calls": """\
high = above(signals.loss) and not math.isnan(signals.loss)
size = math.sqrt(abs(signals.loss)) if math.isfinite(signals.loss) else 0.0
whole = math.floor(size * 4.0) + int(size * -2.5) + len(state.window)
return State(float(whole), state.window), Assessment(int(Regime.SPIKE) if high or whole > 9 else int(Regime.STABLE))""",
    "Extremes": """\
kept, first = min(3.1, signals.loss), min(signals.loss, 3.1)
most, least = max(-1.0, signals.loss), max(signals.loss, -1.0)
a = (1 if kept == 3.1 else 0) + (2 if first == 3.1 else 0) + (4 if most == -1.0 else 0) + (1 if least == -1.0 else 0)
return state, Assessment(a)""",
    "Backwards": """\
total = 0.0
for i in range(70, 0, -1):
    total = 0.9 * total - i if signals.loss < 3.1 else -total * 0.5 + i
return State(total, state.window), Assessment(int(Regime.SPIKE) if total > state.seen else int(Regime.STABLE))""",
    "Members": """\
regime = Regime.STABLE if signals.loss > 3.0 else Regime.OSCILLATION
if regime in (Regime.STABLE, Regime.WARMUP):
    regime = Regime.RECOVERY
return state, Assessment(int(regime))""",
    "Windows": """\
window = state.window
if signals.loss == signals.loss:
    window = window[1:] + (signals.loss,)
total = 0.0
highest = window[0]
for value in window:
    total = total + value
    highest = value if value > highest else highest
mean = total / len(window)
squares = 0.0
for i in range(len(window)):
    squares = squares + (window[i] - mean) * (window[i] - mean)
swings = 0
for before, after in zip(state.window, window[1:]):
    swings = swings + (1 if after > before else 0)
spread = math.sqrt(squares / len(window))
odd = highest > mean + 1.5 * spread or max(window) - min(window) > 4.0 * spread or swings == len(window) - 1
state = State(min(state.seen + 1.0, 1e6), window if state.seen > 3.0 else state.window)
return state, Assessment(int(Regime.SPIKE) if odd and window[-1] > mean else int(Regime.STABLE), spread)""",
    "Partial": """\
start = max(0, self.window_steps - int(state.seen))
total = 0.0
for i in range(start, self.window_steps):
    total = total + state.window[i]
window = (*state.window[1:], signals.loss if signals.loss == signals.loss else 0.0)
return State(min(state.seen + 1.0, 50.0), window), Assessment(int(Regime.SPIKE) if total > 16.0 else 1)""",
}


@pytest.mark.parametrize("name", COMPILED)
def test_a_users_own_component_gives_the_bits_of_python(name: str, tmp_path: Path) -> None:
    load_plugin(plugin(tmp_path, name, COMPILED[name]))
    specs = [spec_of(name, window_steps=n, start=s) for n, s in [(5, 0.0), (1, 2.0), (37, 0.0)]]
    alarms = 0
    for seed in range(6):
        columns = telemetry(300, seed)
        columns["loss"][20:25] = math.nan
        alarms += int(both(columns, specs).alarm_counts.sum())
    assert alarms > 0


REFUSED = {
    "Power": (RETURN.format("signals.loss ** 2 > 9.0"), r"Power\.step, line 30: \*\* differs"),
    "Summed": (
        RETURN.format("sum(state.window) > 9.0"),
        r"Summed\.step, line 30: sum\(\) of floats rounds differently",
    ),
    "Logarithm": (RETURN.format("math.log(signals.loss) > 1.0"), "Logarithm.step, line 30: a call of log"),
    "While": ("while signals.loss > 1:\n    pass\n" + RETURN.format("True"), "While.step, line 30: while has no"),
    "Nowhere": ("if signals.loss > 3.0:\n    " + RETURN.format("True"), r"Nowhere\.step: a path ends without a return"),
    "Unbound": (
        "if signals.loss > 9.0:\n    x = 1.0\n" + RETURN.format("x > 0.5"),
        "line 32: name 'x' is not bound on",
    ),
    "Comprehension": (RETURN.format("max([x for x in state.window]) > 3.0"), "Comprehension.step, line 30: ListComp"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_runs_in_python_and_the_construct_is_named(name: str, tmp_path: Path) -> None:
    body, message = REFUSED[name]
    load_plugin(plugin(tmp_path, name, body))
    columns = telemetry(50, 0)
    # so that Python neither raises nor runs for ever, whatever the body
    columns["loss"] = np.full(50, 0.5 if name == "While" else 9.5)
    with pytest.warns(CompileWarning, match=message) as caught:
        (fast,) = replay_many([columns], [spec_of(name, window_steps=n) for n in (2, 3)], engine="compiled")
    assert len(caught) == 1
    assert len(fast.steps) == 50


RAISING = {
    "Divides": (RETURN.format("1.0 / (signals.loss - 5.0) > 0.0"), ZeroDivisionError),
    "Roots": (RETURN.format("math.sqrt(signals.loss - 5.5) > 1.0"), ValueError),
    "Rounds": (RETURN.format("int(5.0 / signals.loss * math.inf) > 1"), OverflowError),
    "Asserts": ("assert signals.loss != 5.0, 'five'\n" + RETURN.format("False"), AssertionError),
    "Raises": ("if signals.loss == 5.0:\n    raise KeyError\n" + RETURN.format("False"), KeyError),
    "Guarded": (RETURN.format("signals.loss > 5.5 and math.sqrt(signals.loss - 5.5) > 0.1"), None),
    "Regimes": ("return state, Assessment(signals.loss * 100.0)", OverflowError),
}


@pytest.mark.parametrize("name", RAISING)
def test_where_python_raises_the_compiled_engine_raises_the_same(name: str, tmp_path: Path) -> None:
    body, error = RAISING[name]
    load_plugin(plugin(tmp_path, name, body))
    columns = telemetry(60, 0)
    columns["loss"] = np.where(np.arange(60) == 40, 5.0, 6.0)
    specs = [spec_of(name, window_steps=n) for n in (2, 3)]
    if error is None:
        assert both(columns, specs).unsafe_steps.tolist() == [59, 59]
        return
    told = []
    engines: tuple[Engine, ...] = ("compiled", "python")
    for engine in engines:
        with pytest.raises((error, ComponentError)) as caught:
            list(replay_many([columns], specs, engine=engine))
        assert isinstance(caught.value.__cause__ or caught.value, error)
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_an_edited_callee_is_never_served_stale(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nsys.path.insert(0, sys.argv[1])\n"
        "import numpy as np\n"
        "from lbw_sim.guard import GuardSpec, load_plugin\n"
        "from lbw_sim.replay import kernel_files, kernels, replay_many\n"
        "kernel_files.compiled(kernels.extraction())\n"
        "for limit in sys.argv[2:]:\n"
        "    with open(sys.argv[1] + '/callee.py', 'w') as callee:\n"
        "        callee.write(f'LIMIT = {limit}\\n\\ndef judge(loss):\\n    return loss > LIMIT\\n')\n"
        "    if not (child := os.fork()):\n"
        "        break\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "else:\n"
        "    sys.exit()\n"
        "load_plugin(sys.argv[1] + '/stale.py')\n"
        "tables = {**GuardSpec.load('never').tables, 'analyzer': {'name': 'stale'}}\n"
        "columns = {'step': np.arange(10), 'loss': np.arange(10.0)}\n"
        "(found,) = replay_many([columns], [GuardSpec('x', tables)], engine='compiled')\n"
        "print(int(found.unsafe_steps[0]))\n"
    )
    body = "import callee\n" + RETURN.format("callee.judge(signals.loss)")
    plugin(tmp_path, "Stale", body.replace("import callee\n", ""))
    text = (tmp_path / "stale.py").read_text().replace("import math\n", "import math\nimport callee\n")
    (tmp_path / "stale.py").write_text(text)
    environment = {**os.environ, "LBW_CACHE": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    # each limit in a process of its own, forked before it has seen a plugin or a guard's kernel: to
    # import and start the compiler takes two seconds
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path), "4.5", "4.5", "7.5"],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = [int(line) for line in done.stdout.split()]
    assert seen == [5, 5, 2]
    # the second process compiled nothing: one kernel per text, and the one that finds alarms
    assert len(list((tmp_path / "cache").glob("kernel_*.py"))) == 3


def test_a_file_that_was_edited_after_its_import_is_not_read(tmp_path: Path) -> None:
    file = plugin(tmp_path, "Edited", RETURN.format("signals.loss > 3.0"))
    load_plugin(file)
    file.write_text(file.read_text().replace("loss > 3.0", "loss > 9.0"))
    with pytest.warns(CompileWarning, match=r"the file of Edited\.step was edited after it was imported"):
        (found,) = replay_many([telemetry(50, 0)], [spec_of("Edited")], engine="compiled")
    assert found.unsafe_steps[0] > 0


# ---- kernels and their cache ---------------------------------------------------------------------------------------


def fresh_assembly(structure: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    monkeypatch.setenv("LBW_CACHE", str(folder))
    kernel_files.cache_folder.cache_clear()
    kernel_files.compiled.cache_clear()
    guard = drawn_specs(structure, 0, 1, seed=0)[0].build()
    kernel: Any = kernel_files.compiled(kernels.source(guard, compiled.LANES, rows=False).text)
    (assembly,) = kernel.inspect_asm().values()
    monkeypatch.undo()
    kernel_files.cache_folder.cache_clear()
    kernel_files.compiled.cache_clear()
    return str(assembly)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64", "arm64"), reason="vector instructions unknown")
def test_kernels_are_vectorised_and_nothing_is_contracted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assembly = fresh_assembly("zscore", monkeypatch, tmp_path)
    if platform.machine() == "x86_64":
        assert re.search(r"\bv?divpd\b", assembly)
        assert re.search(r"\bv?sqrtpd\b", assembly)
        assert not re.search(r"\bv?(div|sqrt)sd\b", assembly)
        assert not re.search(r"\bvfn?m(add|sub)", assembly)
        assert "vmaskmov" not in assembly  # microcode on many AMD cores
    else:
        assert re.search(r"\bfdiv(\.2d|\s+v\d+\.2d|\s+z\d)", assembly)
        assert re.search(r"\bfsqrt(\.2d|\s+v\d+\.2d|\s+z\d)", assembly)
        assert not re.search(r"\bfn?ml[as]\b", assembly)


def test_a_comparison_is_foregone_only_where_no_numbers_within_the_bounds_give_another_answer() -> None:
    ends = [-math.inf, -1.0, 0.0, 1.0, math.inf]
    spans = [Num("a", low=low, high=high) for low in ends for high in ends if low <= high]
    known = 0
    for (symbol, compare), x, y in itertools.product(_COMPARED.values(), spans, spans):
        answers = {
            compare(one, other)
            for one in [*(e for e in ends if x.low <= e <= x.high), math.nan]
            for other in [*(e for e in ends if y.low <= e <= y.high), math.nan]
        }
        found = _foregone(symbol, x, y)
        assert found is None or answers == {found}, (symbol, x, y)
        known += found is not None
    assert known > 100


def test_a_damaged_kernel_file_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBW_CACHE", str(tmp_path))
    kernel_files.cache_folder.cache_clear()
    text = kernels.extraction()
    file = kernel_files.kernel_file(text)
    file.write_text("raise SystemExit")
    kernel_files.compiled.cache_clear()
    kernel_files.compiled(text)
    assert file.read_text() == text
    kernel_files.cache_folder.cache_clear()
    kernel_files.compiled.cache_clear()


def test_a_kernel_that_the_compiler_refuses_is_no_crash() -> None:
    with pytest.raises(CannotInline, match="does not compile"):
        kernel_files.compiled('from numba import njit\n@njit("void(int64)")\ndef kernel(x):\n    return x.nothing\n')


@pytest.mark.parametrize(
    "line", ["x = begin // 2", "x = begin ** 2", "while begin:\n    x = 1", "x = sum(win)", "x = y"]
)
def test_a_line_that_no_kernel_is_made_of_is_refused(line: str) -> None:
    with pytest.raises(CannotInline, match="does not compile"):
        kernel_files.compiled(kernels._text("a test", 1, {"begin": "int64", "win": "float64[::1]"}, line.splitlines()))


def test_a_cache_that_cannot_be_written_is_replaced_by_a_folder_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LBW_CACHE", str(tmp_path / "file" / "cache"))
    kernel_files.cache_folder.cache_clear()
    folder = kernel_files.cache_folder()
    assert folder.is_dir()
    assert tmp_path not in folder.parents
    kernel_files.cache_folder.cache_clear()


# ---- the promises of replay_many -----------------------------------------------------------------------------------


def test_memory_stays_below_what_is_stated_beforehand() -> None:
    columns = telemetry(3000, 0)
    specs = drawn_specs("zscore", 0, 40, seed=0)
    for rows in (False, True):
        list(replay_many([telemetry(10, 0)], specs, rows=rows, engine="compiled", threads=1))  # compile
        work = replay_many([telemetry(10, 0), columns], specs, rows=rows, engine="compiled", threads=1)
        next(work)
        tracemalloc.start()
        next(work)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < replay_bytes(3000, 40, rows=rows, threads=1)


def test_what_was_finished_before_an_interruption_is_kept() -> None:
    def interrupt(done: int, total: int) -> None:
        assert total == 900
        if done > 300:
            raise KeyboardInterrupt

    finished: list[Replays] = []
    with pytest.raises(KeyboardInterrupt):
        finished.extend(
            replay_many([telemetry(300, s) for s in range(3)], [GuardSpec.load("zscore")], progress=interrupt)
        )
    assert len(finished) == 1


def test_kernels_leave_out_what_no_decision_depends_on() -> None:
    guard = Guard(sensor=RobustLoss(), analyzer=Cusum(), policy=DampRelease(), envelope=Envelope())
    layout = kernels.source(guard, compiled.LANES, rows=False).layout
    assert "sensor.norm_slow_rows" not in layout.parameters
    assert "sensor.level_rows" in layout.parameters


def test_a_step_number_beyond_two_to_the_53_goes_through_the_reference_engine() -> None:
    columns = telemetry(20, 0)
    columns["step"] = np.arange(20) + 2**60
    both(columns, [GuardSpec.load("zscore")])


def test_unfit_starting_states_are_found(tmp_path: Path) -> None:
    load_plugin(plugin(tmp_path, "Start", RETURN.format("1.0 / (state.seen + 1.0) > 0.2")))
    specs = [spec_of("Start", start=s) for s in (0.0, -5.0, 3.0)]
    guards = [spec.build() for spec in specs]
    layout = kernels.source(guards[0], 1, rows=False).layout
    assert [kernels.start(layout, [guard]).unfit.tolist() for guard in guards] == [[False], [True], [False]]
    assert _seen(telemetry(3, 0), ()).shape == (7, 4)
    with pytest.raises(ComponentError, match="ZeroDivisionError"):
        list(replay_many([telemetry(20, 0)], specs, engine="compiled"))
