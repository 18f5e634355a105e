"""Compiles the kernels of several guards side by side, in processes of their own: a compiler works on one core only.

For long work on a machine that has not seen these guards before: what is in the cache already is left alone, and
without a second core, or when a process fails, `replay_many` compiles as it goes. Results do not depend on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lbw_sim.cores import usable_cores
from lbw_sim.guard import GuardSpec
from lbw_sim.replay import kernel_files, kernels
from lbw_sim.replay.compiled import LANES
from lbw_sim.replay.symbolic import CannotInline

WORTH_A_PROCESS = 8
"""Kernels below which a second process is not started: it takes as long as four of them to start."""
_PROGRAM = """\
import json, sys
from lbw_sim.replay.symbolic import CannotInline
from lbw_sim.replay.kernel_files import compiled
for text in json.load(sys.stdin):
    try:
        compiled(text)
    except CannotInline:
        pass
    print(flush=True)
"""


def compile_ahead(
    groups: Iterable[tuple[Sequence[GuardSpec], bool]], progress: Callable[[int, int], None] | None = None
) -> int:
    """Fill the cache for calls of `replay_many`, each given by its specs and `rows`. Returns how many were compiled.

    `progress` hears of kernels done and in all. Raises SpecError when a component is not installed.
    """
    texts = [kernels.extraction(), *(text for specs, rows in groups for text in kernel_texts(specs, rows=rows))]
    missing = [text for text in dict.fromkeys(texts) if not kernel_files.kernel_file(text).exists()]
    cores = usable_cores()
    if len(missing) < WORTH_A_PROCESS or cores < 2:
        return 0
    count = min(cores, len(missing) // 2)
    done = 0
    with contextlib.ExitStack() as stack:
        # one file of output for all: a line is a kernel done
        reading, writing = os.pipe()
        lines = stack.enter_context(os.fdopen(reading))
        with os.fdopen(writing, "w") as output:
            for place in range(count):
                process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=output, stderr=subprocess.DEVNULL
                )
                stack.callback(_end, process)
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(missing[place::count]).encode())
                    process.stdin.close()
        for _ in lines:
            done += 1
            if progress is not None:
                progress(done, len(missing))
    return done


def kernel_texts(specs: Sequence[GuardSpec], *, rows: bool) -> list[str]:
    """The kernels that `replay_many` needs for these guards; those without a compiled form left out."""
    by_structure: dict[Any, list[Any]] = {}
    for spec in specs:
        guard = spec.build()
        by_structure.setdefault(kernels.structure(guard), []).append(guard)
    texts = []
    for guards in by_structure.values():
        with contextlib.suppress(CannotInline, OSError):
            texts.append(kernels.source(guards[0], LANES if len(guards) > 1 else 1, rows).text)
    return texts


def _end(process: subprocess.Popen[bytes]) -> None:
    """Also after Ctrl-C: nothing is left behind, and a kernel half made is not in the cache."""
    if process.poll() is None:
        try:
            process.wait(timeout=5.0 if process.stdin is None or process.stdin.closed else 0.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
