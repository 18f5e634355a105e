"""AdamW as it is: what every other method is compared with."""

from __future__ import annotations

from lbw_sim.stress.method import Fitting, Method

METHOD = Method(name="adamw", about="AdamW as it is", fit=lambda ask: Fitting())
