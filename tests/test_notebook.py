"""How objects show themselves in a notebook."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lbw_sim import Decision, GuardSpec
from lbw_sim.plots import Picture, plot_trace
from lbw_sim.replay import Replay, replay, replay_many
from lbw_sim.score import Column, Table
from lbw_sim.trace import Label, Trace, read_trace

SHIPPED = Path(__file__).parent.parent / "traces" / "tiny"


def test_a_trace_shows_itself_without_loading_rows_and_escapes_what_it_shows() -> None:
    trace = read_trace(SHIPPED, run_id="postln_lr_bump_active_s7")
    shown = trace._repr_html_()
    assert "<th>rows</th><td>400</td>" in shown
    assert "default, active" in shown
    assert "table" not in vars(trace.segments[0]), "no row was needed"
    assert "&lt;b&gt;" in Trace("<b>", trace.segments, (Label(1, 2, "spike"),))._repr_html_()


def test_a_trace_plots_itself_as_svg_and_saves(tmp_path: Path) -> None:
    picture = read_trace(SHIPPED, run_id="postln_lr_bump_active_s7").plot()
    assert isinstance(picture, Picture)
    assert "<svg" in picture._repr_svg_()
    assert picture.figure.axes[0].get_title(loc="left") == "postln_lr_bump_active_s7"
    assert picture.save(tmp_path / "run.png").stat().st_size > 10_000
    assert plot_trace.__module__ == "lbw_sim.plots.run"


def test_guards_replays_decisions_and_tables_show_themselves() -> None:
    trace, spec = read_trace(SHIPPED, run_id="postln_lr_bump_shadow_s7"), GuardSpec.load("zscore")
    assert "<th>analyzer.limit_sd</th><td>3.0</td>" in spec._repr_html_()
    assert ("fingerprint", spec.fingerprint) in list(spec.__rich_repr__())
    found = replay(trace, spec)
    (together,) = replay_many([trace], [spec])
    assert found.alarms == together.alarms(0) != []
    assert f"{len(found.alarms)} alarms in 400 rows" in found._repr_html_()
    assert f"<td>zscore</td><td>{len(found.alarms)}</td>" in together._repr_html_()
    assert "<th>regime</th><td>SPIKE</td>" in Decision(3, 1, 0.5, 0.25, 1)._repr_html_()
    assert "77, which is none" in Decision(77, 1, 0.5, 0.25, 1)._repr_html_()
    assert "Before you trust this" not in found._repr_html_() + together._repr_html_()
    assert "&lt;i&gt;" in Table([{"guard": "<i>"}], [Column("guard", "guard")])._repr_html_()


def test_a_replay_lists_the_first_alarms_and_says_how_many_more() -> None:
    regimes = np.tile(np.array([1, 3], dtype=np.int8), 30)
    shown = Replay("run", "g", "f", {"step": np.arange(60), "regime": regimes})._repr_html_()
    assert shown.count("SPIKE") == 20
    assert "10 more" in shown


def test_a_live_guard_shows_what_it_last_decided() -> None:
    torch = pytest.importorskip("torch")
    from lbw_sim.live import attach

    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with attach(optimizer, "default", run_id="<here>") as guard:
        guard.observe(float("nan"))
        weight.grad = torch.ones(2)
        optimizer.step()
        shown = guard._repr_html_()
    for part in ("&lt;here&gt;", "<td>default</td>", "<th>steps</th><td>1</td>", "<td>NONFINITE</td>", "applied 1<",
                 "<td>flying</td>"):  # fmt: skip
        assert part in shown, shown
    assert "<td>closed</td>" in guard._repr_html_()
