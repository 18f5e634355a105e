"""Tuning: search a guard's parameters on some runs, judge on others; on this machine or on a cluster.

Light to import: numba, scipy, cmaes, optuna and ray are loaded when they are asked for.
"""

from lbw_sim.tune.choose import Objectives, Rule, pareto
from lbw_sim.tune.executors import EXECUTORS, executor
from lbw_sim.tune.files import write
from lbw_sim.tune.search import SEARCHES
from lbw_sim.tune.space import Space, search_space
from lbw_sim.tune.split import Split, split
from lbw_sim.tune.tuning import Simulated, Tuned, tune

__all__ = [
    "EXECUTORS",
    "SEARCHES",
    "Objectives",
    "Rule",
    "Simulated",
    "Space",
    "Split",
    "Tuned",
    "executor",
    "pareto",
    "search_space",
    "split",
    "tune",
    "write",
]
