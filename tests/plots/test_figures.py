"""Figures: what they show is tested as data, how they show it by the artists on the axes, never by pixels."""

import math
import os
import threading

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

from lbw_sim import Decision, GuardSpec, Posture, Regime, Telemetry
from lbw_sim.cli.app import app
from lbw_sim.errors import ScoreError
from lbw_sim.plots import (
    comparison_figure,
    detection_figure,
    outcome_figure,
    plot_trace,
    run_figure,
    save,
    stretches_given_up,
)  # fmt: skip
from lbw_sim.plots.canvas import VERMILLION
from lbw_sim.plots.comparison import NAMED_RUNS, comparison_info
from lbw_sim.plots.detection import detection_info, draw_detection
from lbw_sim.plots.loss_axis import LossAxis, loss_axis, loss_ticks, running_median, spread
from lbw_sim.plots.outcome import MethodLine, outcome_info
from lbw_sim.plots.run import run_info
from lbw_sim.plots.timeline import Lane
from lbw_sim.report import ReportOptions, build_report
from lbw_sim.score.detection import DetectionCounts, RunScore
from lbw_sim.trace import Label, Recorder, read_trace

nan = float("nan")


def columns(rows=12, **changes):
    """A run of `rows` steps that nothing happened in."""
    base = {
        "step": np.arange(rows),
        "loss": np.linspace(3.0, 2.5, rows),
        "lr": np.full(rows, 1e-3),
        "effective_lr": np.full(rows, 1e-3),
        "nonfinite": np.zeros(rows),
        "regime": np.full(rows, Regime.STABLE, dtype=np.int8),
        "posture": np.full(rows, Posture.HOLD, dtype=np.int8),
        "scale": np.ones(rows),
        "energy": np.zeros(rows),
        "skipped": np.zeros(rows, dtype=bool),
        "rolled_back_to": np.full(rows, -1),
        "event": np.full(rows, "", dtype="<U24"),
    }
    return base | {name: np.asarray(value) for name, value in changes.items()}


W, S, K, R = Regime.WARMUP, Regime.STABLE, Regime.SPIKE, Regime.RECOVERY


def planted(**changes):
    event = np.full(12, "", dtype="<U24")
    event[4] = "lr_bump"
    return columns(
        regime=np.array([W, W, S, S, S, K, K, K, R, S, K, S], dtype=np.int8),
        posture=np.array([0, 0, 0, 0, 0, 3, 1, 1, 2, 0, 0, 0], dtype=np.int8),
        scale=np.array([1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.75, 1, 1, 1.0]),
        event=event,
        **changes,
    )


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_a_run_becomes_named_lanes_from_labels_to_regimes():
    labels = [Label(5, 7, "spike"), Label(2, 2, "benign_outlier"), Label(0, 1, "spike", "low")]
    info = run_info(planted(), labels, "run 7")
    # the second alarm starts within 10 rows after the event, so it is no false one
    assert [(lane.name, lane.note, lane.spans, lane.hollow) for lane in info.lanes] == [
        ("label: spike", "1", ((5, 7),), False),
        ("label: spike, unsure", "1", ((0, 1),), True),
        ("label: benign outlier", "1", ((2, 2),), False),
        ("marked: lr_bump", "1", ((4, 5),), False),
        ("alarm: on event", "2", ((5, 8), (10, 11)), False),
        ("regime: warmup", "16.7%", ((0, 2),), False),
        ("regime: stable", "41.7%", ((2, 5), (9, 10), (11, 12)), False),
        ("regime: spike", "33.3%", ((5, 8), (10, 11)), False),
        ("regime: recovery", "8.3%", ((8, 9),), False),
        ("skip", "1", ((5, 6),), False),
    ]
    assert [(event.name, event.start_step, event.hollow) for event in info.events] == [
        ("spike", 0, True),
        ("spike", 5, False),
    ]
    assert info.bands[0] == (Regime.WARMUP, 0, 2)
    assert [band[1] for band in info.bands[1:]] == [band[2] for band in info.bands[:-1]]


