"""The stress suite with real runs and real processes: killed, resumed, made worthless, refused."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lbw_sim.errors import StressError
from lbw_sim.guard import GuardSpec
from lbw_sim.score.stress_results import CONTROLS, Suite, SuiteRun, read_suite
from lbw_sim.stress import suite as module
from lbw_sim.stress.methods import METHODS
from lbw_sim.stress.suite import PRESETS, Ledger, Preset, SuitePlan, estimates, run_suite, smoothed
from lbw_sim.stress.workloads import WORKLOADS
from lbw_sim.trace import read_traces

STEPS, SEEDS, LRS = 12, (5, 6), (0.01, 1.0)
GUARD = "guard:slow_start"
METHODS_FLOWN = ("adamw", "skip_step", GUARD, "guard:never")
RUNS = len(SEEDS) * len(LRS) * (len(METHODS_FLOWN) + 2 * len(CONTROLS))
FLOWN = len(SEEDS) * (1 + len(LRS) * (len(METHODS_FLOWN) + len(CONTROLS)))
"""The untouched model once a seed; the controls of a guard that never acts are AdamW's runs."""


def plan(**changes: object) -> SuitePlan:
    chosen = Preset(
        name="test", about="A test.", workloads=("post_ln",), methods=METHODS_FLOWN,
        controlled=(GUARD, "guard:never"), seeds=SEEDS, lrs=LRS,
    )  # fmt: skip
    return SuitePlan(preset=chosen, steps=STEPS, **changes)  # type: ignore[arg-type]


COMMAND = [
    sys.executable, "-m", "lbw_sim", "stress", "tiny", "--workloads", "post_ln", "--methods", ",".join(METHODS_FLOWN),
    "--lrs", "0.01,1.0", "--seeds", "5-6", "--steps", str(STEPS), "--processes", "2",
]  # fmt: skip


