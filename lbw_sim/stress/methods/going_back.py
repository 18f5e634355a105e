"""What people did by hand when a run broke: go back and pass over batches (PaLM), or go back and lower the rate (OPT).

PaLM (arXiv 2204.02311) restarted about 100 steps before a spike and passed over 200 to 500 batches; OPT (arXiv
2205.01068) restarted from an earlier checkpoint at a lower learning rate. People saw what went wrong; here the eyes of
`paired_rollback` do, the sharpest there are, so that what is compared is the answer. Scaled to the run: back by a tenth
of it, over three times as many batches. Data and schedule go on, as in every rollback here: no run gets more batches
than another.
"""

from __future__ import annotations

import dataclasses

from lbw_sim.guard import GuardSpec
from lbw_sim.guard.policies.rewind import Rewind
from lbw_sim.stress.method import Ask, Fitting, Method

MOST_RETURNS = 35
"""As many times as OPT was restarted by hand."""
PASSED_OVER = 3
"""PaLM's 200 to 500 batches, in units of its 100 steps."""


def _going_back(depth: int) -> GuardSpec:
    eyes = GuardSpec.load("paired_rollback").build()
    envelope = dataclasses.replace(eyes.envelope, max_rollbacks=MOST_RETURNS)
    guard = dataclasses.replace(eyes, policy=Rewind(rollback_steps=depth), envelope=envelope)
    return GuardSpec.of(guard, "paired_rewind")


def _rewind(ask: Ask) -> Fitting:
    depth = int(ask.number(max(1, ask.steps // 10), 1, 100_000, "steps to go back"))
    return Fitting(guard=_going_back(depth), pass_over_batches=PASSED_OVER * depth)


def _restart(ask: Ask) -> Fitting:
    factor = ask.number(0.5, 0.01, 0.99, "factor on the learning rate")
    return Fitting(guard=_going_back(max(1, ask.steps // 10)), lr_factor=factor)


REWIND = Method(
    name="rewind",
    about="on an alarm: back by some steps, and over three times as many batches (PaLM)",
    argument="steps to go back (a tenth of the run)",
    fit=_rewind,
)
RESTART = Method(
    name="restart",
    about="on an alarm: back by a tenth of the run, and on at a lower learning rate for good (OPT)",
    argument="factor on the learning rate (0.5)",
    fit=_restart,
)
