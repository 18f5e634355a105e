import math

import numpy as np
import pytest
import torch

from lbw_sim import GuardSpec, Posture, Regime, Telemetry
from lbw_sim.errors import StressError
from lbw_sim.guard import load_plugin
from lbw_sim.stress import ARCHITECTURES, FAULTS, RunPlan, fault, train
from lbw_sim.stress.adamw import BatchedAdamW
from lbw_sim.stress.corpus import corpus, training_windows, validation_windows
from lbw_sim.stress.schedule import scheduled_lr
from lbw_sim.stress.tiny_gpt import PARAMETERS, SIZES, initial_weights, losses
from lbw_sim.trace import read_labels, read_trace
from lbw_sim.values import nan

EVERYTHING_BUT_TIME = (
    "loss",
    "lr",
    "effective_lr",
    "grad_norm",
    "update_norm",
    "nonfinite",
    "scale",
    "energy",
    "regime",
)
QUICK = GuardSpec.load("default").with_changes(
    {"sensor.startup_rows": 5, "analyzer.spike_sd": 3.0, "analyzer.rise_sd": 1.0}
)
"""The default guard, quick to act, so that short runs show it acting."""
STEPS, ONSET = 50, 24


def rows_of(folder, run_id):
    return read_trace(folder / f"run_id={run_id}").to_numpy()


def same(first, second, columns=EVERYTHING_BUT_TIME, steps=slice(None)):
    return all(np.array_equal(first[name][steps], second[name][steps], equal_nan=True) for name in columns)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_has_the_same_bits_alone_and_in_any_company(architecture, tmp_path):
    bad = fault("bad_labels", 15)
    plan = RunPlan(run_id="it", architecture=architecture, seed=3, steps=30, method="guard", spec=QUICK, fault=bad)
    company = [
        RunPlan(run_id="capped", architecture=architecture, steps=30, lr=1.0, method="static_cap"),
        RunPlan(run_id="clipped", architecture=architecture, steps=30, lr=1.0, method="clip"),
        RunPlan(run_id="dead", architecture=architecture, steps=30, fault=fault("nan_loss", 3)),
        plan,
        RunPlan(run_id="noisy", architecture=architecture, steps=30, fault=fault("gradient_noise", 10)),
    ]
    (alone,) = train([plan], tmp_path / "alone")
    together = train(company, tmp_path / "together")[3]
    assert together._replace(seconds=0.0) == alone._replace(seconds=0.0)
    assert same(rows_of(tmp_path / "alone", "it"), rows_of(tmp_path / "together", "it"))
    assert alone.energy > 0.0


def test_threads_and_graph_width_change_no_bit():
    plans = [RunPlan(run_id=f"run-{seed}", seed=seed, steps=12) for seed in range(3)]
    one = train(plans)
    torch.set_num_threads(2)
    assert [r.validation_loss for r in train(plans, runs_per_graph=2)] == [r.validation_loss for r in one]


def test_a_shadow_guard_changes_no_bit_of_a_plain_training_loop(tmp_path):
    eager = QUICK.with_changes({"analyzer.spike_sd": 2.0, "analyzer.spike_steps": 1.0, "analyzer.rise_sd": 0.5})
    plan = RunPlan(run_id="shadow", seed=2, steps=STEPS, spec=eager, fault=fault("lr_bump", ONSET))
    train([plan], tmp_path)
    rows = rows_of(tmp_path, "shadow")
    assert rows["scale"].min() < 1.0  # the guard did want to act
    assert np.array_equal(rows["effective_lr"], rows["lr"])

    weights = initial_weights(2).view(1, -1).clone()
    optimizer, leaf = BatchedAdamW(weights), weights.detach().requires_grad_()
    for step in range(STEPS):
        text = torch.from_numpy(training_windows(corpus("prose"), 2, step, 12, 33)).long().unsqueeze(0)
        leaf.grad = None
        loss = losses(leaf, text[:, :, :-1], text[:, :, 1:], "post_ln")
        assert loss.item() == rows["loss"][step]
        loss.sum().backward()
        lr = scheduled_lr(step, STEPS, plan.lr) * (30.0 if ONSET <= step < ONSET + 20 else 1.0)
        update_norm = optimizer.step(leaf.grad, torch.tensor([[lr]]), torch.tensor([False]))
        assert update_norm.item() == rows["update_norm"][step]


