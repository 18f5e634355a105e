"""The closed loop: compiled as in plain Python, three endings kept apart, and the calibrated range kept in sight."""

from __future__ import annotations

import dataclasses
import warnings
from typing import NamedTuple

import numpy as np
import pytest

from lbw_sim.errors import ChannelError, SimulateError
from lbw_sim.guard import GuardSpec
from lbw_sim.guard.registry import components
from lbw_sim.params import param
from lbw_sim.replay import kernel_files, kernels
from lbw_sim.replay.arrangement import _bodies, _close_together, _Store
from lbw_sim.replay.lines import Line
from lbw_sim.simulate import FittedRange, PlantSpec, Rollouts, drawn_noise, rollouts
from lbw_sim.simulate.loop import Loop, Playback, PlaybackInputs, StepInputs
from lbw_sim.simulate.powers import exponential, logarithm, power
from lbw_sim.simulate.rollout import LANES, RESULTS, loop_kernel

STEPS = 300
SCHEDULES = {"rising": np.linspace(1e-4, 0.2, STEPS), "falling": np.linspace(0.3, 1e-5, STEPS)}
SKIPS = GuardSpec.load("zscore").with_changes({"policy.cut": 0.5}, "late")
LATE = GuardSpec(SKIPS.name, {**SKIPS.tables, "delay_steps": 1})
FITTED = FittedRange(1e-3, 0.1, 200, 1.5, 1.5, 1.0)


