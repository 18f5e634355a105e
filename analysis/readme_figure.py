"""Draws the figure of the README from the shipped traces: a learning-rate bump, with the guard active.

python analysis/readme_figure.py
"""

from __future__ import annotations

from pathlib import Path

from lbw_sim.plots import run_figure, save
from lbw_sim.trace import read_trace

ROOT = Path(__file__).parent.parent

trace = read_trace(ROOT / "traces" / "tiny", run_id="postln_lr_bump_active_s7")
title = "Post-LN byte GPT, learning rate × 30 at steps 200-219, default guard active"
save(run_figure(trace.to_numpy(), trace.labels, title, mode=trace.meta.mode), ROOT / "docs" / "figures" / "run.svg")
