"""Rows that a test can write in one process and know in another: everything follows from the row's number."""

from __future__ import annotations

from lbw_sim.guard.spec import GuardSpec
from lbw_sim.trace.recorder import Recorder
from lbw_sim.values import Decision, Telemetry

SPEC = GuardSpec.load("default")


def begin(folder: object, run_id: str = "run", **more: object) -> Recorder:
    return Recorder.open(str(folder), run_id, **{"spec": SPEC, "mode": "shadow", "provenance": {}, **more})  # type: ignore[arg-type]


def append_row(recorder: Recorder, i: int, **more: object) -> bool:
    """Append row number i; every column but `attempt` tells which row it is."""
    seen = Telemetry(i, i * 0.1, 1e-3, 1.0 / (i + 1), float("nan"), 4096.0, float(i % 2))
    decided = Decision(i % 9, i % 5, 1.0 / (i % 7 + 1), i * 0.25, i % 11)
    given = {"elapsed_s": i * 0.5, "effective_lr": 1e-3, "skipped": i % 3 == 0, "rolled_back_to": i - 1, **more}
    return recorder.append(seen, decided, event="fault" if i % 100 == 7 else "", **given)  # type: ignore[arg-type]


def assert_rows(found: dict, rows: int) -> None:  # type: ignore[type-arg]
    """Rows 0 to rows - 1, bit for bit."""
    import numpy as np

    i = np.arange(rows)
    expected = {
        "step": i,
        "attempt": np.zeros(rows),
        "elapsed_s": i * 0.5,
        "loss": i * 0.1,
        "lr": np.full(rows, 1e-3),
        "effective_lr": np.full(rows, 1e-3),
        "grad_norm": 1.0 / (i + 1),
        "update_norm": np.full(rows, np.nan),
        "tokens": np.full(rows, 4096.0),
        "nonfinite": (i % 2).astype(float),
        "regime": i % 9,
        "posture": i % 5,
        "scale": 1.0 / (i % 7 + 1),
        "energy": i * 0.25,
        "reason": i % 11,
        "skipped": i % 3 == 0,
        "rolled_back_to": i - 1,
        "event": np.where(i % 100 == 7, "fault", ""),
    }
    assert list(found) == [*expected, "crc32"]
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name, strict=False)
