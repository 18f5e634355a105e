import pytest

from lbw_sim import GuardSpec
from lbw_sim.stress import RunPlan, fault, train
from lbw_sim.stress.controls import frozen_at_floor, same_energy_at_random_times, same_mean_lr, same_scales


@pytest.fixture(scope="module")
def guarded():
    spec = GuardSpec.load("default").with_changes(
        {"sensor.startup_rows": 5, "analyzer.spike_sd": 3.0, "analyzer.rise_sd": 1.0}
    )
    (result,) = train([RunPlan(run_id="g", steps=40, method="guard", spec=spec, fault=fault("bad_labels", 20))])
    assert result.energy > 0.0
    return result


def test_every_control_matches_the_guarded_run_in_what_its_name_says(guarded):
    plans = [
        same_mean_lr(guarded, "mean"),
        same_scales(guarded, "scales"),
        same_energy_at_random_times(guarded, "times", seed=0),
        frozen_at_floor(guarded, "floor"),
    ]
    assert all(plan.mode == "shadow" for plan in plans)
    assert all((plan.seed, plan.fault) == (guarded.plan.seed, guarded.plan.fault) for plan in plans)
    mean, scales, times, floor = train(plans)
    assert mean.mean_effective_lr == pytest.approx(guarded.mean_effective_lr)
    assert scales.scales == guarded.scales
    assert times.energy == pytest.approx(guarded.energy)
    assert times.scales != guarded.scales
    assert floor.plan.lr == guarded.plan.lr * min(guarded.scales)
    assert all(result.energy == 0.0 for result in (mean, floor))


def test_random_times_follow_from_the_seed(guarded):
    first, second, again = (same_energy_at_random_times(guarded, "x", seed=seed).scales for seed in (1, 2, 1))
    assert first == again != second
