"""Open loop: recorded telemetry through a guard. Scores detection, never benefit."""

from lbw_sim.replay.reference import Replay, replay, telemetry_rows
from lbw_sim.replay.verify import Verified, verify

__all__ = ["Replay", "Verified", "replay", "telemetry_rows", "verify"]
