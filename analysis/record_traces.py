"""Records the traces that ship in `traces/`: real runs of the tiny GPT, every fault, shadow and active guard.

    python analysis/record_traces.py            # or: make traces
    python analysis/record_traces.py excitation # only those that identify a plant

Replaces `traces/tiny/`, `traces/excitation/` and their entries of `traces/manifest.json`. Training is deterministic on
one machine with one torch version; another machine's floating point gives slightly other losses, so the files differ,
and verify all the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from lbw_sim.replay import verify
from lbw_sim.stress import FAULTS, Excitation, RunPlan, RunResult, fault, train
from lbw_sim.trace import read_trace

FOLDER = Path(__file__).parent.parent / "traces"
SEED = 7
HEALTHY_LR = 5e-3
ONSET, STEPS = 200, 400


def plan(name: str, seed: int = SEED, **more: Any) -> RunPlan:
    """One run; its id says what it is."""
    return RunPlan(run_id=f"{name}_s{seed}", seed=seed, steps=STEPS, **more)


def plans() -> list[RunPlan]:
    """Both architectures with every fault in shadow; post-LN over learning rates; post-LN with the guard active."""
    made = []
    for architecture in ("post_ln", "pre_ln"):
        name = architecture.replace("_", "")
        common = {"architecture": architecture, "lr": HEALTHY_LR}
        made.append(plan(f"{name}_none_shadow", **common))
        made += [plan(f"{name}_{kind}_shadow", fault=fault(kind, ONSET), **common) for kind in FAULTS]
    made += [plan(f"postln_lr{lr:g}_shadow", lr=lr) for lr in (1e-2, 3e-2, 1e-1)]
    made += [
        plan(f"postln_{kind}_active", lr=HEALTHY_LR, fault=fault(kind, ONSET), method="guard")
        for kind in ("lr_bump", "bad_labels", "nan_loss")
    ]
    return made


def excitation_plans() -> list[RunPlan]:
    """Post-LN runs whose learning rate is moved on purpose, and one that is too high from the start."""

    def program(kind: str, factor: float, length_steps: int = 20) -> Excitation:
        return Excitation(kind=kind, onset_step=150, length_steps=length_steps, factor=factor)

    return [
        # of another seed, or it would be one of the runs above once more
        plan("postln_lr0.1_none", seed=SEED + 1, lr=1e-1),
        plan("postln_lr0.01_bump8", lr=1e-2, excitation=program("bump", 8.0)),
        plan("postln_lr0.005_bump30", lr=5e-3, excitation=program("bump", 30.0)),
        plan("postln_lr0.005_ramp16", lr=5e-3, excitation=program("ramp", 16.0, 60)),
        plan("postln_lr0.01_drop4", lr=1e-2, excitation=program("drop", 4.0)),
        plan("postln_lr0.005_dither9", lr=5e-3, excitation=program("dither", 9.0)),
        plan("postln_lr0.01_dither4", lr=1e-2, excitation=program("dither", 4.0)),
    ]


def described(result: RunResult, group: str) -> dict[str, object]:
    """One entry of the manifest."""
    plan = result.plan
    folder = FOLDER / group / f"run_id={result.run_id}"
    trace = read_trace(folder)
    verify(trace)
    return {
        "run_id": result.run_id,
        "folder": group,
        "architecture": plan.architecture,
        "peak_lr": plan.lr,
        "seed": plan.seed,
        "steps": plan.steps,
        "fault": None if plan.fault is None else plan.fault.name,
        "excitation": None if plan.excitation is None else dataclasses.asdict(plan.excitation),
        "guard": plan.spec.name,
        "fingerprint": plan.spec.fingerprint,
        "mode": plan.mode,
        "validation_loss": result.validation_loss if result.validation_loss == result.validation_loss else None,
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())},
    }


def main() -> None:
    """Record, verify, describe."""
    path = FOLDER / "manifest.json"
    made = {"tiny": plans, "excitation": excitation_plans}
    wanted = sys.argv[1:] or list(made)
    runs = [run for run in json.loads(path.read_text(encoding="utf-8"))["runs"] if run["folder"] not in wanted]
    for group in wanted:
        shutil.rmtree(FOLDER / group, ignore_errors=True)
        runs += [described(result, group) for result in train(made[group](), FOLDER / group)]
    manifest = {
        "command": "python analysis/record_traces.py",
        "what": "byte-level GPT, 34k parameters, AdamW; prose: pydoc_data.topics, code: the standard library",
        "torch": torch.__version__,
        "runs": runs,
    }
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    print(f"{len(runs)} runs, {size / 1e6:.2f} MB in {FOLDER}")


if __name__ == "__main__":
    main()
