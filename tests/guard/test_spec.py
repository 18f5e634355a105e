"""GuardSpec: complete, fingerprinted, refused with all reasons at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbw_sim.errors import ParameterError, SpecError
from lbw_sim.guard import Guard, GuardSpec, preset_names
from lbw_sim.guard.analyzers.debounce import Debounce
from lbw_sim.guard.analyzers.threshold import Threshold
from lbw_sim.guard.envelope import Envelope
from lbw_sim.guard.policies.damp_release import DampRelease
from lbw_sim.guard.registry import component
from lbw_sim.guard.sensors.ewma import Ewma
from lbw_sim.params import params_of


@pytest.mark.parametrize("name", preset_names())
def test_file_round_trip_keeps_spec_and_fingerprint(name: str, tmp_path: Path) -> None:
    spec = GuardSpec.load(name)
    spec.save(tmp_path / "guard.toml")
    again = GuardSpec.load(tmp_path / "guard.toml")
    assert again == spec
    assert again.fingerprint == spec.fingerprint
    assert GuardSpec.of(again.build(), again.name) == spec


def test_fingerprint_ignores_the_name_and_sees_every_parameter() -> None:
    spec = GuardSpec.load("default")
    assert GuardSpec("renamed", spec.tables).fingerprint == spec.fingerprint
    changed = {spec.fingerprint}
    for table in ("sensor", "analyzer", "policy", "envelope"):
        for key, value in spec.tables[table].items():
            if key not in ("name", "version"):
                other = value * 0.999 if isinstance(value, float) else value + 1
                changed.add(spec.with_changes({f"{table}.{key}": other}).fingerprint)
    changed.add(spec.with_changes({"delay_steps": 1}).fingerprint)
    parameters = sum(len(spec.tables[t]) for t in ("sensor", "analyzer", "policy", "envelope")) - 7
    assert len(changed) == 1 + parameters + 1


def test_a_whole_number_for_a_float_parameter_is_the_same_guard() -> None:
    spec = GuardSpec.load("default")
    assert spec.with_changes({"sensor.clip_sd": int(spec.tables["sensor"]["clip_sd"])}).fingerprint == spec.fingerprint


def test_a_wrapped_component_is_a_nested_table() -> None:
    guard = Guard(
        sensor=Ewma(),
        analyzer=Debounce(inner=Threshold(limit_sd=4.0), steps=5),
        policy=DampRelease(),
        envelope=Envelope(),
    )
    spec = GuardSpec.of(guard, "patient z")
    assert "[analyzer.inner]" in spec.to_toml()
    assert GuardSpec.from_toml(spec.to_toml()).build() == guard


def spec_text(sensor: str = 'name="raw"', analyzer: str = 'name="never"', top: str = "") -> str:
    """A small spec with one thing exchanged."""
    return f'lbw_spec = 1\n{top}\n[sensor]\n{sensor}\n[analyzer]\n{analyzer}\n[policy]\nname="hold"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not toml", "is not TOML"),
        ("lbw_spec = 2", "this version reads lbw_spec = 1"),
        ("lbw_spec = 1", r"table \[sensor\] is missing; table \[analyzer\] is missing; table \[policy\] is missing"),
        (spec_text(top="delay_step = 1"), "Did you mean 'delay_steps'"),
        (
            spec_text(sensor='name="ewna"', analyzer='name="threshold"\nlimit_sd=99'),
            r"Did you mean 'ewma'\?; \[analyzer\] Threshold: limit_sd=99 is outside \[1.0, 20.0\] sd",
        ),
        (spec_text(sensor='name="raw"\nversion=9'), "version 9 was asked for and version 1 is installed"),
        (spec_text(top="delay_steps = 7"), "delay_steps=7 is not 0 or 1"),
        (spec_text(top="delay_steps = 1.0"), "delay_steps=1.0 is not 0 or 1"),
        (spec_text(top="envelope = 3"), "not a table"),
    ],
)
def test_a_bad_spec_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        GuardSpec.from_toml(text)


def test_parameters_tell_all_problems_at_once() -> None:
    with pytest.raises(
        ParameterError, match=r"DampRelease: cut=1.5 is outside \[0.05, 0.95\]; hold_steps=0 is outside"
    ):
        DampRelease(cut=1.5, hold_steps=0)
    with pytest.raises(ParameterError, match="cut=nan is outside"):
        DampRelease(cut=float("nan"))
    with pytest.raises(ParameterError, match=r"hold_steps=2.5 is not a whole number"):
        DampRelease(hold_steps=2.5)


def test_multiplied_limits_reach_every_wrapped_rule_and_stay_in_their_ranges() -> None:
    spec = GuardSpec.load("llmc_outlier")
    before, after = spec.tables["analyzer"], spec.with_limits_times(1.2).tables["analyzer"]
    for part in ("first", "second"):
        info = params_of(component("analyzer", before[part]["name"]))["limit_sd"]
        assert after[part]["limit_sd"] == min(info.high, before[part]["limit_sd"] * 1.2)
        assert {k: v for k, v in after[part].items() if k != "limit_sd"} == {
            k: v for k, v in before[part].items() if k != "limit_sd"
        }
    assert spec.with_limits_times(1000.0).tables["analyzer"]["first"]["limit_sd"] == 20.0
    never = GuardSpec.load("never")
    assert never.with_limits_times(2.0).fingerprint == never.fingerprint
