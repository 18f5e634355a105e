"""The flight recorder: every optimizer step as one row, exactly what the guard saw and what it decided.

Reading needs pyarrow and numpy, which are loaded when a name that needs them is first used: recording starts without
waiting for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lbw_sim.trace.journal import TraceWarning
from lbw_sim.trace.labels import Label, read_labels, write_labels
from lbw_sim.trace.provenance import collect
from lbw_sim.trace.recorder import ClosedTrace, Recorder
from lbw_sim.trace.recovery import Recovered, recover
from lbw_sim.trace.schema import BASE_COLUMNS, SCHEMA_VERSION, Column, Damage, SegmentMeta, columns

if TYPE_CHECKING:
    from lbw_sim.trace.store import Segment, Trace, open_traces, read_trace, read_traces, run_paths

__all__ = [
    "BASE_COLUMNS",
    "SCHEMA_VERSION",
    "ClosedTrace",
    "Column",
    "Damage",
    "Label",
    "Recorder",
    "Recovered",
    "Segment",
    "SegmentMeta",
    "Trace",
    "TraceWarning",
    "collect",
    "columns",
    "open_traces",
    "read_labels",
    "read_trace",
    "read_traces",
    "recover",
    "run_paths",
    "write_labels",
]


def __getattr__(name: str) -> Any:
    if name in ("Segment", "Trace", "open_traces", "read_trace", "read_traces", "run_paths"):
        return getattr(importlib.import_module("lbw_sim.trace.store"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
