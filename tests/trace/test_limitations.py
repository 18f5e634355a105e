"""What a log cannot show is said in words, wherever the run is used, and what it rules out is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lbw_sim.cli.app import app
from lbw_sim.errors import TraceError
from lbw_sim.guard import GuardSpec
from lbw_sim.replay import replay, replay_many
from lbw_sim.trace import read_trace
from lbw_sim.trace.importers import import_path
from lbw_sim.trace.limitations import limitations, refuse


def trainer_state(folder: Path) -> Path:
    history = [{"step": step, "loss": 3.0 - step / 1000, "epoch": 0.1} for step in range(10, 400, 10)]
    folder.mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": history, "logging_steps": 10}))
    return folder


def test_a_mean_over_windows_is_replayed_with_a_warning_and_scored_only_on_demand(tmp_path: Path) -> None:
    import_path(trainer_state(tmp_path / "run"), tmp_path / "out")
    run = CliRunner()
    replayed = run.invoke(app, ["replay", str(tmp_path / "out"), "-g", "zscore", "--json"])
    assert replayed.exit_code == 0, replayed.output
    assert "note: run: each loss is the mean of the 10 steps since the row before" in replayed.stderr
    assert "windowed" in json.loads(replayed.stdout)[0]["limitations"]
    scored = run.invoke(app, ["score", str(tmp_path / "out"), "-g", "zscore"])
    assert isinstance(scored.exception, TraceError)
    assert "run: each loss is the mean of the 10 steps" in str(scored.exception)
    assert "--anyway gives it all the same" in str(scored.exception)
    insisted = run.invoke(app, ["score", str(tmp_path / "out"), "-g", "zscore", "--anyway", "--json"])
    assert insisted.exit_code == 0, insisted.output
    assert "each loss is the mean of the 10 steps" in insisted.stderr
    shown = run.invoke(app, ["show", str(tmp_path / "out")])
    assert "limitation            each loss is the mean of the 10 steps" in shown.output
    trace = read_trace(tmp_path / "out")
    assert trace.limitations[0].key == "windowed"
    assert "windowed" in repr(trace)
    spec = GuardSpec.load("zscore")
    (together,) = replay_many([trace], [spec])
    for found in (trace, replay(trace, spec), together):
        assert "each loss is the mean of the 10 steps" in found._repr_html_()
    assert together.limitations == replay(trace, spec).limitations == tuple(one.text for one in trace.limitations)


def test_each_fact_has_its_sentence() -> None:
    base: dict[str, str | int | float | None] = {
        "imported": 1, "rows": 100, "cadence_steps": 1.0, "cadence": "every step", "finite_losses": 100,
    }  # fmt: skip
    assert limitations(base) == ()
    for facts, key in [
        ({"cadence_steps": 5.0, "cadence": "every 5 steps"}, "gaps"),
        ({"cadence_steps": 5.0, "loss_is": "window_mean"}, "windowed"),
        ({"sampled": 1}, "sampled"),
        ({"rows": 500, "cadence": "irregular"}, "maybe_sampled"),
        ({"lost": "x: ends within a record"}, "lost"),
        ({"nan_filtered": 1}, "nan_filtered"),
        ({"attempts": 2, "first_fall": "row 3: step 9 -> 2"}, "resumed"),
        ({"loss_decimals": 2}, "rounded"),
        ({"loss_precision": "bfloat16"}, "bfloat16"),
        ({"zero_losses": 1}, "zeros"),
        ({"repeated_losses": 3}, "repeats"),
        ({"missing_losses": 3}, "missing"),
        ({"missing_losses": 3, "finite_losses": 0}, "no_loss"),
        ({"nonfinite_losses": 100, "finite_losses": 0}, "all_nan"),
        ({"grad_norm_is": "after_clipping"}, "clipped_norm"),
        ({"tokens_are": "total"}, "tokens_total"),
    ]:
        assert [found.key for found in limitations(base | facts)] == [key], facts
    assert limitations({**base, "imported": 0, "zero_losses": 3}) == (), "a recorded run has none"
    assert limitations(dict.fromkeys([*base, "attempts", "loss_decimals"], "x") | {"imported": 1}) == ()


def test_a_sample_is_refused_for_a_score_and_names_all_runs() -> None:
    facts: dict[str, str | int | float | None] = {"imported": 1, "sampled": 1}
    with pytest.raises(TraceError, match=r"a, b, c, d, e and 1 more: a sample of the logged rows"):
        refuse([(name, facts) for name in "abcdef"], "score")
    refuse([("a", facts)], "replay")


def test_rounding_is_seen_in_single_precision_and_in_bfloat16(tmp_path: Path) -> None:
    import numpy as np

    random = np.random.default_rng(0)
    losses = 3 + 0.1 * random.standard_normal(60)
    rounded = np.round(losses, 2).astype(np.float32).astype(np.float64)
    bfloat = (losses.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32).astype(np.float64)
    for name, values, wanted in [
        ("rounded", rounded, "losses have at most 2 decimals: noise below that is rounding"),
        ("bfloat", bfloat, "losses have the precision of bfloat16: noise below 1/128 of the loss is rounding"),
    ]:
        (tmp_path / f"{name}.csv").write_text(
            "step,loss\n" + "".join(f"{i},{x!r}\n" for i, x in enumerate(values.tolist()))
        )
        (run,) = import_path(tmp_path / f"{name}.csv", tmp_path / "out").runs
        assert run.suspicions == (wanted,)