@pytest.mark.parametrize("delay_steps", [0, 1])
def test_the_recorded_decisions_follow_from_the_recorded_rows_and_the_delay(delay_steps, tmp_path):
    spec = QUICK.with_changes({"delay_steps": delay_steps})
    faulty = [
        RunPlan(run_id=name, steps=STEPS, method="guard", spec=spec, fault=fault(name, ONSET))
        for name in ("bad_labels", "nan_loss")
    ]
    train(faulty, tmp_path)
    for plan in faulty:
        rows = rows_of(tmp_path, plan.run_id)
        guard = spec.build()
        state = guard.init()
        for t in range(STEPS):
            seen = {name: float(rows[name][t]) for name in Telemetry._fields[1:-1]}
            for name in ("loss", "grad_norm", "update_norm", "nonfinite") if delay_steps else ("update_norm",):
                seen[name] = float(rows[name][t - 1]) if t else nan
            state, decision = guard.step(state, Telemetry(step=t, **seen))
            for name in ("regime", "posture", "scale", "energy", "reason"):
                assert getattr(decision, name) == rows[name][t]
            assert rows["skipped"][t] == (decision.posture == Posture.SKIP)
    assert rows_of(tmp_path, "bad_labels")["scale"].min() < 1.0
    assert rows["skipped"][ONSET + delay_steps]
    assert not rows["skipped"][: ONSET + delay_steps].any()


UPDATE_WATCH = """
from typing import NamedTuple

from lbw_sim.params import analyzer, param
from lbw_sim.values import Assessment, Regime


class UpdateWatchState(NamedTuple):
    steps: int


@analyzer(version=1, needs=("update_norm",))
class UpdateWatch:
    limit: float = param(1.0, low=0.0, high=1e9, doc="update norm that is a spike")

    def init(self):
        return UpdateWatchState(0)

    def step(self, state, signals):
        return state, Assessment(int(Regime.SPIKE if signals.update_norm > self.limit else Regime.STABLE))
"""


def test_a_guard_sees_the_update_norm_one_step_late(tmp_path, monkeypatch):
    # so that the plugin is forgotten after this test
    monkeypatch.setattr("lbw_sim.guard.registry._plugins", {"sensor": {}, "analyzer": {}, "policy": {}})
    plugin = tmp_path / "update_watch.py"
    plugin.write_text(UPDATE_WATCH)
    load_plugin(plugin)
    bump = fault("lr_bump", 30)
    train([RunPlan(run_id="free", steps=40, fault=bump)], tmp_path / "free")
    norms = rows_of(tmp_path / "free", "free")["update_norm"]
    limit = 2.0 * float(norms[:30].max())
    spec = GuardSpec.from_toml(
        f"""
        lbw_spec = 1
        sensor.name = "raw"
        analyzer = {{ name = "update_watch", limit = {limit} }}
        policy.name = "damp_release"
        """
    )
    train([RunPlan(run_id="watched", steps=40, fault=bump, spec=spec)], tmp_path / "watched")
    rows = rows_of(tmp_path / "watched", "watched")
    high = rows["update_norm"] > limit
    assert high.nonzero()[0][0] == 30
    assert np.array_equal(rows["regime"][1:] == Regime.SPIKE, high[:-1])


@pytest.fixture(scope="module")
def faulty_runs(tmp_path_factory):
    """A clean run and one run per fault, all of one seed."""
    folder = tmp_path_factory.mktemp("faults")
    plans = [RunPlan(run_id=name, seed=1, steps=STEPS, fault=fault(name, ONSET)) for name in FAULTS]
    train([RunPlan(run_id="clean", seed=1, steps=STEPS), *plans], folder)
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_marked_and_labelled_where_it_is_and_changes_nothing_before(name, faulty_runs):
    clean, rows = rows_of(faulty_runs, "clean"), rows_of(faulty_runs, name)
    made = fault(name, ONSET)
    assert [name if made.active(step) else "" for step in range(STEPS)] == list(rows["event"])
    assert set(clean["event"]) == {""}
    assert same(clean, rows, steps=slice(0, ONSET))
    assert not same(clean, rows)
    assert read_labels(faulty_runs / f"run_id={name}") == (made.label(STEPS, guarded=False),)
    assert read_labels(faulty_runs / "run_id=clean") == ()


