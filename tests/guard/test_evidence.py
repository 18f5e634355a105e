"""A back-test report lets one guard act, and only as it was written."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbw_sim.errors import EvidenceError
from lbw_sim.guard import BacktestReport, GuardSpec, require_backtest
from lbw_sim.guard.evidence import MAX_BYTES, OPEN_LOOP, Detection, ReplayedRun, SimulatedEffect

SPEC = GuardSpec.load("default")
RUN = ReplayedRun("a_1", "a", "0f" * 32, "1e" * 32, 100, 0, 99, 1, 2, "shadow", False, 1.5, 9, 0.25, 1, 0)
LINE = Detection("default", "all", 1, 100, 1, 1, 1.0, 1.0, 1.0, None, None, 1.0, 2.0, 0, 90, 0.0, 0.0, 0.0, 0, 0.0)
EFFECT = SimulatedEffect(
    "tiny", "2d" * 8, "too high", 0.1, 400, 20, 3, 60, 1, 3.0, 2.75, -0.25, -0.5, None, 59, 12, 0.0, 0.5, 1.5, 7, None
)
REPORT = BacktestReport(
    SPEC.name, SPEC.fingerprint, SPEC.to_toml(), (RUN,), (LINE,), OPEN_LOOP, ("No run.",), {"lbw_sim": "0"}, "2026",
    (EFFECT,),
)  # fmt: skip


def signed(document: dict[str, Any]) -> str:
    """The document with the fingerprint that its content has, as a forger or another release would write it."""
    import hashlib

    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return json.dumps({**document, "fingerprint": hashlib.sha256(text.encode()).hexdigest()})


def document(**changes: Any) -> dict[str, Any]:
    found = json.loads(REPORT.to_json())
    del found["fingerprint"]
    return {**found, **changes}


def test_a_report_that_was_saved_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    REPORT.save(tmp_path / "guard.backtest.json")
    loaded = require_backtest(SPEC, tmp_path / "guard.backtest.json")
    assert loaded == REPORT
    assert loaded.fingerprint == REPORT.fingerprint
    assert require_backtest(SPEC, str(tmp_path / "guard.backtest.json")) == REPORT


def test_another_name_is_the_same_guard_and_another_limit_is_not() -> None:
    renamed = SPEC.with_changes({}, name="mine")
    assert require_backtest(renamed, REPORT) is REPORT
    changed = SPEC.with_changes({"envelope.min_scale": 0.2})
    with pytest.raises(EvidenceError) as error:
        require_backtest(changed, REPORT)
    assert SPEC.fingerprint in str(error.value)
    assert changed.fingerprint in str(error.value)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (b'"detected": 1', b'"detected": 0'),
        (b'"recall": 1.0', b'"recall": 0.9'),
        (b'"No run."', b'"no run."'),
        (b'"energy": 1.5', b'"energy": 1.25'),
        (b"0f0f", b"0f0e"),
        (b'"effect": -0.25', b'"effect": -0.75'),
    ],
)
def test_a_report_that_was_changed_by_hand_is_refused(tmp_path: Path, was: bytes, now: bytes) -> None:
    path = tmp_path / "guard.backtest.json"
    REPORT.save(path)
    assert was in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(was, now, 1))
    with pytest.raises(EvidenceError, match="changed or damaged"):
        require_backtest(SPEC, path)


def test_a_figure_that_was_put_in_front_of_the_one_that_counts_is_refused() -> None:
    text = REPORT.to_json()
    for key in ("guard", "recall", "energy"):
        edited = text.replace(f'"{key}": ', f'"{key}": 1.0, "{key}": ', 1)
        with pytest.raises(EvidenceError, match=f"'{key}' stands there twice"):
            BacktestReport.from_json(edited)


def test_every_flipped_byte_of_a_report_is_refused_or_changes_nothing() -> None:
    data = REPORT.to_json().encode()
    for at in range(0, len(data), 7):
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            found = BacktestReport.from_json(flipped)
        except EvidenceError:
            continue
        assert found == REPORT, at


def test_a_torn_report_and_no_report_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "guard.backtest.json"
    with pytest.raises(EvidenceError, match=r"lbw backtest GUARD TRACES"):
        require_backtest(SPEC, path)
    path.write_text(REPORT.to_json()[:700])
    with pytest.raises(EvidenceError, match="is not JSON"):
        require_backtest(SPEC, path)
    SPEC.save(path)
    with pytest.raises(EvidenceError, match="is not JSON"):
        require_backtest(SPEC, path)
    path.write_text('{"lbw_labels": 1}')
    with pytest.raises(EvidenceError, match="is not a back-test report"):
        require_backtest(SPEC, path)
    with pytest.raises(EvidenceError, match="cannot be read"):
        require_backtest(SPEC, tmp_path)
    with pytest.raises(EvidenceError, match="the path of a back-test report"):
        require_backtest(SPEC, True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"lbw_backtest": 3}, "format 3; this release reads 1 to 2"),
        ({"lbw_backtest": 1}, "simulated is unknown"),
        ({"format": 2}, "format is unknown"),
        ({"lbw_backtest": True}, "format True"),
        ({"guard": 7}, "guard=7 is not text"),
        ({"more": 1}, "more is unknown"),
        ({"runs": {}}, "runs=dict is not a list"),
        ({"runs": [[]]}, "runs[0] is list, not a JSON object"),
        ({"runs": [{**RUN._asdict(), "rows": True}]}, "runs[0].rows=True is not a whole number"),
        ({"runs": [{**RUN._asdict(), "energy": None}]}, "runs[0].energy=None is not a finite number"),
        ({"runs": [{**RUN._asdict(), "energy": 10**400}]}, "runs[0].energy=inf is not a finite number"),
        ({"detection": [{**LINE._asdict(), "recall": "1"}]}, "detection[0].recall='1' is not a finite number or null"),
        ({"versions": {"numpy": 2}}, "versions.numpy=2 is not text"),
    ],
)
def test_a_report_of_wrong_types_is_refused_though_its_fingerprint_is_right(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(EvidenceError) as error:
        BacktestReport.from_json(signed(document(**changes)))
    assert complaint in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_report_of_format_1_counts_as_it_did_and_keeps_its_fingerprint() -> None:
    old = document(lbw_backtest=1)
    del old["simulated"]
    text = signed(old)
    report = require_backtest(SPEC, BacktestReport.from_json(text))
    assert report == REPORT._replace(simulated=(), format=1)
    assert json.loads(report.to_json()) == json.loads(text)
    with pytest.raises(EvidenceError, match="changed or damaged"):
        BacktestReport.from_json(text.replace('"detected": 1', '"detected": 0'))
    without = document()
    del without["simulated"]
    with pytest.raises(EvidenceError, match="simulated is missing"):
        BacktestReport.from_json(signed(without))


def test_a_report_that_claims_one_guard_and_holds_another_is_refused() -> None:
    report = BacktestReport.from_json(signed(document(spec_toml=GuardSpec.load("never").to_toml())))
    with pytest.raises(EvidenceError, match="holds guard"):
        require_backtest(SPEC, report)
    report = BacktestReport.from_json(signed(document(spec_toml="x = " + "[" * 5000)))
    with pytest.raises(EvidenceError, match="cannot be read"):
        require_backtest(SPEC, report)


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"lbw_backtest":' * 5000, "NaN", '{"lbw_backtest": 1e999}', "1" * 6000, "\x00", "", "[]" * 9,
     '{"lbw_backtest": 1, "runs": ' + "[" * 900 + "]" * 900 + "}"],
    ids=range(9),
)  # fmt: skip
def test_hostile_json_is_refused(text: str) -> None:
    with pytest.raises(EvidenceError):
        BacktestReport.from_json(text)


def test_a_report_of_no_recorded_row_lets_nothing_act() -> None:
    for runs in ((), (RUN._replace(rows=0),)):
        with pytest.raises(EvidenceError, match="tells of no recorded row"):
            require_backtest(SPEC, REPORT._replace(runs=runs))


def test_a_huge_report_takes_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with open(path, "wb") as file:
        file.truncate(1 << 32)
    tracemalloc.start()
    try:
        with pytest.raises(EvidenceError, match="are no back-test report"):
            BacktestReport.load(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_BYTES
    finally:
        tracemalloc.stop()
    with pytest.raises(EvidenceError, match="and more"):
        BacktestReport.from_json('{"lbw_backtest": 1, "runs": [' + "[]," * 100_000 + "[]]}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(document())), json_values)
def test_any_value_in_any_place_is_read_or_refused(key: str, value: Any) -> None:
    try:
        report = BacktestReport.from_json(signed(document(**{key: value})))
    except EvidenceError:
        return
    assert BacktestReport.from_json(report.to_json()) == report


def test_a_report_that_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="back-test fewer runs"):
        REPORT._replace(caveat="x" * MAX_BYTES).save(tmp_path / "big.json")
    with pytest.raises(EvidenceError, match="cannot be written"):
        REPORT.save(tmp_path / "nowhere" / "guard.json")
