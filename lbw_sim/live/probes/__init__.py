"""Measurements beyond the loss, one per file, each optional: pass them to `attach(..., probes=[...])`.

A probe costs what its docstring says and never changes training: weights, gradients, optimizer, random numbers, modes
and buffers are afterwards what they were before. It decides nothing.
"""

from lbw_sim.live.probes.canary import Canary
from lbw_sim.live.probes.full_step_lr import FullStepLr
from lbw_sim.live.probes.grad_norm import GradNorm
from lbw_sim.live.probes.gradient_reach import GradientReach
from lbw_sim.live.probes.half_step import HalfStep
from lbw_sim.live.probes.initial_weight_rms import InitialWeightRms
from lbw_sim.live.probes.paired import PairedProbe
from lbw_sim.live.probes.robust_rms import RobustRms
from lbw_sim.live.probes.update_norm import UpdateNorm

__all__ = [
    "Canary",
    "FullStepLr",
    "GradNorm",
    "GradientReach",
    "HalfStep",
    "InitialWeightRms",
    "PairedProbe",
    "RobustRms",
    "UpdateNorm",
]
