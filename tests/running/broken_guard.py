"""A guard with a rule of somebody's that works for a while and then raises."""

from __future__ import annotations

from pathlib import Path

from lbw_sim.guard import GuardSpec, load_plugin

TEXT = '''
from typing import NamedTuple
from lbw_sim import Assessment, Signals
from lbw_sim.guard import analyzer

class BreaksState(NamedTuple):
    steps: int

@analyzer(version=1)
class BreaksAt{steps}:
    """Works for {steps} steps, then raises."""

    def init(self) -> BreaksState:
        return BreaksState(0)

    def step(self, state: BreaksState, signals: Signals) -> tuple[BreaksState, Assessment]:
        if state.steps == {steps}:
            raise ZeroDivisionError("a bug in somebody's rule")
        return BreaksState(state.steps + 1), Assessment(1)
'''


def broken_guard(folder: Path, steps: int) -> GuardSpec:
    """Write the rule into a folder and load it as a plugin; a guard that follows it."""
    file = folder / "rule.py"
    file.write_text(TEXT.format(steps=steps))
    load_plugin(file)
    return GuardSpec.from_toml(
        f'lbw_spec = 1\n[sensor]\nname="raw"\n[analyzer]\nname="breaks_at{steps}"\n[policy]\nname="damp_release"\n'
    )
