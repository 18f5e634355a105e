import pytest

from lbw_sim import GuardSpec
from lbw_sim.stress import RunPlan, fault, train
from lbw_sim.stress.controls import same_mean_lr


def test_adamw_at_the_mean_effective_learning_rate_has_it_and_no_feedback():
    spec = GuardSpec.load("default").with_changes(
        {"sensor.startup_rows": 5, "analyzer.spike_sd": 3.0, "analyzer.rise_sd": 1.0}
    )
    (guarded,) = train([RunPlan(run_id="g", steps=40, method="guard", spec=spec, fault=fault("bad_labels", 20))])
    assert guarded.energy > 0.0
    plan = same_mean_lr(guarded, "mean")
    assert (plan.seed, plan.fault, plan.mode) == (guarded.plan.seed, guarded.plan.fault, "shadow")
    (mean,) = train([plan])
    assert mean.mean_effective_lr == pytest.approx(guarded.mean_effective_lr)
    assert mean.energy == 0.0