def test_what_rollbacks_took_back_is_drawn_beside_what_came_of_it():
    steps = [0, 1, 2, 3, 4, 5, 2, 3, 4, 1, 2, 3]
    everything = {
        "step": np.array(steps),
        "loss": np.array([3, 2, 1, 1, 9, np.inf, 1, 1, 7, 2, 1, 1.0]),
        "rolled_back_to": np.array([-1] * 5 + [2, -1, -1, 1, -1, -1, -1]),
    }
    given_up = stretches_given_up(everything)
    assert [stretch.steps.tolist() for stretch in given_up] == [[1, 2, 3, 4, 5], [2, 3, 4]]
    np.testing.assert_array_equal(given_up[0].loss, [2, 1, 1, 9, nan])
    final = columns(4, loss=[3.0, 2.0, 1.0, 1.0])
    assert run_info(final, given_up=given_up).lanes[-1][:3] == ("rollback", "2", ((1, 6), (2, 5)))
    figure = run_figure(final, given_up=given_up)
    assert figure.axes[-1].get_xlim() == (0.0, 6.0), "the frame reaches to where the run had been"
    drawn = [line.get_xdata().tolist() for line in figure.axes[0].lines if line.get_color() == VERMILLION]
    assert [1, 2, 3, 4, 5] in drawn
    assert [2, 3, 4] in drawn


def test_a_rollback_with_which_a_run_ended_took_back_what_nothing_overtook():
    everything = {"step": np.arange(5), "loss": np.ones(5), "rolled_back_to": np.array([-1, -1, -1, -1, 2])}
    assert [stretch.steps.tolist() for stretch in stretches_given_up(everything)] == [[2, 3, 4]]


def test_the_figure_of_a_recorded_run_shows_its_rollback(tmp_path):
    spec = GuardSpec.load("palm_rewind")
    hold = Decision(int(Regime.STABLE), int(Posture.HOLD), 1.0, 0.0, 0)
    with Recorder.open(tmp_path, "back", spec=spec, mode="active") as recorder:
        for attempt, step in [(0, s) for s in range(6)] + [(1, s) for s in range(2, 9)]:
            went = 2 if (attempt, step) == (0, 5) else -1
            seen = Telemetry(step, 3.0 + attempt, 1e-3, nonfinite=0.0)
            recorder.append(seen, hold, elapsed_s=0.0, effective_lr=1e-3, rolled_back_to=went, attempt=attempt)
    trace = read_trace(tmp_path)
    figure = plot_trace(trace).figure
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()][-1] == "rollback"
    result = CliRunner().invoke(app, ["plot", str(tmp_path), "-o", str(tmp_path / "figures")])
    assert result.exit_code == 0, result.output
    assert "<!-- rollback -->" in (tmp_path / "figures" / "back.svg").read_text()
    assert ">rolled back<" in build_report([trace], ReportOptions()).html


def test_rollbacks_that_were_asked_for_in_shadow_are_shown_as_not_applied():
    posture = np.zeros(12, dtype=np.int8)
    posture[6] = Posture.ROLLBACK
    assert run_info(columns(posture=posture), mode="shadow").lanes[-1][:3] == ("rollback, not applied", "1", ((6, 7),))


def test_alarms_are_judged_by_the_labels_and_left_unjudged_without_any():
    alarms = [lane for lane in run_info(planted()).lanes if "alarm" in lane.name]
    assert [(lane.name, lane.spans) for lane in alarms] == [("alarm", ((5, 8), (10, 11)))]
    far = run_info(planted(step=np.arange(0, 120, 10)), [Label(200, 210, "spike"), Label(50, 50, "benign_shift")])
    assert [(lane.name, lane.spans) for lane in far.lanes if "alarm" in lane.name] == [
        ("alarm: baited", ((50, 80),)),
        ("alarm: false", ((100, 110),)),
    ]


