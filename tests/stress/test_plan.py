from math import nan

import pytest

from lbw_sim import GuardSpec
from lbw_sim.errors import StressError
from lbw_sim.stress import RunPlan, fault


def test_all_that_is_wrong_with_a_plan_is_told_at_once():
    with pytest.raises(StressError) as caught:
        RunPlan(run_id="x", architecture="postln", method="sgd", lr=nan, seed=-1, steps=10, fault=fault("lr_bump", 10))
    for part in ("run 'x'", "'post_ln'", "no method named 'sgd'", "lr=nan", "seed=-1", "lr_bump at step 10"):
        assert part in str(caught.value)


def test_playback_needs_one_scale_per_step_and_other_methods_none():
    with pytest.raises(StressError, match="2 scales for 3 steps"):
        RunPlan(run_id="x", steps=3, method="playback", scales=(1.0, 1.0))
    with pytest.raises(StressError, match="scales are for method playback"):
        RunPlan(run_id="x", steps=1, scales=(1.0,))


def test_a_guard_that_may_roll_back_can_watch_and_not_act():
    spec = GuardSpec.load("default").with_changes({"envelope.max_rollbacks": 1})
    assert RunPlan(run_id="x", spec=spec).mode == "shadow"
    with pytest.raises(StressError, match="max_rollbacks=1"):
        RunPlan(run_id="x", spec=spec, method="guard")
