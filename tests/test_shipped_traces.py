"""The traces that ship: every one is a regression test of the guard that flew."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lbw_sim.replay import verify
from lbw_sim.trace import read_trace, read_traces

FOLDER = Path(__file__).parent.parent / "traces"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
RUNS = {run["run_id"]: run for run in MANIFEST["runs"]}


def test_manifest_and_folder_hold_the_same_runs() -> None:
    for group in {run["folder"] for run in RUNS.values()}:
        there = [name for name, run in RUNS.items() if run["folder"] == group]
        assert [trace.run_id for trace in read_traces(FOLDER / group)] == sorted(there)


@pytest.mark.parametrize("run_id", RUNS)
def test_replay_equals_flight_to_the_last_bit(run_id: str) -> None:
    trace = read_trace(FOLDER / RUNS[run_id]["folder"], run_id)
    assert verify(trace) == (run_id, 1, RUNS[run_id]["steps"], 0)


@pytest.mark.parametrize("run_id", RUNS)
def test_files_labels_and_marks_are_what_the_manifest_says(run_id: str) -> None:
    run, folder = RUNS[run_id], FOLDER / RUNS[run_id]["folder"] / f"run_id={run_id}"
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()} == run["sha256"]
    trace = read_trace(folder)
    assert trace.meta.fingerprint == run["fingerprint"]
    assert trace.meta.mode == run["mode"]
    assert "host" not in trace.meta.provenance
    marks = set(trace.to_numpy()["event"]) - {""}
    program = {f"excite_{run['excitation']['kind']}"} if run["excitation"] else set()
    assert marks == ({run["fault"]} if run["fault"] else program)
    assert [label.note for label in trace.labels] == ([run["fault"]] if run["fault"] else [])