def test_losses_that_are_not_finite_are_marked_and_losses_not_measured_are_not():
    loss = np.array([3.0, nan, nan, np.inf, *np.linspace(3, 2.5, 8)])
    info = run_info(columns(loss=loss, nonfinite=[0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]))
    assert info.steps_nonfinite.tolist() == [1, 3, 5]
    assert np.isnan(info.loss[[1, 2, 3]]).all()
    assert np.isnan(info.loss_median[[1, 2, 3]]).all()


def test_shadow_shows_what_would_have_been_and_says_so():
    info = run_info(planted(), mode="shadow")
    assert info.applied_lr.tolist() == (info.scale * 1e-3).tolist()
    assert Lane("skip, not applied", "1", ((5, 6),), info.lanes[-1].colour, hollow=True) == info.lanes[-1]
    figure = run_figure(planted(), title="run 7", mode="shadow")
    loss, _, scale, lr, energy = figure.axes
    assert loss.get_title(loc="left") == "run 7 · shadow: scale not applied"
    assert scale.get_ylabel() == "scale,\nnot applied"
    assert energy.get_ylabel() == "energy, not\napplied"
    assert [text.get_text() for text in lr.get_legend().get_texts()] == ["lr, as applied", "scale × lr, not applied"]
    active = run_figure(planted(effective_lr=np.full(12, 5e-4)))
    assert not any("shadow" in text for ax in active.axes for text in [*texts(ax), ax.get_title(loc="left")])
    assert not any("not applied" in ax.get_ylabel() for ax in active.axes)
    assert set(active.axes[3].lines[1].get_ydata()) == {5e-4}


def test_every_panel_names_its_axis_and_shares_the_steps():
    figure = run_figure(planted(), [Label(5, 7, "spike")], "run 7")
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "loss [nats]", "", "scale", "lr", "control energy\nΣ (1 − scale)²",
    ]  # fmt: skip
    assert figure.axes[-1].get_xlabel() == "step"
    assert {ax.get_xlim() for ax in figure.axes} == {(0.0, 12.0)}
    lanes = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert lanes == [lane.name for lane in run_info(planted(), [Label(5, 7, "spike")]).lanes]
    assert "spike" in texts(figure.axes[0])
    assert len(run_figure(planted(lr=np.full(12, nan))).axes) == 4, "without a recorded lr there is no lr panel"


def test_event_names_stand_above_the_frame_only_where_all_fit():
    close = [Label(5, 7, "oscillation"), Label(6, 7, "spike")]
    assert texts(run_figure(planted(), close).axes[0]) == []
    assert texts(run_figure(planted(), [Label(1, 2, "spike"), Label(6, 7, "spike")]).axes[0]) == ["spike", "spike"]


def test_a_run_without_one_finite_loss_can_be_drawn():
    info = run_info(columns(loss=np.full(12, nan), nonfinite=np.ones(12)))
    assert info.axis[:3] == (0.0, 1.0, False)
    figure = run_figure(columns(loss=np.full(12, nan), nonfinite=np.ones(12)))
    assert "no finite loss" in texts(figure.axes[0])
    assert run_figure(columns(1)).axes[0].get_xlim() == (0.0, 1.0)


def test_letters_that_the_fonts_lack_are_spelled_out_and_matplotlib_has_nothing_to_warn_of(tmp_path):
    for name, drawn in (("训练 é", r"\u8bad\u7ec3 é"), ("🦀", r"\U0001f980")):
        figure = run_figure(columns(), title=name)
        assert figure.axes[0].get_title(loc="left") == drawn
        for suffix in ("svg", "png", "pdf"):
            save(figure, tmp_path / f"run.{suffix}")
        save(comparison_figure({name: columns(), "other": columns()}), tmp_path / "comparison.svg")


def test_what_cannot_be_drawn_is_refused_with_a_reason():
    broken = columns()
    del broken["scale"]
    with pytest.raises(ScoreError, match="needs column scale"):
        run_info(broken)
    with pytest.raises(ScoreError, match="steps fall at row 11"):
        run_info(columns(step=[*range(11), 3]))
    with pytest.raises(ScoreError, match="no mode named 'shadows'"):
        run_info(columns(), mode="shadows")
    with pytest.raises(ScoreError, match="'x': the trace holds no rows"):
        run_info(columns(0), title="x")


