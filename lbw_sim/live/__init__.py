"""The guard on a real torch training loop. Imports torch; never replay, simulation or tuning."""

from lbw_sim.live.attach import LiveGuard, attach

__all__ = ["LiveGuard", "attach"]