def test_each_fault_acts_where_it_should_and_nowhere_else(faulty_runs):
    clean = rows_of(faulty_runs, "clean")
    bump = rows_of(faulty_runs, "lr_bump")
    factor = bump["lr"] / clean["lr"]
    assert factor[ONSET : ONSET + 20] == pytest.approx(30.0)
    assert factor[ONSET + 20 :] == pytest.approx(1.0)
    assert bump["loss"][ONSET] == clean["loss"][ONSET]
    assert bump["update_norm"][ONSET] == pytest.approx(30.0 * clean["update_norm"][ONSET], rel=1e-4)

    labels = rows_of(faulty_runs, "bad_labels")
    assert (labels["loss"] - clean["loss"])[ONSET : ONSET + 8].min() > 0.5

    noise = rows_of(faulty_runs, "gradient_noise")
    assert noise["loss"][ONSET] == clean["loss"][ONSET]
    # nearly orthogonal to the gradient: ratio 10 makes the norm √101 as large
    assert noise["grad_norm"][ONSET] == pytest.approx(math.sqrt(101.0) * clean["grad_norm"][ONSET], rel=0.03)

    repeated = rows_of(faulty_runs, "repeated_batch")
    assert repeated["loss"][ONSET] == clean["loss"][ONSET]
    assert repeated["loss"][ONSET + 24] < clean["loss"][ONSET + 24] - 0.3
    assert repeated["loss"][ONSET + 25] > repeated["loss"][ONSET + 24] + 0.3

    switched = rows_of(faulty_runs, "data_switch")
    assert np.array_equal(switched["lr"], clean["lr"])
    assert (switched["loss"] != clean["loss"])[ONSET:].all()

    restarted = rows_of(faulty_runs, "warm_restart")
    assert restarted["lr"][ONSET] == 1e-2
    assert restarted["loss"][ONSET] == clean["loss"][ONSET]


def test_two_nan_losses_kill_adamw_and_not_a_guarded_run(tmp_path):
    bad = fault("nan_loss", ONSET)
    plain, guarded = train(
        [
            RunPlan(run_id="adamw", steps=STEPS, fault=bad),
            RunPlan(run_id="guard", steps=STEPS, fault=bad, method="guard"),
        ],
        tmp_path,
    )
    assert math.isnan(plain.validation_loss)
    assert guarded.validation_loss < 3.5
    dead, rows = rows_of(tmp_path, "adamw"), rows_of(tmp_path, "guard")
    assert dead["nonfinite"].tolist() == [0.0] * ONSET + [1.0] * (STEPS - ONSET)
    assert np.isnan(dead["loss"][ONSET:]).all()
    assert rows["nonfinite"].nonzero()[0].tolist() == [ONSET, ONSET + 1]
    assert rows["skipped"][[ONSET, ONSET + 1]].all()
    assert guarded.skipped_steps == rows["skipped"].sum()
    assert ((rows["update_norm"] == 0.0) == rows["skipped"]).all()
    assert ((rows["effective_lr"] == 0.0) == rows["skipped"]).all()


def test_clipping_acts_on_the_first_gradient_above_the_limit_and_not_before(tmp_path):
    train([RunPlan(run_id="free", steps=30)], tmp_path)
    free = rows_of(tmp_path, "free")
    limit = float(free["grad_norm"][10:].max())
    first = int(np.argmax(free["grad_norm"] > limit * 0.999))
    assert 0 < first + 1 < 30
    train(
        [
            RunPlan(run_id="clip", steps=30, method="clip", clip_norm=limit * 0.999),
            RunPlan(run_id="loose", steps=30, method="clip", clip_norm=1e6),
        ],
        tmp_path,
    )
    clipped = rows_of(tmp_path, "clip")
    # Adam's very first update does not depend on the gradient's length, the second one does
    assert same(free, clipped, ("loss", "grad_norm"), slice(0, first + 1))
    assert not same(free, clipped, ("loss",), slice(first + 1, first + 4))
    assert same(free, rows_of(tmp_path, "loose"))


