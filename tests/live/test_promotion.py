"""From a back-test to acting: the report that `lbw backtest` wrote lets its own guard act, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbw_sim.cli import main
from lbw_sim.errors import EvidenceError, LiveError
from lbw_sim.guard import GuardSpec
from lbw_sim.live import attach
from lbw_sim.trace import read_trace

from .test_attach import EAGER, make_run, spike, train


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real report: a run recorded in shadow, back-tested from the command line."""
    run = make_run()
    with attach(run.optimizer, EAGER, trace=tmp_path / "traces", run_id="recorded") as live:
        train(run, range(60), live, fault=spike)
    EAGER.save(tmp_path / "guard.toml")
    path = tmp_path / "guard.backtest.json"
    monkeypatch.setattr(
        "sys.argv", ["lbw", "backtest", str(tmp_path / "guard.toml"), str(tmp_path / "traces"), "-o", str(path)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    return path


def test_a_back_tested_guard_may_act_and_the_trace_names_its_report(report: Path, tmp_path: Path) -> None:
    run = make_run()
    with attach(
        run.optimizer, tmp_path / "guard.toml", trace=tmp_path / "flown", run_id="a", mode="active", backtest=report
    ) as live:
        train(run, range(60), live, fault=spike)
    trace = read_trace(tmp_path / "flown")
    assert trace.to_numpy()["effective_lr"].min() < 1e-2
    assert trace.meta.provenance["backtest_runs"] == 1
    assert str(trace.meta.provenance["backtest"]) in report.read_text()
    assert "unproven" not in trace.meta.provenance


def test_another_guard_or_a_changed_report_may_not(report: Path) -> None:
    optimizer = make_run().optimizer
    changed = EAGER.with_changes({"envelope.min_scale": 0.2})
    with pytest.raises(EvidenceError, match=rf"{EAGER.fingerprint}.*{changed.fingerprint}"):
        attach(optimizer, changed, mode="active", backtest=report)
    with pytest.raises(EvidenceError, match="not of 'default'"):
        attach(optimizer, GuardSpec.load("default"), backtest=report)
    report.write_text(report.read_text().replace('"rows": 60', '"rows": 61', 1))
    with pytest.raises(EvidenceError, match="changed or damaged"):
        attach(optimizer, EAGER, mode="active", backtest=report)
    with pytest.raises(LiveError, match="lbw backtest"):
        attach(optimizer, EAGER, mode="active")


def test_an_unproven_guard_says_so_in_its_trace(tmp_path: Path) -> None:
    run = make_run()
    with attach(run.optimizer, EAGER, trace=tmp_path, run_id="u", mode="active", unproven=True) as live:
        train(run, range(3), live)
    assert read_trace(tmp_path).meta.provenance["unproven"] == 1
