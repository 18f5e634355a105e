"""Each published rule does on a planted case what its source says, its known trap included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lbw_sim.errors import ChannelError
from lbw_sim.guard import GuardSpec, preset_names
from lbw_sim.guard.analyzers.ema_outlier import EmaOutlier, EmaOutlierState
from lbw_sim.guard.analyzers.ewma_ratio import EwmaRatio, EwmaRatioState
from lbw_sim.guard.analyzers.window_outlier import WindowOutlier, WindowOutlierState
from lbw_sim.guard.conformance import check_component
from lbw_sim.values import UNSAFE_REGIMES, Decision, Posture, Reason, Regime, Signals, Telemetry, nan

OWN = {
    "adaptive_cap", "canary_rollback", "cusum", "default", "never", "paired_rollback", "slow_start", "static_cap",
    "zscore",
}  # fmt: skip
PUBLISHED = sorted(set(preset_names()) - OWN)


def fly(
    guard: str | GuardSpec,
    losses: Sequence[float] = (),
    *,
    grad_norms: Sequence[float] = (),
    update_norms: Sequence[float] = (),
) -> list[Decision]:
    """One decision per step; a channel that is not given was not measured."""
    spec = GuardSpec.load(guard) if isinstance(guard, str) else guard
    flown = spec.build()
    steps = max(len(losses), len(grad_norms), len(update_norms))
    state, before, decisions = flown.init(), flown.not_yet, []
    for step in range(steps):
        loss = losses[step] if losses else nan
        grad_norm = grad_norms[step] if grad_norms else nan
        broken = float(bool(losses) and not abs(loss) < float("inf"))
        now = Telemetry(step, loss, 1e-3, grad_norm, update_norms[step] if update_norms else nan, 1.0, broken)
        state, decision = flown.step(state, flown.seen(now, before))
        before = now
        decisions.append(decision)
    return decisions


def unsafe_steps(guard: str | GuardSpec, *args: Sequence[float], **more: Sequence[float]) -> list[int]:
    """The steps that are in alarm."""
    return [step for step, made in enumerate(fly(guard, *args, **more)) if made.regime in UNSAFE_REGIMES]


def swinging(steps: int, plant: dict[int, float] | None = None, level: float = 2.0, swing: float = 0.1) -> list[float]:
    """level ± swing by turns: over any even window the mean is `level` and the population sd is `swing`."""
    values = [level + (swing if step % 2 else -swing) for step in range(steps)]
    for step, value in (plant or {}).items():
        values[step] = value
    return values


def flat(*parts: tuple[float, int]) -> list[float]:
    """Values, each for so many steps."""
    return [value for value, steps in parts for _ in range(steps)]


# the paper's spike score is the other one with a longer window
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "olmo_spike_score_paper"])
def test_the_analyzer_of_a_preset_conforms_with_its_parameters_too(name: str) -> None:
    check_component(GuardSpec.load(name).build().analyzer, seed=3)


def test_the_page_on_published_rules_names_every_preset_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "published-rules.md").read_text(encoding="utf-8")
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")] == PUBLISHED


def test_olmo_skips_beyond_six_unbiased_sd_and_the_outlier_hides_the_next() -> None:
    # unbiased sd of 128 values: 0.1 * sqrt(128 / 127) = 0.10039
    assert unsafe_steps("olmo_skip_step", swinging(300, {200: 2.0 + 0.602})) == []
    assert unsafe_steps("olmo_skip_step", swinging(300, {200: 2.0 + 0.603})) == [200]
    assert unsafe_steps("olmo_skip_step", swinging(300, {200: 2.7, 201: 2.7})) == [200]
    assert unsafe_steps("olmo_skip_step", swinging(300, {200: -9.0})) == []
    decision = fly("olmo_skip_step", swinging(201, {200: 9.0}))[200]
    assert (decision.posture, decision.scale) == (Posture.SKIP, 1.0)


def test_olmo_waits_for_half_a_window_and_watches_the_gradient_norm_as_well() -> None:
    assert unsafe_steps("olmo_skip_step", swinging(100, {63: 9.0})) == []
    assert unsafe_steps("olmo_skip_step", swinging(100, {64: 9.0})) == [64]
    norms = swinging(300, {150: 9.0, 151: nan})
    assert unsafe_steps("olmo_skip_step", swinging(300), grad_norms=norms) == [150]
    assert unsafe_steps("olmo_skip_step", swinging(300, {100: nan, 101: float("inf")})) == [100, 101]


def test_levanter_divides_by_n_and_floors_the_sd() -> None:
    assert unsafe_steps("levanter_skip_step", swinging(300, {200: 2.0 + 0.602})) == [200]
    assert unsafe_steps("levanter_skip_step", swinging(300, {200: 2.0 + 0.598})) == []
    assert unsafe_steps("levanter_skip_step", flat((2.0, 100), (2.0 + 5e-6, 1))) == []
    assert unsafe_steps("levanter_skip_step", flat((2.0, 100), (2.0 + 7e-6, 1))) == [100]
    assert unsafe_steps("olmo_skip_step", flat((2.0, 100), (2.0 + 5e-6, 1))) == [100], "no floor: any change fires"


@pytest.mark.parametrize(
    ("name", "window", "below", "beyond"),
    [("olmo_spike_score", 128, 0.598, 0.602), ("olmo_spike_score_paper", 1000, 0.698, 0.702)],
)
def test_the_two_spike_scores_differ_and_see_falls_and_only_log(
    name: str, window: int, below: float, beyond: float
) -> None:
    at = window + 100
    for away in (below, -below):
        assert unsafe_steps(name, swinging(at + 1, {at: 2.0 + away})) == []
    for away in (beyond, -beyond):
        decisions = fly(name, swinging(at + 1, {at: 2.0 + away}))
        assert decisions[at].regime == Regime.SPIKE
        assert {d.posture for d in decisions} == {Posture.HOLD}
    assert unsafe_steps(name, swinging(window, {window - 1: 90.0})) == []
    assert unsafe_steps(name, swinging(window + 1, {window: 90.0})) == [window]


def test_levanter_scales_the_step_after_a_large_update_to_the_limit() -> None:
    decisions = fly("levanter_clip_update", update_norms=swinging(300, {200: 2.0}, level=1.0))
    assert [step for step, made in enumerate(decisions) if made.scale < 1.0] == [201]
    assert decisions[201].scale == pytest.approx(1.3 / 2.0, abs=1e-12)
    assert decisions[201].regime == Regime.SPIKE


def test_llmc_takes_the_third_outlier_in_a_row_for_normal() -> None:
    assert unsafe_steps("llmc_outlier", swinging(300, dict.fromkeys(range(200, 206), 9.0))) == [200, 201]
    assert unsafe_steps("llmc_outlier", swinging(300), grad_norms=swinging(300, {200: 9.0})) == [200]
    assert fly("llmc_outlier", swinging(201, {200: 9.0}))[200].posture == Posture.SKIP
    # √63 is out of reach for the largest outlier there is
    never = GuardSpec.load("llmc_outlier").with_changes({"analyzer.first.limit_sd": 7.94})
    assert unsafe_steps(never, swinging(201, {200: 1e9})) == []


def test_kill_loss_spike_wants_five_in_a_row_at_twice_the_mean() -> None:
    assert unsafe_steps("kill_loss_spike", flat((2.0, 300), (6.0, 4), (2.0, 50))) == []
    assert unsafe_steps("kill_loss_spike", flat((2.0, 300), (6.0, 5), (2.0, 50))) == [304]
    assert unsafe_steps("kill_loss_spike", flat((2.0, 300), (nan, 50))) == []


def test_kill_loss_spike_wants_half_a_window_above_the_start() -> None:
    assert unsafe_steps("kill_loss_spike", flat((3.0, 100), (2.0, 100), (3.5, 60)))[0] == 249
    assert unsafe_steps("kill_loss_spike", flat((30.0, 100), (6.0, 100), (10.5, 60)))[0] == 249, "the cap is 10"
    assert unsafe_steps("kill_loss_spike", flat((30.0, 100), (6.0, 100), (9.9, 60))) == []


def test_lightning_wants_a_rise_to_three_times_the_mean_of_ten_or_a_loss_that_is_not_finite() -> None:
    assert unsafe_steps("lightning_spike", flat((2.0, 50), (6.0, 1), (2.0, 20))) == [50]
    assert unsafe_steps("lightning_spike", flat((2.0, 50), (5.9, 1), (2.0, 20))) == []
    assert unsafe_steps("lightning_spike", flat((2.0, 50), (20.0, 1), (19.0, 1), (2.0, 20))) == [50]
    assert unsafe_steps("lightning_spike", flat((2.0, 50), (nan, 2), (2.0, 20))) == [50, 51]


def test_megatron_measures_against_the_largest_of_the_first_hundred() -> None:
    start = [11.0 - 0.09 * step for step in range(100)]
    assert unsafe_steps("megatron_spiky", start + flat((2.0, 200), (109.9, 1), (110.1, 1), (2.0, 9))) == [301]
    assert unsafe_steps("megatron_spiky", start + flat((2.0, 200), (40.0, 5))) == []
    assert unsafe_steps("megatron_spiky", flat((2.0, 99), (200.0, 1), (2.0, 9))) == []


def test_flagscale_skips_for_ever_after_a_level_shift() -> None:
    assert unsafe_steps("flagscale_spike", flat((2.0, 100), (2.39, 1), (2.88, 1), (2.39, 9))) == [101]
    assert unsafe_steps("flagscale_spike", flat((2.0, 100), (3.0, 400))) == list(range(100, 500))
    assert unsafe_steps("flagscale_spike", flat((2.0, 100), (nan, 3), (float("inf"), 2), (2.0, 9))) == [103, 104]
    decisions = fly("flagscale_spike", flat((2.0, 100), (3.0, 400)))
    assert [step for step in range(100, 500) if decisions[step].posture != Posture.SKIP] == [200, 301, 402]


def test_internevo_compares_with_the_previous_loss_only() -> None:
    assert unsafe_steps("internevo_spike", flat((2.0, 50), (3.01, 30), (4.4, 1), (6.5, 9))) == [50]


def test_metaseq_lowers_the_rate_by_the_fourth_power_of_the_ratio_and_never_lets_go_after_a_shift() -> None:
    decisions = fly("metaseq_ewm", flat((2.0, 100), (2.2, 1)))
    assert decisions[100].regime == Regime.STABLE
    assert decisions[100].scale == pytest.approx(1.1**-4, abs=1e-12)
    assert decisions[99].scale == 1.0
    assert unsafe_steps("metaseq_ewm", flat((2.0, 100), (2.6, 300))) == list(range(100, 400))
    assert fly("metaseq_ewm", flat((2.0, 100), (2.6, 1)))[100].scale == pytest.approx(1.3**-4, abs=1e-12)
    state, assessment = EwmaRatio().step(EwmaRatioState(1, 2.0), Signals(loss=2.4))
    assert (assessment.evidence, state.mean) == (1.2, pytest.approx(2.08, abs=1e-12))


def test_wandb_alerts_beyond_three_sd_of_the_last_thirty_either_way() -> None:
    # unbiased sd of 30 values: 0.1 * sqrt(30 / 29) = 0.10171
    for away in (0.306, -0.306):
        assert unsafe_steps("wandb_zscore", swinging(101, {100: 2.0 + away})) == [100]
    assert unsafe_steps("wandb_zscore", swinging(101, {100: 2.304})) == []
    assert unsafe_steps("wandb_zscore", swinging(101, {29: 9.0})) == []


def test_zclip_clips_the_more_the_further_out_and_feeds_itself_the_clipped_norm() -> None:
    state, assessment = EmaOutlier().step(EmaOutlierState(25, 1.0, 0.01), Signals(grad_norm=2.0, nonfinite=0.0))
    clipped = 1.0 + 2.5 * 0.1 / ((1.0 / (0.1 + 1e-6)) / 2.5)
    assert assessment.evidence == pytest.approx(2.0 / clipped, abs=1e-12)
    assert state.mean == pytest.approx(0.97 + 0.03 * clipped, abs=1e-12)
    assert state.spread == pytest.approx(0.97 * 0.01 + 0.03 * (clipped - state.mean) ** 2, abs=1e-12)
    norms = swinging(200, {24: 9.0, 150: 3.0}, level=1.0)
    decisions = fly("zclip", flat((2.0, 200)), grad_norms=norms)
    assert [step for step, made in enumerate(decisions) if made.regime in UNSAFE_REGIMES] == [150]
    assert decisions[150].scale < 0.6
    assert decisions[151].scale == 1.0


def test_reduce_on_plateau_cuts_to_a_tenth_after_eleven_checks_without_improvement_and_again() -> None:
    decisions = fly("reduce_on_plateau", flat((2.0, 2400)))
    assert [step for step, made in enumerate(decisions) if made.regime == Regime.PLATEAU] == [1199, 2299]
    scales = [decisions[step].scale for step in (1198, 1199, 2298, 2299, 2399)]
    assert scales == pytest.approx([1.0, 0.1, 0.1, 0.01, 0.01], abs=1e-12)
    falling = [2.0 - 1e-5 * step for step in range(2400)]
    assert {made.regime for made in fly("reduce_on_plateau", falling)} == {Regime.STABLE}


def test_palm_asks_once_for_a_hundred_steps_back_and_the_envelope_grants_none_by_default() -> None:
    losses = swinging(300, dict.fromkeys(range(200, 230), 6.0), swing=0.02)
    refused = fly("palm_rewind", losses)
    asked = [step for step, made in enumerate(refused) if made.reason == Reason.ROLLBACKS_SPENT]
    assert asked == [201]
    granted = fly(GuardSpec.load("palm_rewind").with_changes({"envelope.max_rollbacks": 3}), losses)
    assert [(step, d.rollback_steps) for step, d in enumerate(granted) if d.posture == Posture.ROLLBACK] == [(201, 100)]
    assert {made.scale for made in refused + granted} == {1.0}


def test_clip_scales_to_the_limit_and_only_above_it() -> None:
    decisions = fly("clip", grad_norms=[0.5, 1.0, 4.0, 0.9, nan])
    assert [made.scale for made in decisions] == [1.0, 1.0, 0.25, 1.0, 1.0]
    assert [made.regime for made in decisions] == [Regime.STABLE, Regime.STABLE, Regime.SPIKE, *[Regime.STABLE] * 2]


@pytest.mark.parametrize(
    ("name", "channel"), [("clip", "grad_norm"), ("zclip", "grad_norm"), ("levanter_clip_update", "update_norm")]
)
def test_a_rule_that_is_nothing_without_a_norm_refuses_a_run_without_it(name: str, channel: str) -> None:
    guard = GuardSpec.load(name).build()
    guard.require(["loss", channel], "this run")
    with pytest.raises(ChannelError, match=f"needs channel {channel}, which this run does not hold"):
        guard.require(["loss", "lr"], "this run")


def test_a_window_drops_its_oldest_value_and_a_missing_one_leaves_it_alone() -> None:
    rule = WindowOutlier(window_steps=3, min_count=2)
    state, _ = rule.step(WindowOutlierState((0.0, 4.0, 5.0), 2), Signals(loss=6.0))
    assert state == WindowOutlierState((4.0, 5.0, 6.0), 3)
    assert rule.step(state, Signals(loss=7.0))[0].window == (5.0, 6.0, 7.0)
    assert rule.step(state, Signals(loss=nan))[0] == state
    assert rule.step(state, Signals(loss=float("inf")))[0] == state


def test_the_value_joins_its_own_window_only_when_told_to() -> None:
    state = WindowOutlierState((1.0, 3.0, 1.0, 3.0), 4)
    apart = WindowOutlier(window_steps=4, min_count=4, unbiased=0, limit_sd=1.5)
    within = WindowOutlier(window_steps=4, min_count=4, unbiased=0, limit_sd=1.5, include_current=1)
    # mean 2 and sd 1 without the value; (3, 1, 3, 4): mean 2.75 and sd √1.1875 with it
    assert apart.step(state, Signals(loss=4.0))[1][:2] == (Regime.SPIKE, 4.0 / 3.5)
    after, assessment = within.step(state, Signals(loss=4.0))
    assert assessment[:2] == (Regime.STABLE, pytest.approx(4.0 / (2.75 + 1.5 * 1.1875**0.5), abs=1e-12))
    assert after == apart.step(state, Signals(loss=4.0))[0]
