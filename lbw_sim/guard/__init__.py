"""The loop that flies: sensor → analyzer → policy → envelope. Pure, no I/O."""

from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.evidence import BacktestReport, require_backtest
from lbw_sim.guard.guard import Guard, GuardState, state_from_data, state_to_data
from lbw_sim.guard.registry import components, load_plugin
from lbw_sim.guard.spec import GuardSpec, preset_names
from lbw_sim.params import analyzer, param, part, plant, policy, sensor

__all__ = [
    "BacktestReport",
    "Envelope",
    "Guard",
    "GuardSpec",
    "GuardState",
    "analyzer",
    "components",
    "load_plugin",
    "param",
    "part",
    "plant",
    "policy",
    "preset_names",
    "require_backtest",
    "sensor",
    "state_from_data",
    "state_to_data",
]
