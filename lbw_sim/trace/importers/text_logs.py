"""Imports what trainers print: one small table of line patterns.

Only the lines of training steps are read; everything around them is passed over. A number that was printed with few
decimals is a rounded one, and what a system is known to leave out or to average is said.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from lbw_sim.errors import TraceError
from lbw_sim.trace.importers.logged import Importer, LoggedRun, rows_of, run_id_from
from lbw_sim.trace.provenance import Fact

LONGEST_LINE = 1 << 16
_COLOURS = re.compile(r"\x1b\[[0-9;]{0,16}m")
# bounded, or a line of digits alone would take the square of its length
_NUMBER = r"[-+]?(?:\d[\d,]{0,30}\.?\d{0,30}(?:[eE][-+]?\d{1,4})?|nan|inf(?:inity)?|-nan)"


def _find(name: str, before: str, after: str = "") -> str:
    return rf"{before}\s{{0,20}}(?P<{name}>{_NUMBER}){after}"


@dataclass(frozen=True, kw_only=True)
class TextLog:
    """How one system prints a training step."""

    name: str
    system: str
    mark: bytes
    """Stands in every such line: looking for it first is a hundred times faster than looking for the pattern."""
    start: str
    """Pattern of the line that opens a step; has the group `step`."""
    channels: Mapping[str, str]
    """Trace column -> pattern with a group of that name, searched in the lines of the step."""
    block: bool = False
    """A step goes over several lines, until the next start."""
    facts: Mapping[str, Fact] = field(default_factory=dict)


TEXT_LOGS = (
    TextLog(
        name="nanogpt",
        system="nanoGPT",
        mark=b"iter ",
        start=r"^iter (?P<step>\d{1,15}): loss ",
        channels={"loss": _find("loss", r": loss")},
        facts={"loss_is": "step"},
    ),
    TextLog(
        name="modded_nanogpt",
        system="modded-nanogpt",
        mark=b"train_loss:",
        start=r"^step:(?P<step>\d{1,15})/\d{1,15} (?:lr:\S{1,40} )?train_loss:",
        channels={"loss": _find("loss", r"train_loss:"), "lr": _find("lr", r" lr:"),
                  "elapsed_ms": _find("elapsed_ms", r"train_time:", "ms")},
    ),
    TextLog(
        name="llmc",
        system="llm.c, what it prints",
        mark=b"loss ",
        start=r"^step\s{1,8}(?P<step>\d{1,15})/\d{1,15} \| (?:train )?loss ",
        channels={"loss": _find("loss", r"loss"), "grad_norm": _find("grad_norm", r"\| norm"),
                  "lr": _find("lr", r"\| lr")},
        facts={"loss_is": "step", "grad_norm_is": "before_clipping"},
    ),
    TextLog(
        name="llmc_main_log",
        system="llm.c, its main.log",
        mark=b" trl:",
        start=r"^s:(?P<step>\d{1,15}) trl:",
        channels={"loss": _find("loss", r" trl:"), "lr": _find("lr", r" lr:"),
                  "grad_norm": _find("grad_norm", r" norm:")},
        facts={"loss_is": "step", "grad_norm_is": "before_clipping"},
    ),
    TextLog(
        name="megatron",
        system="Megatron-LM and what descends from it",
        mark=b"iteration",
        start=r"\biteration\s{1,12}(?P<step>\d{1,15})/\s{0,12}\d{1,15} \|",
        channels={"loss": _find("loss", r"\| (?:lm|language model|reduced_train) loss:"),
                  "lr": _find("lr", r"\| learning rate:"), "grad_norm": _find("grad_norm", r"\| grad norm:")},
        # the mean is over the iterations since the last line, and a mean that is nan is not printed at all
        facts={"loss_is": "window_mean", "nan_filtered": 1, "grad_norm_is": "before_clipping"},
    ),
    TextLog(
        name="torchtitan",
        system="torchtitan",
        mark=b"step:",
        start=r"\bstep:\s{1,12}(?P<step>\d{1,15})  loss:",
        channels={"loss": _find("loss", r"  loss:"), "grad_norm": _find("grad_norm", r"grad_norm:"),
                  "lr": _find("lr", r"  lr:")},
        facts={"grad_norm_is": "before_clipping"},
    ),
    TextLog(
        name="olmo_core",
        system="OLMo-core",
        mark=b"[step=",
        start=r"\[step=(?P<step>\d{1,15})/",
        channels={"loss": _find("loss", r"train/CE loss="), "lr": _find("lr", r"optim/LR(?: \(group 0\))?="),
                  "grad_norm": _find("grad_norm", r"optim/total grad norm=")},
        block=True,
        facts={"grad_norm_is": "before_clipping"},
    ),
)  # fmt: skip
"""First match wins. Layouts as the systems' own sources print them."""

_MLLOG = ":::MLLOG "
_STEP_KEYS = ("step_num", "step", "iteration", "samples_count", "epoch_num")
_MLLOG_LOSSES = ("train_loss", "reduced_train_loss", "loss", "tracked_stats")