def equal(one: Rollouts, other: Rollouts) -> None:
    for name in ("ended", "outside"):
        assert (getattr(one, name) == getattr(other, name)).all()
    for name in ("steps", "final_loss", "dead", "energy", "damped_steps", "skipped_steps", "lowest_scale"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name
    for left, right in zip(one.rows, other.rows, strict=True):
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.parametrize("plant", sorted(components("plant")))
def test_compiled_rollouts_have_the_bits_of_plain_python(plant: str) -> None:
    # compiling is what costs here: a guard that acts, every row and lanes for one plant; one lane where a bank is long
    acting = plant == "noisy_quadratic"
    banked = plant in ("multi_power_law", "functional_scaling")
    spec = dataclasses.replace(PlantSpec.load(plant), fitted=FITTED)
    schedules = {"rising": SCHEDULES["rising"]} if banked else SCHEDULES
    about = ([spec], [LATE if acting else GuardSpec.load("never")], schedules, drawn_noise(1 if banked else 2, STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # CompileWarning: every plant here has a compiled form
        compiled = rollouts(*about, rows=acting, engine="compiled", threads=1)
    equal(compiled, rollouts(*about, rows=acting, engine="python", threads=1))


class Asked(NamedTuple):
    """Arguments of the three functions, as one step of a loop."""

    base: float
    exponent: float


class Answered(NamedTuple):
    exponential: float
    logarithm: float
    power: float


class Nothing(NamedTuple):
    count: int


@dataclasses.dataclass(frozen=True)
class Powers:
    """Something with a step, so that the kernel generator reads it."""

    def init(self) -> Nothing:
        return Nothing(0)

    def step(self, state: Nothing, asked: Asked) -> tuple[Nothing, Answered]:
        return state, Answered(
            exponential(asked.exponent), logarithm(asked.base), power(asked.base, asked.exponent)
        )  # fmt: skip


def test_compiled_powers_have_the_bits_of_plain_python_in_lanes() -> None:
    rows, lanes = 4_000, 8
    chance = np.random.default_rng(0)
    inputs = np.empty((2, rows, lanes))
    inputs[0] = 10.0 ** chance.uniform(-13.0, 13.0, (rows, lanes))
    inputs[1] = chance.uniform(-45.0, 45.0, (rows, lanes)) * 10.0 ** chance.uniform(-17.0, 0.0, (rows, lanes))
    inputs[:, 0] = np.array([-1.0, 0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 1.0])
    inputs[:, 1] = np.nextafter([0.5, 0.5, 1.0, 1.0, 2.0, 2.0, 0.5**0.5, 0.5**0.5], [0.0, 1.0] * 4)
    source = kernels.loop_source(Powers(), Asked, (), dict.fromkeys(Answered._fields, "float64"), lanes)
    start = kernels.start(source.layout, [Powers()])
    outputs = [np.empty(rows * lanes) for _ in Answered._fields]
    kernel_files.compiled(source.text)(inputs, 0, rows, start.buffer, start.win, start.place, *outputs)
    plain = [Powers().step(Nothing(0), Asked(*pair))[1] for pair in inputs.reshape(2, -1).T.tolist()]
    for found, expected in zip(outputs, np.array(plain).T, strict=True):
        assert found.tobytes() == expected.tobytes()
    table = start.buffer.reshape(source.layout.rows, lanes)
    assert not table[source.layout.summary_row("fault")].any()


def test_guards_that_share_their_lanes_fly_as_each_does_alone() -> None:
    start, plants = GuardSpec.load("zscore"), [PlantSpec.load("lasting_damage"), PlantSpec.load("noisy_quadratic")]
    # one more than the lanes hold
    guards = [start.with_changes({"analyzer.limit_sd": 1.0 + 0.1 * number}) for number in range(LANES + 1)]
    noise = drawn_noise(3, STEPS)
    together = rollouts(plants, guards, SCHEDULES, noise, rows=True, engine="compiled")
    size = len(SCHEDULES) * 3
    for place in (0, 7, LANES - 1, LANES):
        alone = rollouts(plants, [guards[place]], SCHEDULES, noise, rows=True, engine="compiled")
        assert together.final_loss[:, [place]].tobytes() == alone.final_loss.tobytes()
        assert together.energy[:, [place]].tobytes() == alone.energy.tobytes()
        for plant in range(2):
            own = together.rows[(plant * len(guards) + place) * size :][:size]
            for one, other in zip(own, alone.rows[plant * size :][:size], strict=True):
                assert all(one[name].tobytes() == other[name].tobytes() for name in one)


class Level(NamedTuple):
    expected_loss: float
    dead: int = 0


@dataclasses.dataclass(frozen=True)
class Flat:
    """A plant whose loss stays where it began: the kernel of one level knows the number, and is wrong for another."""

    level: float = param(3.0, low=0.0, high=10.0, doc="level")

    def init(self) -> Level:
        return Level(self.level)

    def step(self, state: Level, action: object, noise: object) -> tuple[Level, Level]:
        return state, state


def test_a_kernel_is_read_once_for_all_starts_that_it_fits() -> None:
    def kernel(plant: object) -> kernels.Source:
        return loop_kernel(Playback(plant=plant), PlaybackInputs, (), {"expected_loss": "float64"}, 8)  # type: ignore[arg-type]

    law = PlantSpec.load("tissue_law")
    begun = [law.with_parameters({"start_lr_sum": value}).build() for value in (0.3, 5.0, 1e-6)]
    assert len({plant.init() for plant in begun}) == 3
    assert all(kernel(plant) is kernel(begun[0]) for plant in begun)
    assert kernel(Flat(3.0)) is not kernel(Flat(5.0))
    assert kernel(Flat(5.0)) is kernel(Flat(5.0))


def test_cut_diverged_and_completed_are_three_things() -> None:
    plant = dataclasses.replace(PlantSpec.load("noisy_quadratic"), fitted=FittedRange(1e-4, 1e-2, 100, 1.0, 1.0, 1.0))
    schedules = {"ok": np.full(100, 5e-3), "too high": np.full(100, 3e-2), "beyond": np.full(100, 1.5e-2)}
    hold = [GuardSpec.load("never")]
    watched = rollouts([plant], hold, schedules, drawn_noise(1, 100))
    assert watched.ended.ravel().tolist() == ["completed", "diverged", "completed"]
    assert watched.left_range.ravel().tolist() == [False, True, True]
    assert watched.outside.ravel().tolist() == ["", "above", "above"]
    stopped = rollouts([plant], hold, schedules, drawn_noise(1, 100), stop_outside=True)
    assert stopped.ended.ravel().tolist() == ["completed", "cut", "cut"]
    assert stopped.steps.ravel().tolist() == [100, 1, 1]
    assert np.isfinite(stopped.final_loss).all()


def test_every_way_out_of_the_calibrated_range_is_named_and_a_plant_without_one_says_so() -> None:
    plant = PlantSpec.load("tissue_law")
    fitted = dataclasses.replace(plant, fitted=FittedRange(1e-3, 1e-2, 50, 2.0, 2.0, 1.0))
    schedules = {
        "inside": np.full(50, 2e-3), "late": np.full(60, 2e-3), "below": np.full(50, 9e-4),
        "above": np.full(50, 1.1e-2),
        "sudden": np.array([2e-3, 5e-3]), "gentle": np.array([2e-3, 3.9e-3, 2e-3]), "both": np.array([2e-3, 2e-2]),
    }  # fmt: skip
    found = rollouts([fitted, plant], [GuardSpec.load("never")], schedules, drawn_noise(1, 60))
    assert found.outside[0, 0, :, 0].tolist() == ["", "late", "below", "above", "sudden", "", "above sudden"]
    assert found.outside_steps[0, 0, :, 0].tolist() == [0, 10, 50, 50, 1, 0, 2]
    assert set(found.outside[1].ravel()) == {"uncalibrated"}
    assert found.left_range[1].all()


def test_a_rollback_ends_the_rollout_as_cut_because_no_plant_keeps_snapshots() -> None:
    guard = GuardSpec.load("palm_rewind").with_changes({"envelope.max_rollbacks": 5})
    spike = np.full(600, 1e-3)
    spike[300:] = 0.03
    found = rollouts([PlantSpec.load("noisy_quadratic")], [guard], {"spike": spike}, drawn_noise(1, 600))
    assert found.ended.item() == "cut"
    assert 300 < found.steps.item() < 600


def test_a_guard_that_acts_changes_what_the_plant_does_and_one_in_open_loop_would_not() -> None:
    # the guard sees the swing grow and cuts: the loop is closed
    lr = np.full(400, 1e-3)
    lr[200:230] = 0.021
    plant = PlantSpec.load("noisy_quadratic")
    found = rollouts([plant], [GuardSpec.load("never"), GuardSpec.load("zscore")], {"bump": lr}, drawn_noise(4, 400))
    left, acted = found.final_loss[0, 0, 0], found.final_loss[0, 1, 0]
    assert (found.damped_steps[0, 1, 0] > 0).all()
    peaks = [max(0.0, *[float(found.energy[0, guard, 0].max())]) for guard in (0, 1)]
    assert peaks[0] == 0.0 < peaks[1]
    assert not np.array_equal(left, acted)


def test_results_depend_neither_on_threads_nor_on_who_else_is_flown() -> None:
    plant, guards = PlantSpec.load("lasting_damage"), [GuardSpec.load("zscore"), GuardSpec.load("never")]
    noise = drawn_noise(40, STEPS)
    together = rollouts([plant], guards, SCHEDULES, noise, threads=2, engine="compiled")
    alone = rollouts([plant], guards[:1], {"falling": SCHEDULES["falling"]}, noise, threads=1, engine="compiled")
    assert together.final_loss[0, 0, 1].tobytes() == alone.final_loss[0, 0, 0].tobytes()


def test_what_does_not_fit_is_refused_with_all_reasons() -> None:
    plant, guard = [PlantSpec.load("tissue_law")], [GuardSpec.load("never")]
    with pytest.raises(SimulateError, match=r"'bad' holds a rate that is not finite.*does not cover 5 steps"):
        rollouts(plant, guard, {"bad": np.array([1e-3, np.nan, 1, 1, 1])}, drawn_noise(1, 4))
    with pytest.raises(ChannelError, match="plant 'tissue_law' does not hold"):
        rollouts(plant, [GuardSpec.load("zclip")], {"a": np.full(5, 1e-3)}, drawn_noise(1, 5))


def test_the_loop_reports_every_result_that_rollouts_promise() -> None:
    loop = Loop(guard=GuardSpec.load("never").build(), plant=PlantSpec.load("tissue_law").build())
    state, output = loop.step(loop.init(), StepInputs(1e-3, 0.0, 0.0))
    assert set(RESULTS) <= set(state._fields)
    # the first batch is measured before any update
    assert output.effective_lr == 1e-3
    assert state.plant == loop.plant.init()


def test_a_long_step_is_cut_into_lane_loops_that_a_compiler_still_puts_into_lanes() -> None:
    loop = Loop(guard=GuardSpec.load("default").build(), plant=PlantSpec.load("lasting_damage").build())
    source = kernels.loop_source(loop, StepInputs, RESULTS, {}, 32)
    assert source.layout.inputs == ("lr", "batch", "walk")
    # too much state for 32 lanes in a core's first cache
    assert source.layout.lanes == 16
    pieces = source.text.split("for row in range(begin, end):")[1].split("for lane in range(16):")[1:]
    assert len(pieces) >= 3
    assert max(piece.count("\n") for piece in pieces) < 300


def test_no_piece_of_a_step_overwrites_what_a_later_piece_still_reads() -> None:
    pieces = [
        [Line("v1", "now0 * p0")],
        [Line("v2", "s0 + v1"), Line("v3", "v2 > 1.0")],
        [Line("v4", "select(v3, s1, v1)")],
    ]
    stores = [_Store("buffer[2 + lane] = v1", {"v1"}, "s0"), _Store("buffer[4 + lane] = s0", {"s0"}, "s1")]
    bodies, spilled = _bodies(
        pieces, stores, {"p0": 0, "s0": 1, "s1": 2}, {"now0": "now0 = inputs[0, row, lane]"}, 3, 2
    )
    assert [any("= v1" in line and "[2 " in line for line in body) for body in bodies] == [False, False, True]
    # the copy of s0 has to wait for the last reader of s1, and s0 for the copy
    assert [line for line in bodies[2] if "buffer[4 + lane] = " in line] == ["buffer[4 + lane] = s0"]
    # v1 and the boolean v3 cross; v2 and v4 are needed where they are made
    assert spilled == 2
    assert "v3 = buffer[8 + lane] != 0.0" in bodies[2]


def test_values_wait_for_their_readers_as_briefly_as_can_be() -> None:
    lines = [Line("v1", "s1 * p0"), Line("v2", "s2 * p0"), Line("v3", "s3 * p0"), Line("v4", "v1 + 1.0"),
             Line("v5", "v4 + v2"), Line("v6", "v5 + v3")]  # fmt: skip
    assert [line.target for line in _close_together(lines)] == ["v1", "v4", "v2", "v5", "v3", "v6"]
    stores = [_Store("buffer[2 + lane] = v4", {"v4"}, "s1"), _Store("buffer[4 + lane] = v6", {"v6"}, "s2")]
    (body,), spilled = _bodies([_close_together(lines)], stores, {"p0": 0, "s1": 1, "s2": 2, "s3": 3}, {}, 4, 2)
    assert [line.replace(" + lane", "") for line in body] == [
        "p0 = buffer[0]", "s1 = buffer[2]", "v1 = s1 * p0", "v4 = v1 + 1.0", "buffer[2] = v4",
        "s2 = buffer[4]", "v2 = s2 * p0", "v5 = v4 + v2", "s3 = buffer[6]", "v3 = s3 * p0", "v6 = v5 + v3",
        "buffer[4] = v6",
    ]  # fmt: skip
    assert spilled == 0


def test_what_crosses_after_another_was_last_read_takes_its_place() -> None:
    pieces = [[Line("v1", "now0 + 1.0")], [Line("v2", "v1 + 1.0")], [Line("v3", "v2 + 1.0")], [Line("v4", "v3 + 1.0")]]
    bodies, spilled = _bodies(pieces, [_Store("buffer[0 + lane] = v4", {"v4"}, "")], {}, {"now0": "now0 = 0.0"}, 1, 2)
    # v2 is written while v1 is still read, v3 when it is not
    assert spilled == 2
    assert "buffer[2 + lane] = v1" in bodies[0]
    assert "buffer[4 + lane] = v2" in bodies[1]
    assert "buffer[2 + lane] = v3" in bodies[2]


def test_a_plant_that_reads_no_walk_is_not_handed_one() -> None:
    loop = Loop(guard=GuardSpec.load("never").build(), plant=PlantSpec.load("noisy_quadratic").build())
    assert kernels.loop_source(loop, StepInputs, RESULTS, {}, 32).layout.inputs == ("lr", "batch")
