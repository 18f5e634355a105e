"""Real training experiments: tiny models, faults on purpose, methods and controls, recorded as traces."""

from lbw_sim.stress.controls import same_mean_lr
from lbw_sim.stress.excitation import Excitation
from lbw_sim.stress.faults import AFTERMATH_STEPS, FAULTS, Fault, fault
from lbw_sim.stress.fleet import train
from lbw_sim.stress.plan import METHODS, RunPlan, RunResult
from lbw_sim.stress.tiny_gpt import ARCHITECTURES

__all__ = [
    "AFTERMATH_STEPS",
    "ARCHITECTURES",
    "FAULTS",
    "METHODS",
    "Excitation",
    "Fault",
    "RunPlan",
    "RunResult",
    "fault",
    "same_mean_lr",
    "train",
]