def test_a_median_ignores_outliers_and_keeps_its_place():
    values = np.array([1.0, 2.0, 50.0, 4.0, 5.0, nan, 6.0, 7.0])
    out = running_median(values, 5)
    assert out[[0, 1, 2, 3, 7]].tolist() == [1.0, 2.0, 4.0, 5.0, 7.0]
    assert np.isnan(out[5])
    assert running_median(np.array([nan, 3.0]), 5)[1] == 3.0
    assert running_median(np.array([]), 5).size == 0


def test_a_run_that_blew_up_does_not_flatten_the_others():
    good = np.linspace(3.0, 2.0, 1000)
    bad = np.concatenate([good[:500], np.geomspace(3.0, 1e6, 500)])
    axis = loss_axis([good, bad])
    assert axis.log
    assert 6.0 < axis.high < 10.0
    assert axis.largest == pytest.approx(1e6)
    assert axis.cut == "above the frame: up to 1e+06"
    assert loss_axis([bad[:500]]).cut == "", "3.0 down to 2.5 all fits"


def test_the_frame_leaves_out_the_first_fall_and_single_low_rows_but_no_grokking():
    fall = np.concatenate([np.linspace(11.0, 4.1, 10), np.linspace(4.0, 3.0, 990)])
    axis = loss_axis([fall])
    assert not axis.log
    assert 4.0 < axis.high < 4.2
    fall[700] = 0.5
    assert 2.8 < loss_axis([fall]).low < 3.0
    assert loss_axis([fall]).cut == "outside the frame: 0.5 to 11"
    grok = np.concatenate([np.geomspace(5.0, 1e-7, 3), np.full(197, 1e-7), [1.0], np.full(99, 1e-7)])
    assert loss_axis([grok]).high > 1.0


@pytest.mark.parametrize("low", [1e-8, 0.4, 2.3])
@pytest.mark.parametrize("factor", [1.3, 2.5, 30.0, 1e5])
def test_ticks_are_few_and_inside(low, factor):
    axis = LossAxis(low, low * factor, factor > 2, low, low)
    ticks = loss_ticks(axis)
    assert 2 <= len(ticks) <= 7
    assert all(axis.low <= tick <= axis.high for tick in ticks)


def test_names_are_moved_apart_and_stay_in_the_frame():
    placed = spread([1.0, 0.99, 0.2, 1.0], 0.1, 0.0, 1.0)
    assert placed == [0.9, 0.8, 0.2, 1.0]
    assert spread([], 0.1, 0.0, 1.0) == []


def test_a_comparison_names_its_first_ten_runs_and_says_so():
    runs = {f"run {k}": columns(300) for k in range(12)}
    info = comparison_info(runs)
    assert [len(info.lines), len(info.unnamed)] == [NAMED_RUNS, 2]
    assert info.note == "10 of 12 runs named, the others grey"
    upper, lower = comparison_figure(runs, "sweep").axes
    assert len(upper.lines) == len(lower.lines) == 12
    names = [text for text in texts(upper) if text.startswith("run")]
    assert names == [f"run {k}" for k in range(10)]
    looks = {(line.get_color(), line.get_linestyle()) for line in upper.lines if line.get_label().startswith("run")}
    assert len(looks) == NAMED_RUNS
    heights = sorted(text.xyann[1] for text in upper.texts if text.get_text().startswith("run"))
    assert min(np.diff(heights)) > 0.06, "names do not overlap"