def lines_of(path: Path, mark: bytes, lost: list[str]) -> Iterator[str]:
    """The lines of a text file, without colours; longer ones are cut, and what a carriage return parts, as behind a
    progress bar, are lines. A last one without an end is left out: half of a number is another number. `lost` tells of
    it where `mark` stands in it. Raises OSError.
    """
    cut = 0
    with pa.input_stream(str(path), compression="detect") as raw:
        pending = raw.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
        while block := raw.read(1 << 20):
            *lines, pending = (pending + block).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                cut += len(line) > LONGEST_LINE
                yield _text(line)
            if len(pending) > LONGEST_LINE:
                cut, pending = cut + 1, pending[:LONGEST_LINE]
    if mark in pending:
        lost.append(f"{path.name}: the last line has no end, as in a log that is being written, and is left out")
    if cut:
        lost.append(f"{path.name}: lines longer than {LONGEST_LINE} bytes are cut there")


def _text(line: bytes) -> str:
    text = line[:LONGEST_LINE].decode("utf-8", "replace")
    return _COLOURS.sub("", text) if "\x1b" in text else text


def steps_of(layout: TextLog, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Step and channels of each training step.

    >>> list(steps_of(TEXT_LOGS[0], iter(["iter 7: loss 2.5000, time 12.00ms, mfu 1.00%"])))
    [{'step': 7.0, 'loss': 2.5}]
    """
    start = re.compile(layout.start)
    channels = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in layout.channels.items()}
    row: dict[str, Any] | None = None
    waited = 0
    for line in lines:
        match = start.search(line)
        if match is not None:
            if row is not None:
                yield row
            row, waited = {"step": float(match["step"])}, 0
        elif row is None or not layout.block:
            continue
        waited += 1
        # the block of a step is short: what comes much later is something else
        if waited > 200:
            continue
        for name, pattern in channels.items():
            if name not in row and (found := pattern.search(line)) is not None:
                row[name] = float(found[name].replace(",", "").replace("-nan", "nan"))
        if "elapsed_ms" in row:
            row["elapsed_s"] = row.pop("elapsed_ms") / 1000.0
    if row is not None:
        yield row


def mllog_steps(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The losses in MLPerf lines. Lines that are not JSON are passed over, as its own checker does."""
    for line in lines:
        at = line.find(_MLLOG)
        if at < 0:
            continue
        try:
            entry = json.loads(line[at + len(_MLLOG) :])
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or entry.get("key") not in _MLLOG_LOSSES:
            continue
        about, value = entry.get("metadata"), entry.get("value")
        about = about if isinstance(about, dict) else {}
        if isinstance(value, dict):
            about, value = {**value, **about}, next((value[k] for k in _MLLOG_LOSSES if k in value), None)
        step = next((about[key] for key in _STEP_KEYS if isinstance(about.get(key), (int, float))), None)
        if step is None or isinstance(value, bool) or not isinstance(value, (int, float, str)):
            continue
        row = {"step": step, "loss": value, "lr": about.get("lr"), "grad_norm": about.get("grad_norm")}
        if isinstance(entry.get("time_ms"), (int, float)):
            row["elapsed_s"] = entry["time_ms"] / 1000.0
        yield row


def _runs_of(layout: TextLog | None, files: Sequence[Path], columns: Mapping[str, str]) -> Iterator[LoggedRun]:
    for path in files:
        if columns:
            raise TraceError(f"{path}: columns cannot be named for a text log: its patterns are fixed")
        lost: list[str] = []

        def history(path: Path = path, lost: list[str] = lost) -> Iterator[dict[str, Any]]:
            lost.clear()
            if layout is None:
                return mllog_steps(lines_of(path, _MLLOG.encode(), lost))
            return steps_of(layout, lines_of(path, layout.mark, lost))

        names: dict[str, str] = {}
        for row in history():
            names |= {name: name for name, value in row.items() if value is not None}
        if "loss" not in names:
            raise TraceError(f"{path}: holds no line of a training step with a loss")
        rows = partial(rows_of, history, names, path.name)
        facts = dict(layout.facts) if layout is not None else {}
        yield LoggedRun(run_id_from(path), path.name, names, rows, facts=facts, lost=lost, files=[path])


def _importer(layout: TextLog) -> Importer:
    start = re.compile(layout.start, re.MULTILINE)

    def recognises(path: Path, head: bytes) -> bool:
        if layout.mark not in head or b"\0" in head[:4096]:
            return False
        text = head.replace(b"\r", b"\n").decode("utf-8", "replace")
        return start.search(_COLOURS.sub("", text)) is not None

    return Importer(
        name=layout.name,
        reads=f"text log of {layout.system}",
        recognises=recognises,
        runs=partial(_runs_of, layout),
    )


MLPERF = Importer(
    name="mlperf",
    reads="MLPerf log, lines of :::MLLOG",
    recognises=lambda path, head: b":::MLLOG " in head and b'_loss"' in head,
    runs=partial(_runs_of, None),
    rank=1,
)
IMPORTERS = tuple(_importer(layout) for layout in TEXT_LOGS)
