"""The guard on a real torch training loop. Imports torch; never replay, simulation or tuning."""

from lbw_sim.live.adamw import GuardedAdamW
from lbw_sim.live.attach import attach
from lbw_sim.live.flight import LiveGuard
from lbw_sim.live.probing import Probe
from lbw_sim.live.snapshots import Snapshots

__all__ = ["GuardedAdamW", "LiveGuard", "Probe", "Snapshots", "attach"]