def test_a_comparison_tells_which_run_left_the_frame_and_which_ended_early():
    blown = columns(300, loss=np.concatenate([np.linspace(3, 2, 200), np.geomspace(3, 1e5, 100)]))
    lost = columns(300, loss=np.full(300, nan))
    late = columns(300, loss=np.concatenate([np.linspace(3, 2, 200), np.full(100, nan)]))
    upper, _ = comparison_figure({"blown": blown, "short": columns(200), "lost": lost, "late": late}).axes
    assert texts(upper) == [
        "blown (above the frame)", "short (ends at 199)", "lost (no finite loss)", "late (no finite loss after 199)",
        "above the frame: up to 1e+05",
    ]  # fmt: skip
    with pytest.raises(ScoreError, match="no run to draw"):
        comparison_figure({})
    with pytest.raises(ScoreError, match="run 'x' has no scale"):
        comparison_figure({"x": {"step": np.arange(3), "loss": np.ones(3)}})


def scored(events, detected, clean, false):
    counts = DetectionCounts(runs=1, events=events, detected=detected, clean_rows=clean, false_alarms=false)
    return [RunScore("a_1", (), (), counts)]


def test_the_detection_figure_holds_a_point_per_guard_and_names_the_undefined():
    scores = {"mine": scored(4, 3, 10_000, 2), "never": scored(4, 0, 10_000, 0), "blind": scored(0, 0, 10_000, 0)}
    info = detection_info(scores, "three", seed=0)
    assert [point[:2] + point[3:4] + point[5:] for point in info.points] == [
        ("mine", 0.75, 2.0, False),
        ("never", 0.0, 0.0, True),
    ]
    assert np.isnan(info.points[0].recall_interval).all(), "one run tells nothing of another"
    assert (info.undefined, info.events, info.runs) == (("blind",), 4, 1)
    ax = detection_figure(scores, "three", seed=0).axes[0]
    assert {"mine", "never"} <= set(texts(ax))
    assert "undefined: blind" in " ".join(texts(ax))
    assert ax.get_xlim()[0] < 0.0 < 2.0 < ax.get_xlim()[1]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("false alarms per 10,000 clean rows", "event recall")


def test_a_detection_figure_without_an_event_says_so_instead_of_showing_an_empty_panel():
    ax = detection_figure({"mine": scored(0, 0, 10_000, 2)}, "none", seed=0).axes[0]
    assert "no labelled event, so no recall" in texts(ax)


def test_a_sweep_becomes_a_curve_in_its_own_order_and_an_undefined_setting_is_left_out():
    settings = [scored(4, 4, 10_000, 9), scored(0, 0, 10_000, 1), scored(4, 1, 10_000, 0)]
    info = detection_info({"mine": scored(4, 3, 10_000, 2)}, seed=0, sweeps={"mine": settings})
    assert info.curves == (("mine", (9.0, 0.0), (1.0, 0.25)),)
    ax = detection_figure({"mine": scored(4, 3, 10_000, 2)}, seed=0, sweeps={"mine": settings}).axes[0]
    assert any(list(line.get_xdata()) == [9.0, 0.0] for line in ax.lines)


def test_names_of_guards_at_one_place_do_not_cover_each_other():
    scores = {f"guard {k}": scored(4, 3, 10_000, 2) for k in range(5)}
    figure = Figure(figsize=(9, 5), layout="constrained")
    ax = figure.subplots()
    draw_detection(detection_info(scores, seed=0), ax)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text().startswith("guard")]
    for k, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:k]) == 0


RUNS = [
    ("plain", 1e-2, 0, nan), ("plain", 1e-2, 1, 9.0), ("plain", 1e-3, 0, 2.5), ("plain", 1e-3, 1, 2.7),
    ("guard", 1e-3, 0, 2.6), ("guard", 1e-2, 0, 3.0), ("guard", 1e-2, 1, 3.2),
]  # fmt: skip


def test_outcomes_are_means_over_seeds_and_a_lost_seed_leaves_no_mean():
    info = outcome_info(*zip(*RUNS, strict=True), initial_loss=6.0)
    plain, guard = info.lines
    assert plain.means[0] == pytest.approx(2.6)
    assert math.isnan(plain.means[1])
    assert plain._replace(means=()) == MethodLine(
        "plain", (1e-3, 1e-2), (), ((1e-3, 2.5), (1e-3, 2.7), (1e-2, 9.0)), ((1e-2, 1),)
    )
    assert guard.means == pytest.approx((2.6, 3.1))
    assert 6.0 < info.axis.high < 7.0, "worse than untrained is above the frame"
    assert info.axis.largest == 9.0


