"""Published rules that a guard carries out: flown as the preset of the rule, whose file says what it keeps of it."""

from __future__ import annotations

from lbw_sim.guard import GuardSpec
from lbw_sim.stress.method import Ask, Fitting, Method

CHECKS = 60
"""`plateau`: checks in a run, so that its patience of 10 is a sixth of it."""


def _skip_step(ask: Ask) -> Fitting:
    return Fitting(guard=GuardSpec.load("olmo_skip_step"))


def _metaseq(ask: Ask) -> Fitting:
    return Fitting(guard=GuardSpec.load("metaseq_ewm"))


def _plateau(ask: Ask) -> Fitting:
    steps = int(ask.number(max(1, ask.steps // CHECKS), 1, 10_000, "steps of a check"))
    return Fitting(guard=GuardSpec.load("reduce_on_plateau").with_changes({"analyzer.check_steps": steps}))


def _static_cap(ask: Ask) -> Fitting:
    share = ask.number(0.1, 1e-4, 100.0, "share of the weights' RMS")
    return Fitting(guard=GuardSpec.load("static_cap").with_changes({"analyzer.share": share}))


SKIP_STEP = Method(
    name="skip_step", about="updates skipped whose loss or gradient norm is a 6-sd outlier (OLMo)", fit=_skip_step
)
METASEQ = Method(
    name="metaseq", about="learning rate divided by (loss / its mean)⁴ while that is above 1 (OPT)", fit=_metaseq
)
PLATEAU = Method(
    name="plateau",
    about="learning rate × 0.1 for good after 10 checks without progress",
    argument="steps of a check (a sixtieth of the run)",
    fit=_plateau,
)
STATIC_CAP = Method(
    name="static_cap",
    about="learning rate at most a share of the RMS of the initial weights: no feedback",
    argument="the share (0.1)",
    fit=_static_cap,
)
