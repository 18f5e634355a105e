"""Open loop: recorded telemetry through a guard. Scores detection, never benefit."""

from lbw_sim.replay.compiled import CompileWarning, Replays, replay_bytes, replay_many
from lbw_sim.replay.difference import Episode, NotCompared, RunDifference, compare_guards
from lbw_sim.replay.reference import Replay, replay, telemetry_rows
from lbw_sim.replay.usable import Unusable, unusable_words, usable_runs
from lbw_sim.replay.verify import Verified, verify

__all__ = [
    "CompileWarning",
    "Episode",
    "NotCompared",
    "Replay",
    "Replays",
    "RunDifference",
    "Unusable",
    "Verified",
    "compare_guards",
    "replay",
    "replay_bytes",
    "replay_many",
    "telemetry_rows",
    "unusable_words",
    "usable_runs",
    "verify",
]