def test_the_outcome_figure_marks_lost_and_hidden_runs():
    figure = outcome_figure(*zip(*RUNS, strict=True), "tiny", initial_loss=6.0)
    ax = figure.axes[0]
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["plain", "guard"]
    notes = " ".join(texts(ax))
    assert "before training" in notes
    assert "no finite final loss" in notes
    assert "above the frame: up to 9" in notes
    assert [len(line.get_xdata()) for line in ax.lines if line.get_marker() == "x"] == [1]
    alone = outcome_figure(["guard"], [1e-3], [0], [nan])
    assert "no finite final loss" in " ".join(texts(alone.axes[0]))


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ((["a"], [1e-3], [0], []), "1 methods, 1 lrs, 1 seeds and 0 final losses"),
        (([], [], [], []), "at least one run"),
        ((["a"], [0.0], [0], [1.0]), "every lr must be above 0"),
        ((["a", "a"], [1.0, 1.0], [0, 0], [1.0, 2.0]), r"\('a', 1.0, 0\) comes 2 times"),
    ],
)
def test_outcomes_that_do_not_fit_are_refused(runs, text):
    with pytest.raises(ScoreError, match=text):
        outcome_info(*runs)


def test_a_figure_is_saved_as_its_suffix_says(tmp_path):
    figure = outcome_figure(*zip(*RUNS, strict=True))
    assert save(figure, tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in save(figure, tmp_path / "a.svg").read_bytes()[:1000]
    for suffix in (".svg", ".png", ".pdf"):
        one, other = (save(run_figure(planted()), tmp_path / name / f"a{suffix}") for name in ("one", "other"))
        assert one.read_bytes() == other.read_bytes(), "the same figure, the same bytes"
    before = (tmp_path / "a.svg").read_bytes()
    os.link(tmp_path / "a.svg", tmp_path / "kept.svg")
    save(run_figure(planted()), tmp_path / "a.svg")
    assert (tmp_path / "kept.svg").read_bytes() == before != (tmp_path / "a.svg").read_bytes(), "not written in place"
    with pytest.raises(ScoreError, match=r"must end in .png, .svg, .pdf"):
        save(figure, tmp_path / "a.jpeg")
    (tmp_path / "file").write_text("")
    with pytest.raises(ScoreError, match="cannot write the figure"):
        save(figure, tmp_path / "file" / "a.png")


def test_figures_are_made_in_threads_without_pyplot(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    made = [threading.Thread(target=lambda path=path: save(run_figure(planted()), path)) for path in paths]
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()
    assert all(path.stat().st_size > 10_000 for path in paths)


def test_a_recorded_trace_is_drawn_as_it_is_read(tmp_path):
    spec = GuardSpec.load("default")
    guard, recorder = spec.build(), Recorder.open(tmp_path, "tiny", spec=spec, mode="active")
    state = guard.init()
    for step in range(120):
        telemetry = Telemetry(step, 3.0 + 0.02 * math.sin(7.0 * step) + 2.0 * (80 <= step < 95), 1e-3, nonfinite=0.0)
        state, decision = guard.step(state, telemetry)
        fault = "lr_bump" if step == 80 else ""
        recorder.append(
            telemetry, decision, elapsed_s=0.1 * step, effective_lr=decision.scale * telemetry.lr, event=fault
        )
    recorder.close()
    info = run_info(read_trace(tmp_path, "tiny").to_numpy(), [Label(80, 94, "spike", source="injected")])
    lanes = {lane.name: lane for lane in info.lanes}
    assert lanes["marked: lr_bump"].spans == ((80, 81),)
    assert lanes["alarm: on event"].spans[0][0] >= 80
    assert info.energy[-1] > 0.0
