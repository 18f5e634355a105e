"""Guards that read probes give the same bits in every engine, also where a probe is silent."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest

from lbw_sim.guard import Envelope, Guard, GuardSpec
from lbw_sim.guard.analyzers.bad_batch import BadBatch
from lbw_sim.guard.analyzers.canary_rise import CanaryRise
from lbw_sim.guard.analyzers.lr_cap import LrCap
from lbw_sim.guard.analyzers.probe_rise import ProbeRise
from lbw_sim.guard.analyzers.trust_cap import TrustCap
from lbw_sim.guard.policies.roll_back import RollBack
from lbw_sim.guard.policies.scale_by_evidence import ScaleByEvidence
from lbw_sim.guard.policies.slow_start import SlowStart
from lbw_sim.guard.policies.under_cap import UnderCap
from lbw_sim.guard.sensors.canary_loss import CanaryLoss
from lbw_sim.guard.sensors.initial_weights import InitialWeights
from lbw_sim.guard.sensors.paired_loss import PairedLoss
from lbw_sim.guard.sensors.paired_loss_and_trust import PairedLossAndTrust

from .test_compiled import HOSTILE, both, drawn, telemetry

STRUCTURES: dict[str, tuple[Any, Any, Any, str]] = {
    "canary": (
        CanaryLoss,
        lambda rng: BadBatch(inner=drawn(CanaryRise, rng), leap_sd=rng.uniform(2, 20)),
        lambda rng: SlowStart(inner=drawn(RollBack, rng), start_scale=rng.uniform(0.01, 1)),
        "canary_loss",
    ),
    "paired": (
        PairedLoss,
        lambda rng: BadBatch(inner=drawn(ProbeRise, rng), leap_sd=rng.uniform(2, 20)),
        lambda rng: drawn(RollBack, rng),
        "probe_gain",
    ),
    "cap": (
        InitialWeights,
        lambda rng: drawn(LrCap, rng),
        lambda rng: drawn(ScaleByEvidence, rng),
        "initial_weight_rms",
    ),
    "trust": (
        PairedLossAndTrust,
        lambda rng: TrustCap(
            inner=BadBatch(inner=drawn(ProbeRise, rng)),
            first_share=rng.uniform(0.001, 0.1),
            wait=rng.randint(1, 5),
            stale_steps=rng.randint(1, 50),
            settle_steps=rng.randint(0, 50),
            collapse_share=rng.uniform(0.0, 0.8),
            whole_share=rng.uniform(0.0, 1.0),
        ),
        lambda rng: UnderCap(inner=drawn(RollBack, rng)),
        "probe_gain",
    ),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_probed_guards_give_the_bits_of_python_in_lanes(structure: str) -> None:
    sensor, analyzer, policy, channel = STRUCTURES[structure]
    postures: set[int] = set()
    for seed in range(4):
        rng, noise = random.Random(seed), np.random.default_rng(seed)
        columns = telemetry(250, seed)
        measured = noise.choice([math.nan, 1.0, 1.0, *HOSTILE[:3]], 250) if seed % 2 else np.ones(250)
        columns[channel] = measured * (noise.standard_normal(250) if channel == "probe_gain" else columns["loss"])
        if structure == "trust":
            columns["full_step_lr"] = np.full(250, columns["lr"][0])
            columns["half_step_gain"] = measured * noise.normal(-0.1, 0.05, 250)
            columns["gradient_reach"] = measured * noise.uniform(0.0, 1.0, 250)
            columns["step_gain"] = columns["half_step_gain"] * noise.normal(1.7, 0.2, 250)
        specs = [
            GuardSpec.of(
                Guard(
                    sensor=sensor(),
                    analyzer=analyzer(rng),
                    policy=policy(rng),
                    envelope=drawn(Envelope, rng),
                ),
                f"{structure} {seed} {number}",
            )
            for number in range(4)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a component that cannot be compiled says so
            found = both(columns, specs)
        assert found.decided is not None
        postures |= {int(p) for decided in found.decided for p in np.unique(decided["posture"])}
    assert len(postures) >= 3, "they act"
