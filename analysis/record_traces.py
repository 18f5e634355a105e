"""Records the traces that ship in `traces/`: real runs of the tiny GPT, every fault, shadow and active guard.

    python analysis/record_traces.py            # or: make traces

Replaces `traces/tiny/` and `traces/manifest.json`. Training is deterministic on one machine with one torch version;
another machine's floating point gives slightly other losses, so the files differ, and verify all the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from lbw_sim.replay import verify
from lbw_sim.stress import FAULTS, RunPlan, RunResult, fault, train
from lbw_sim.trace import read_trace

FOLDER = Path(__file__).parent.parent / "traces"
SEED = 7
HEALTHY_LR = 5e-3
ONSET, STEPS = 200, 400


def plan(name: str, **more: Any) -> RunPlan:
    """One run; its id says what it is."""
    return RunPlan(run_id=f"{name}_s{SEED}", seed=SEED, steps=STEPS, **more)


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


def described(result: RunResult) -> dict[str, object]:
    """One entry of the manifest."""
    plan = result.plan
    folder = FOLDER / "tiny" / f"run_id={result.run_id}"
    trace = read_trace(folder)
    verify(trace)
    return {
        "run_id": result.run_id,
        "architecture": plan.architecture,
        "peak_lr": plan.lr,
        "seed": plan.seed,
        "steps": plan.steps,
        "fault": None if plan.fault is None else plan.fault.name,
        "guard": plan.spec.name,
        "fingerprint": plan.spec.fingerprint,
        "mode": plan.mode,
        "validation_loss": result.validation_loss if result.validation_loss == result.validation_loss else None,
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())},
    }


def main() -> None:
    """Record, verify, describe."""
    shutil.rmtree(FOLDER / "tiny", ignore_errors=True)
    results = train(plans(), FOLDER / "tiny")
    manifest = {
        "command": "python analysis/record_traces.py",
        "what": "byte-level GPT, 34k parameters, AdamW; prose: pydoc_data.topics, code: the standard library",
        "torch": torch.__version__,
        "runs": [described(result) for result in results],
    }
    (FOLDER / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    print(f"{len(results)} runs, {size / 1e6:.2f} MB in {FOLDER}")


if __name__ == "__main__":
    main()