def children(number: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


def key_of(line: str) -> str:
    return str(json.loads(line.partition(" ")[2])["key"])


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder of a suite that was killed by SIGKILL with some runs done, and the lines of its ledger."""
    folder = tmp_path_factory.mktemp("suite")
    process = subprocess.Popen([*COMMAND, "--out", folder], stderr=subprocess.PIPE, text=True)
    ledger = folder / "runs.ledger"
    give_up = time.monotonic() + 120
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < 6:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < give_up
        time.sleep(0.01)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    give_up = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < give_up, "the processes of a killed suite go on for ever"
        time.sleep(0.05)
    with ledger.open("ab") as file:
        file.write(b'00000000 {"key":"post_ln|adamw||1.0|6","stamp":{"lr":"1.0"},"ru')
    return folder, {key_of(line): line for line in ledger.read_text().splitlines()[:-1]}


@pytest.fixture(scope="module")
def resumed(killed: tuple[Path, dict[str, str]]) -> tuple[Suite, list[tuple[int, int, float]]]:
    told: list[tuple[int, int, float]] = []
    return run_suite(plan(), killed[0], progress=lambda *words: told.append(words)), told


def test_a_killed_suite_goes_on_without_flying_a_finished_run_again(
    killed: tuple[Path, dict[str, str]], resumed: tuple[Suite, list[tuple[int, int, float]]]
) -> None:
    (folder, before), (made, told) = killed, resumed
    assert 6 <= len(before) < FLOWN
    lines = [line for line in (folder / "runs.ledger").read_text().splitlines() if not line.endswith('"ru')]
    assert len(lines) == FLOWN
    assert {key_of(line): line for line in lines}.items() >= before.items()
    assert told[0][0] == len(before)
    assert told[-1][:2] == (RUNS + len(SEEDS),) * 2
    assert told[-1][2] == 0.0
    assert made.facts.complete
    assert len(made.runs) == RUNS
    assert read_suite(folder) == made
    traces = read_traces(folder / "traces")
    assert len(traces) == FLOWN - len(SEEDS)
    assert {len(trace.to_numpy("all")["step"]) for trace in traces} == {STEPS}
    # nothing to do: not a line more
    assert run_suite(plan(), folder) == made
    assert len((folder / "runs.ledger").read_text().splitlines()) == len(lines) + 1


def of(made: Suite, method: str, control_of: str = "") -> list[SuiteRun]:
    return [run for run in made.runs if (run.method, run.control_of) == (method, control_of)]


def test_controls_follow_from_the_guarded_run(resumed: tuple[Suite, list[tuple[int, int, float]]]) -> None:
    made, _ = resumed
    guarded = of(made, GUARD)
    assert all(run.control_energy > 0.0 for run in guarded)
    for name in CONTROLS:
        controls = of(made, name, GUARD)
        for own, control in zip(guarded, controls, strict=True):
            assert (control.lr, control.seed, control.steps) == (own.lr, own.seed, STEPS)
            if name in ("random_damping", "playback"):
                # slow_start looks at no loss before step 30: every seed has one schedule
                assert control.control_energy == pytest.approx(own.control_energy)
                assert control.mean_scale == pytest.approx(own.mean_scale)
            if name == "same_mean_lr":
                assert control.mean_effective_lr == pytest.approx(own.mean_effective_lr)
            if name == "frozen_floor":
                assert control.mean_scale == pytest.approx(own.min_scale)
    # at the other learning rate roundings grow
    good = [[run.final_loss for run in of(made, *who) if run.lr == 0.01]
            for who in ((GUARD, ""), ("playback", GUARD), ("random_damping", GUARD))]  # fmt: skip
    assert good[1] == pytest.approx(good[0], rel=1e-5)
    assert good[2] != pytest.approx(good[0], rel=1e-3)
    plain = of(made, "adamw")
    for name in CONTROLS:
        idle = of(made, name, "guard:never")
        assert [(run.run_id, run.final_loss) for run in idle] == [(run.run_id, run.final_loss) for run in plain]


def test_a_run_tells_what_the_tables_need(resumed: tuple[Suite, list[tuple[int, int, float]]]) -> None:
    made, _ = resumed
    assert {run.initial_loss for run in made.runs} == {run.initial_loss for run in of(made, "adamw")}
    assert len({run.initial_loss for run in made.runs}) == len(SEEDS)
    for run in made.runs:
        assert run.final_loss < run.initial_loss or run.lr == 1.0
        assert run.tokens == STEPS * 384
        assert run.seconds > 0.0
        assert run.tokens_to_target > 0.0
    best = [run for run in of(made, "adamw") if run.lr == 0.01]
    assert all(run.tokens_to_target <= run.tokens for run in best), "AdamW at its best reaches its own loss"
    assert all(run.control_active_steps == 0 and run.mean_scale == 1.0 for run in of(made, "adamw"))


def test_runs_of_another_guard_text_or_torch_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    guard, text, out = tmp_path / "guard.toml", tmp_path / "text.txt", tmp_path / "out"
    GuardSpec.load("never").save(guard)
    text.write_text("another text " * 5000)
    small = Preset(
        name="test", about="A test.", workloads=("post_ln",), methods=("adamw", f"guard:{guard}"), controlled=(),
        seeds=(5,), lrs=(0.01,),
    )  # fmt: skip

    def flown(**changes: object) -> int:
        """Runs that were not stored, the untouched model among them."""
        wanted = SuitePlan(preset=small, **{"steps": 3, **changes})  # type: ignore[arg-type]
        before = (out / "runs.ledger").read_bytes().count(b"\n") if out.exists() else 0
        made = run_suite(wanted, out)
        shown = [(run.method, run.steps) for run in made.runs]
        assert shown == [("adamw", wanted.steps), ("guard:guard.toml", wanted.steps)]
        assert {len(trace.to_numpy("all")["step"]) for trace in read_traces(out / "traces")} == {wanted.steps}
        return (out / "runs.ledger").read_bytes().count(b"\n") - before

    assert flown() == 3
    assert flown() == 0
    GuardSpec.load("default").save(guard)
    assert flown() == 1
    assert flown(steps=4) == 3
    assert flown(data=text, steps=4) == 3
    monkeypatch.setattr(module.torch, "__version__", "0.0")
    assert flown(data=text, steps=4) == 3
    assert str(tmp_path) not in (out / "results.csv").read_text()


def test_a_run_whose_line_holds_a_flipped_digit_is_flown_again(tmp_path: Path) -> None:
    small = Preset(
        name="test", about="A test.", workloads=("post_ln",), methods=("adamw",), controlled=(), seeds=(5,), lrs=(0.01,)
    )
    asked = SuitePlan(preset=small, steps=3, traces=False)
    made = run_suite(asked, tmp_path)
    path = tmp_path / "runs.ledger"
    whole = path.read_text()
    place = whole.index('"final_loss":', whole.index("adamw")) + len('"final_loss":') + 3
    path.write_text(whole[:place] + str((int(whole[place]) + 1) % 10) + whole[place + 1 :])
    again = run_suite(asked, tmp_path)
    assert [run.final_loss for run in again.runs] == [run.final_loss for run in made.runs]
    assert path.read_bytes().count(b"\n") == 3, "the untouched model, the run, and the run again"


def test_a_second_suite_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path / "runs.ledger").held(), pytest.raises(StressError, match="another command is at work"):
        run_suite(plan(), tmp_path)


def test_a_file_system_without_locks_is_no_second_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Ledger(tmp_path / "runs.ledger").held():
        pass


def test_one_broken_run_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    small = Preset(
        name="broken", about="A test.", workloads=("post_ln",), methods=("adamw", "clip"), controlled=(), seeds=(5,),
        lrs=(0.01,),
    )  # fmt: skip
    wanted = SuitePlan(preset=small, steps=3)
    # no folder can be made under a file
    (tmp_path / "traces").write_text("in the way")
    with pytest.raises(StressError, match="2 of 2 runs failed"):
        run_suite(wanted, tmp_path)
    (tmp_path / "traces").unlink()
    assert [run.method for run in run_suite(wanted, tmp_path).runs] == ["adamw", "clip"]


def test_every_preset_names_what_there_is_and_its_estimate_is_of_its_size() -> None:
    for preset in PRESETS.values():
        assert set(preset.workloads) <= set(WORKLOADS)
        assert {spec.partition(":")[0] for spec in preset.methods} <= set(METHODS)
        assert len(preset.seeds) >= 3
        found = estimates(SuitePlan(preset=preset), Path("nowhere"))
        assert [estimate.workload for estimate in found] == list(preset.workloads)
        for estimate in found:
            assert estimate.runs * WORKLOADS[estimate.workload].steps == estimate.steps
            assert (estimate.stored, estimate.timed) == (0, False)
    (seven,) = estimates(SuitePlan(preset=PRESETS["qwen2.5-7b"]), Path("nowhere"))
    assert 20e9 < seven.memory_bytes < 60e9, "weights in bf16, twice 7.6 billion bytes, and what a step needs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("adamw", "clop")}, "Did you mean 'clip'?"),
        ({"methods": ("adamw", "playback")}, "playback"),
        ({"workloads": ("post_nl",)}, "Did you mean 'post_ln'?"),
        ({"lrs": (0.0,)}, "lr=0.0 is not a positive number"),
        ({"seeds": ()}, "no seeds are named"),
        ({"seeds": (1, 1)}, "seed 1 is named twice"),
        ({"methods": ("adamw", "guard:x/a.toml", "guard:y/a.toml")}, "two methods would be called guard:a.toml"),
        ({"methods": ("adamw",), "controlled": ("guard:default",)}, "controls of guard:default"),
        ({"methods": ("guard:default",), "controlled": ("guard:default",)}, "controls need adamw"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    base = plan().preset
    with pytest.raises(StressError, match="stress suite 'test'") as caught:
        SuitePlan(preset=dataclasses.replace(base, **({"controlled": ()} | changes)))
    assert message in str(caught.value)


def test_the_smoothed_loss_is_a_trailing_mean_and_nan_stays_nan() -> None:
    points, last = smoothed([5.0] * 50 + [3.0] * 50, 1000)
    assert points[0] == (100, 5.0)
    assert points[-1] == (1000, 3.0)
    assert dict(points)[550] == 4.0
    assert last == 3.0
    broken, last = smoothed([5.0] * 99 + [math.nan], 1000)
    assert math.isnan(last)
    assert not math.isnan(broken[0][1])
    assert math.isnan(smoothed([1.0] * 5, 50)[1]), "too short for a mean"


def test_a_trace_is_left_out_when_asked(tmp_path: Path) -> None:
    small = dataclasses.replace(plan().preset, methods=("adamw",), controlled=(), seeds=(5,), lrs=(0.01,))
    run_suite(SuitePlan(preset=small, steps=3, traces=False), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["results.csv", "runs.ledger", "suite.json"]
