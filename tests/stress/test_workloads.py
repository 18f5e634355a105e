"""Workloads: equal from equal seeds, as large as they say, learning, and refusing what they cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lbw_sim.errors import StressError
from lbw_sim.stress import faults
from lbw_sim.stress.corpus import corpus
from lbw_sim.stress.flown import fly
from lbw_sim.stress.gpt import GptSize
from lbw_sim.stress.plan import FlightPlan
from lbw_sim.stress.shapes import pictures
from lbw_sim.stress.tiny_gpt import initial_weights
from lbw_sim.stress.workload import Session, Setting
from lbw_sim.stress.workloads import WORKLOADS, workload
from lbw_sim.stress.workloads.small_gpt import small_session
from lbw_sim.stress.workloads.tiny_gpts import _pretrained

SMALL = sorted(
    name
    for name, load in WORKLOADS.items()
    if load.parameters < 1_000_000 and not load.fine_tuning and "toy" not in name
)


def flat(session: Session) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in session.model.parameters()])


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_a_workload_is_what_its_seed_makes_it_and_as_large_as_it_says(name: str) -> None:
    load = workload(name)
    torch.manual_seed(99)  # whatever the process drew before
    session, again, other = load.session(3), load.session(3), load.session(4)
    assert len(flat(session)) == load.parameters == load.trained_parameters
    assert torch.equal(flat(session), flat(again))
    assert not torch.equal(flat(session), flat(other))
    again.batch(0)
    assert same(session.batch(7), again.batch(7)), "a batch comes from seed and step, not from the ones before"
    assert not same(session.batch(7), session.batch(8))
    assert not same(session.batch(7), other.batch(7))
    assert same(session.canary_batch(), again.canary_batch())
    assert not same(session.canary_batch(), session.batch(0))
    assert session.batch(0)[1].numel() == load.tokens_per_step == session.tokens_per_step
    assert session.validation_loss() == again.validation_loss()
    assert session.loss(session.batch(0)).isfinite()


@pytest.mark.parametrize("name", ["lstm", "mixer", "post_ln_deep", "post_ln_wide", "pre_ln_deep", "vit"])
def test_a_workload_learns(name: str) -> None:
    untouched = workload(name).session(0).validation_loss()
    flown = fly(FlightPlan(workload=name, steps=40))
    assert flown.validation_loss < untouched - 0.3
    assert sum(flown.losses[-10:]) < sum(flown.losses[:10]) - 3.0


def test_fine_tuning_starts_from_what_code_taught_and_not_from_nothing() -> None:
    session, scratch = workload("post_ln_fine_tune").session(0), workload("post_ln").session(0)
    assert torch.equal(flat(session), flat(workload("post_ln_fine_tune").session(0)))
    untouched = session.validation_loss()
    assert untouched < 2.8 < 4.5 < scratch.validation_loss()
    assert torch.equal(flat(scratch), initial_weights(0)), "of the tiny GPT as it always was"
    kept = flat(session).clone()
    session.loss(session.batch(0)).backward()
    with torch.no_grad():
        for parameter in session.model.parameters():
            parameter.sub_(parameter.grad)
    assert torch.equal(flat(workload("post_ln_fine_tune").session(0)), kept), "what is remembered is not trained on"
    assert _pretrained.cache_info().hits >= 1


def test_faults_reach_pictures_as_they_reach_text() -> None:
    session = workload("mixer").session(0)
    drawn, classes = session.batch(5)
    wrong = session.batch(5, faults.bad_labels(5))
    assert torch.equal(wrong[0], drawn)
    assert not torch.equal(wrong[1], classes)
    assert same(session.batch(7, faults.repeated_batch(5)), (drawn, classes))
    with pytest.raises(StressError, match="switches the text"):
        session.batch(5, faults.data_switch(5))


def test_no_shape_is_told_by_its_brightness() -> None:
    drawn, classes = pictures(4000, 1)
    means = torch.tensor([float(drawn[classes == shape].mean()) for shape in range(8)])
    assert means.abs().max() < 0.02
    assert drawn.std() > 0.4


def test_the_small_gpt_trains_on_a_file_in_little(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_bytes(bytes(corpus("prose").train[:40_000]))
    setting = Setting(seed=1, data=text)
    session = small_session(setting, GptSize(width=32, layers=1, heads=2, context=16), batch=4)
    optimizer = torch.optim.AdamW(session.model.parameters(), lr=1e-2)
    before = session.validation_loss()
    for step in range(15):
        optimizer.zero_grad()
        session.loss(session.batch(step)).backward()
        optimizer.step()
    assert session.validation_loss() < before - 0.5
    assert session.facts["text"] == "mine.txt"
    assert workload("small_gpt").parameters == GptSize(width=512, layers=8, heads=8, context=256).parameters


def test_what_a_workload_cannot_do_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(StressError, match=r"no workload named 'post_lm'.*Did you mean 'post_ln'"):
        workload("post_lm")
    with pytest.raises(StressError, match="runs on cpu, not on cuda"):
        workload("lstm").session(0, "cuda")
    assert workload("mixer").session(0, torch.device("cpu")).unit == "image", "a device says the same as its name"
    with pytest.raises(StressError, match="loads no weights"):
        workload("lstm").session(0, random_weights=True)
    with pytest.raises(StressError, match="draws its own pictures"):
        workload("mixer").session(0, data=tmp_path / "text")
    with pytest.raises(StressError, match="cannot be read as a text in UTF-8"):
        workload("pre_ln").session(0, data=tmp_path / "missing")
    short = tmp_path / "short.txt"
    short.write_text("abc", encoding="utf-8")
    with pytest.raises(StressError, match="holds 3 characters"):
        workload("pre_ln").session(0, data=short)
