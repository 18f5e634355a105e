"""Closed loop: guards fly plants, models of training that were fitted to recorded runs.

numba is loaded when something is worth compiling, scipy when something is fitted.
"""

from lbw_sim.simulate.calibrate import Record, calibrate, playback, recorded_noise, usable_records
from lbw_sim.simulate.contrast import Contrast, fit_contrast, predicted_effect
from lbw_sim.simulate.effect import simulated_effects
from lbw_sim.simulate.rollout import Noise, Rollouts, drawn_noise, rollouts
from lbw_sim.simulate.spec import FittedRange, PlantSpec, RunError

__all__ = [
    "Contrast",
    "FittedRange",
    "Noise",
    "PlantSpec",
    "Record",
    "Rollouts",
    "RunError",
    "calibrate",
    "drawn_noise",
    "fit_contrast",
    "playback",
    "predicted_effect",
    "recorded_noise",
    "rollouts",
    "simulated_effects",
    "usable_records",
]