def test_the_static_cap_limits_each_weight_matrix_by_its_own_initial_size(tmp_path):
    high, low, free = train(
        [
            RunPlan(run_id="high", steps=30, lr=1.0, method="static_cap"),
            RunPlan(run_id="low", steps=30, lr=1e-3, method="static_cap"),
            RunPlan(run_id="free", steps=30, lr=1e-3),
        ],
        tmp_path,
    )
    caps = [0.1 * part.square().mean().sqrt().item() for part in initial_weights(0).split(SIZES)]
    mean_cap = sum(cap * size for cap, size in zip(caps, SIZES, strict=True)) / PARAMETERS
    assert rows_of(tmp_path, "high")["effective_lr"][-1] == pytest.approx(mean_cap)
    assert high.validation_loss < 3.2
    assert low.validation_loss == free.validation_loss
    # at step 0 every weight moves by lr, but for the token rows that did not occur and the weight decay
    norm_limit = math.sqrt(sum(min(1 / 20, cap) ** 2 * size for cap, size in zip(caps, SIZES, strict=True)))
    assert 0.7 * norm_limit < rows_of(tmp_path, "high")["update_norm"][0] < 1.01 * norm_limit


def test_playing_back_a_guards_scales_repeats_its_run():
    guarded = RunPlan(run_id="guard", steps=STEPS, method="guard", spec=QUICK, fault=fault("bad_labels", ONSET))
    (first,) = train([guarded])
    again = RunPlan(run_id="again", steps=STEPS, method="playback", scales=first.scales, fault=guarded.fault)
    (second,) = train([again])
    assert first.energy > 0.0
    assert (second.validation_loss, second.energy) == (first.validation_loss, first.energy)
    assert second.mean_effective_lr == first.mean_effective_lr < first.mean_lr


def test_a_run_is_judged_on_the_text_that_it_ended_on():
    (switched,) = train([RunPlan(run_id="switched", steps=1, fault=fault("data_switch", 0))])
    weights = initial_weights(0).view(1, -1).clone()
    leaf = weights.clone().requires_grad_()
    text = torch.from_numpy(training_windows(corpus("code"), 0, 0, 12, 33)).long().unsqueeze(0)
    losses(leaf, text[:, :, :-1], text[:, :, 1:], "post_ln").sum().backward()
    BatchedAdamW(weights).step(leaf.grad, torch.tensor([[scheduled_lr(0, 1, 1e-2)]]), torch.tensor([False]))
    held_out = {}
    for name in ("prose", "code"):
        windows = torch.from_numpy(validation_windows(corpus(name), 240, 33)).long().unsqueeze(0)
        held_out[name] = losses(weights, windows[:, :, :-1], windows[:, :, 1:], "post_ln").item()
    assert switched.validation_loss == pytest.approx(held_out["code"], abs=1e-5)
    assert abs(held_out["code"] - held_out["prose"]) > 1e-3


def test_progress_counts_every_step_of_every_run():
    seen = []
    plans = [RunPlan(run_id="a", steps=3), RunPlan(run_id="b", steps=3), RunPlan(run_id="c", steps=2)]
    results = train(plans, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 8), (4, 8), (6, 8), (7, 8), (8, 8)]
    assert [result.run_id for result in results] == ["a", "b", "c"]


def test_one_run_id_twice_is_refused(tmp_path):
    plan = RunPlan(run_id="twin", steps=2)
    with pytest.raises(StressError, match="more than one plan is called twin"):
        train([plan, plan])
    train([plan], tmp_path)
    with pytest.raises(StressError, match="holds twin already"):
        train([plan], tmp_path)
