"""Where a search looks, whom it prefers, and which runs judge."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lbw_sim.errors import TuneError
from lbw_sim.guard import GuardSpec
from lbw_sim.tune import Objectives, Rule, pareto, search_space, split
from lbw_sim.tune.caveats import warnings_of
from lbw_sim.tune.runs import RunFacts
from lbw_sim.tune.search import CMA_POPULATION, search
from lbw_sim.tune.split import in_order

nan = float("nan")


def objectives(**columns: list[float]) -> Objectives:
    count = len(next(iter(columns.values())))
    return Objectives(*(np.array(columns.get(name, [nan] * count), float) for name in Objectives._fields))


def test_every_value_that_is_tried_lies_in_its_declared_range_and_a_spec_takes_it() -> None:
    space = search_space(GuardSpec.load("default"), flown=True, only=["sensor", "analyzer", "policy", "envelope"])
    corners = np.array([[0.0] * len(space.dimensions), [1.0] * len(space.dimensions)])
    points = np.vstack([corners, search("random", space.start_unit, 40, 0).ask()])
    for row in space.values(points):
        assert all(d.info.low <= value <= d.info.high for d, value in zip(space.dimensions, row, strict=True))
        space.start.with_changes(space.changes(row))
    low, high = space.values(corners)
    assert low.tolist() == [d.info.low for d in space.dimensions]
    assert high.tolist() == [d.info.high for d in space.dimensions]
    assert space.changes(space.start_values) == {}
    there = [d.unit(d.start) for d in space.dimensions]
    np.testing.assert_allclose([d.value(at) for d, at in zip(space.dimensions, there, strict=True)],
                               space.start_values, rtol=1e-3)  # fmt: skip


def test_without_plants_policy_and_envelope_are_left_alone_and_the_user_may_choose() -> None:
    def paths(**how: object) -> set[str]:
        space = search_space(GuardSpec.load("default"), **{"flown": False, **how})  # type: ignore[arg-type]
        return {d.path for d in space.dimensions}

    assert {path.partition(".")[0] for path in paths()} == {"sensor", "analyzer"}
    assert {path.partition(".")[0] for path in paths(flown=True)} == {"sensor", "analyzer", "policy"}
    assert paths(only=["*.spike_sd", "envelope.min_scale"]) == {"analyzer.spike_sd", "envelope.min_scale"}
    assert paths(only=["analyzer"], fix=["analyzer.*_rows"]) & {"analyzer.hold_rows", "sensor.level_rows"} == set()
    fixed = search_space(GuardSpec.load("default"), flown=False, fix=["analyzer.hold_rows=9"])
    assert fixed.start.tables["analyzer"]["hold_rows"] == 9
    wrapped = search_space(GuardSpec.load("kill_loss_spike"), flown=False)
    assert "analyzer.first.inner.excess" in {d.path for d in wrapped.dimensions}
    with pytest.raises(TuneError, match=r"Did you mean 'analyzer\.spike_sd'"):
        paths(only=["analyzer.spike_sdd"])
    with pytest.raises(TuneError, match="nothing to tune"):
        search_space(GuardSpec.load("never"), flown=False)


def test_the_pareto_set_is_what_nobody_beats() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 5, size=(150, 4)).astype(float)
    found = objectives(missed=table[:, 0].tolist(), false_alarms_per_10k=table[:, 1].tolist(),
                       delay_steps=table[:, 2].tolist(), energy=table[:, 3].tolist())  # fmt: skip
    beaten = {
        b for a, b in itertools.permutations(range(150), 2)
        if (table[a] <= table[b]).all() and ((table[a] < table[b]).any() or a < b)
    }  # fmt: skip
    assert pareto(found).tolist() == sorted(set(range(150)) - beaten)


def test_the_rule_takes_the_budget_first_then_recall_then_delay_then_energy() -> None:
    found = objectives(
        missed=[0.0, 0.2, 0.2, 0.2, 0.2, 1.0],
        false_alarms_per_10k=[1.5, 1.0, 0.0, 0.9, 3.0, 0.0],
        delay_steps=[0.0, 2.0, 2.0, 5.0, 0.0, nan],
        energy=[9.0, 3.0, 4.0, 1.0, 0.0, 0.0],
    )
    assert Rule(1.0, 0.01).order(found).tolist() == [1, 2, 3, 5, 0, 4]
    assert Rule(1.0, 0.01).keeps(found).tolist() == [False, True, True, True, False, True]
    flown = found._replace(final_loss=np.array([2.0, 2.5, 2.4, 2.3, 2, 2]), harm=np.array([0, 0, 0.02, 0, 0, 0]))
    assert Rule(1.0, 0.01).order(flown).tolist() == [3, 1, 5, 2, 0, 4], "simulated loss before delay, harm as a budget"


def test_cmaes_follows_the_order_that_it_is_told_and_is_the_same_for_the_same_seed() -> None:
    pytest.importorskip("cmaes")
    target = np.array([0.8, 0.2, 0.6])

    def last(seed: int) -> np.ndarray:
        looking, batch = search("cmaes", np.full(3, 0.5), 11 * CMA_POPULATION, seed), np.empty((0, 3))
        while len(points := looking.ask()):
            batch = points
            order = np.argsort(((points - target) ** 2).sum(axis=1))
            ranks = np.empty(len(points), np.int64)
            ranks[order] = np.arange(len(points))
            looking.tell(points, ranks)
        return batch

    np.testing.assert_allclose(last(3).mean(axis=0), target, atol=0.05)
    np.testing.assert_array_equal(last(3), last(3))


def test_a_sobol_search_covers_the_whole_range_and_more_of_what_is_near_the_start() -> None:
    pytest.importorskip("scipy")
    points = search("sobol", np.array([0.3, 0.9]), 1000, 0).ask()
    assert points.shape == (1000, 2)
    assert (points.min(axis=0) < 0.05).all()
    assert (points.max(axis=0) > 0.95).all()
    assert (np.abs(points - [0.3, 0.9]).max(axis=1) < 0.1).mean() > 0.1


def run(name: str, events: int, **provenance: object) -> RunFacts:
    return RunFacts(name, name, 100, 90, events, ("loss",), name, name, provenance)


def test_groups_never_stand_on_both_sides_and_both_sides_have_events() -> None:
    runs = [run(f"{family}_{i}", events=int(family in "abcd")) for family in "abcdefgh" for i in range(3)]
    for seed in range(20):
        parted = split(runs, by=None, held_out=(), share=0.3, seed=seed)
        assert parted.by == "family"
        families = [{one.run_id[0] for one in side} for side in (parted.tuning, parted.held_out)]
        assert not families[0] & families[1]
        assert all(any(one.events for one in side) for side in (parted.tuning, parted.held_out))
        assert len(parted.tuning) + len(parted.held_out) == len(runs)
        first = in_order(parted.tuning, seed)[:4]
        assert 0 < sum(one.events for one in first) < 4, "halving's first runs are of both kinds"


def test_the_last_group_with_events_is_never_put_aside() -> None:
    runs = [run("a_1", 1), run("b_1", 0), run("c_1", 0), run("d_1", 0)]
    parted = split(runs, by=None, held_out=(), share=0.99, seed=0)
    assert [one.run_id for one in parted.tuning] == ["a_1"]


def row(
    guard: str, recall: float, rate: float, events: int = 20, delay: float = 1.0, half: float = 0.1
) -> dict[str, Any]:
    return {
        "guard": guard, "group": "all", "events": events, "recall": recall, "false_alarms_per_10k": rate,
        "median_delay_steps": delay, "recall_low": recall - half, "recall_high": recall + half,
        "false_alarms_per_10k_low": rate - half, "false_alarms_per_10k_high": rate + half,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("held_out", "own", "said"),
    [
        (row("tuned", 0.9, 0.5), row("tuned", 0.95, 0.5), []),
        (row("tuned", 0.8, 0.5), row("tuned", 0.95, 0.5), ["Recall parts: 0.95 on the runs that chose, 0.80 (0.70"]),
        (row("tuned", 0.9, 0.9), row("tuned", 0.9, 0.7), ["False alarms part: 0.7 per 10,000"]),
        (row("tuned", 0.9, 1.05), row("tuned", 0.9, 1.0), ["budget of 1 false alarms", "no better than the guard"]),
        (row("tuned", 0.7, 0.0), row("tuned", 0.7, 0.0), ["no better than the guard"]),
        (row("tuned", 0.7, 0.0, delay=0.0), row("tuned", 0.7, 0.0), []),
        (row("tuned", 0.9, 0.0, events=9), row("tuned", 0.9, 0.0), ["Only 9 labelled events"]),
        (row("tuned", nan, 0.0, events=0), row("tuned", 0.9, 0.0), ["No labelled event", "no better"]),
    ],
)  # fmt: skip
def test_a_reader_is_warned_where_tuning_and_held_out_part(
    held_out: dict[str, Any], own: dict[str, Any], said: list[str]
) -> None:
    rows = [held_out, row("start", 0.7, 0.0)]
    found = list(warnings_of(rows, [own], Rule(1.0, 0.01), kept=True, unchanged=False))
    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True))


def test_a_split_by_name_pattern_or_provenance_and_what_it_refuses() -> None:
    runs = [run("a_lr1_s0", 1, host=1), run("a_lr2_s0", 1, host=2), run("b_lr1_s1", 0, host=2)]
    how = {"share": 0.3, "seed": 0}
    assert split(runs, by=r"lr(\d)", held_out=["2"], **how).held_out[0].run_id == "a_lr2_s0"
    assert split(runs, by="provenance:host", held_out=["2"], **how).held_out_groups == ("2",)
    assert len(split(runs, by="provenance:host", held_out=["2"], **how).held_out) == 2
    assert split(runs, by="_s.", held_out=["_s1"], **how).held_out[0].run_id == "b_lr1_s1"
    for by, held_out, message in (
        ("provenance:hots", (), "says nothing about 'hots'"),
        ("x(", (), "neither run, family"),
        ("zzz", (), "matches nothing in run"),
        ("run", ("c",), "no group of runs"),
        ("^.*_s", ("a_lr1_s", "a_lr2_s"), "no labelled event"),
        (".", ("a", "b"), "to tune on"),
    ):
        with pytest.raises(TuneError, match=message):
            split(runs, by=by, held_out=held_out, **how)
