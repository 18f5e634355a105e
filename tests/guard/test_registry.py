"""Adding a component is one new file, for this package and for its users."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lbw_sim.errors import ComponentError
from lbw_sim.guard import GuardSpec, components, load_plugin
from lbw_sim.guard.conformance import check_component
from lbw_sim.replay.reference import decide

RULE = '''
"""A rule of somebody's own."""

from typing import NamedTuple

from lbw_sim import Assessment, Regime, Signals
from lbw_sim.guard import analyzer, param


class JumpState(NamedTuple):
    previous: float


@analyzer(version=1, needs=("loss",))
class PluggedJump:
    """SPIKE when the loss grows by a factor in one step."""

    factor: float = param(1.5, low=1.01, high=10.0, doc="growth that is a spike")

    def init(self) -> JumpState:
        return JumpState(1e12)

    def step(self, state: JumpState, signals: Signals) -> tuple[JumpState, Assessment]:
        if not (abs(signals.loss) < 1e12):
            return state, Assessment(int(Regime.STABLE))
        jumped = signals.loss > self.factor * state.previous
        return JumpState(signals.loss), Assessment(int(Regime.SPIKE if jumped else Regime.STABLE), signals.loss)
'''


def test_one_file_in_a_folder_is_listed_checked_and_specified(tmp_path: Path) -> None:
    (tmp_path / "plugged_jump.py").write_text(RULE)
    (info,) = load_plugin(tmp_path)
    assert (info.kind, info.name) == ("analyzer", "plugged_jump")
    assert "plugged_jump" in components("analyzer")
    check_component(components("analyzer")["plugged_jump"]())
    text = 'lbw_spec = 1\n[sensor]\nname="raw"\n[analyzer]\nname="plugged_jump"\nfactor=2.0\n[policy]\nname="hold"\n'
    assert GuardSpec.from_toml(text).tables["analyzer"]["factor"] == 2.0


def test_a_plugin_cannot_replace_a_built_in_component(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RULE.replace("class PluggedJump", "class Cusum"))
    with pytest.raises(ComponentError, match="'cusum' exists already"):
        load_plugin(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no component"),
        ("1/0", "ZeroDivisionError"),
        (None, "no such Python file"),
        ("import sys; sys.exit(0)", "SystemExit"),
        (RULE.replace('needs=("loss",)', 'needs=("loss")'), r"bad.py: analyzer 'plugged_jump': needs='loss' is a text"),
        (
            RULE.replace("analyzer", "sensor").replace('needs=("loss",)', 'emits=("loss",), needs=("gradnorm",)'),
            r"no telemetry channel named 'gradnorm'.*Did you mean 'grad_norm'\?.*extra=\('gradnorm',\)",
        ),
        (RULE.replace("version=1", "version='1'"), "version='1' is not a whole number"),
        (
            RULE.replace("    def init", "    slack: float = 1.5\n\n    def init"),
            "'plugged_jump': slack must be declared",
        ),
    ],
)
def test_a_bad_plugin_is_refused_with_the_reason(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ComponentError, match=message):
        load_plugin(tmp_path / "bad.py")


def test_an_installed_package_offers_components_by_an_entry_point(tmp_path: Path) -> None:
    (tmp_path / "somebodys_rules.py").write_text(RULE.replace("PluggedJump", "InstalledJump"))
    info = tmp_path / "somebodys_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lbw_sim.components]\njump = somebodys_rules\n")
    code = "from lbw_sim.guard import components; print('installed_jump' in components('analyzer'))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_a_component_that_raises_in_a_replay_is_named_with_its_line_and_row(tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text(
        RULE.replace("PluggedJump", "RaisingJump").replace(
            "        jumped", "        1 / (signals.loss - 2.25)\n        jumped"
        )
    )
    (info,) = load_plugin(tmp_path / "raising.py")
    spec = GuardSpec.from_toml(
        f'lbw_spec = 1\n[sensor]\nname="raw"\n[analyzer]\nname="{info.name}"\n[policy]\nname="hold"\n'
    )
    columns = {"step": np.arange(10, 20), "loss": 2.0 + np.arange(10) / 16}
    with pytest.raises(ComponentError, match=r"raised ZeroDivisionError: .*raising.py line \d+\) at row 4 \(step 14\)"):
        list(decide(spec.build(), columns))
