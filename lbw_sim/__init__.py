"""lbw-sim: flight recorder and flight simulator for training-stability guards.

Importing this package loads the guard only: no torch, pandas, scipy or matplotlib.
"""

from lbw_sim.errors import LbwError
from lbw_sim.guard import Guard, GuardSpec
from lbw_sim.values import Assessment, Decision, Posture, Reason, Regime, Request, Signals, Telemetry

__version__ = "0.1.0"

__all__ = [
    "Assessment",
    "Decision",
    "Guard",
    "GuardSpec",
    "LbwError",
    "Posture",
    "Reason",
    "Regime",
    "Request",
    "Signals",
    "Telemetry",
    "__version__",
]
