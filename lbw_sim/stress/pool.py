"""Flies the runs of a suite: in this process, or in several others, which do not outlive it."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from lbw_sim.errors import StressError
from lbw_sim.guard import load_plugin
from lbw_sim.stress.flown import fly
from lbw_sim.stress.measured import measured
from lbw_sim.stress.plan import FlightPlan

Asked = tuple[FlightPlan, Path | None]
"""A run, and the folder that its trace goes to."""
Outcome = dict[str, Any] | Exception
Pool = Callable[[Sequence[Asked]], Iterator[tuple[int, Outcome]]]
"""Flies runs; gives the place of each, and what came of it, as they end."""


@contextlib.contextmanager
def flying(processes: int, plugins: tuple[Path, ...]) -> Iterator[Pool]:
    """What flies runs: this process, or several others."""
    if processes == 1:
        with _one_thread():
            yield _here
        return
    # spawned: a forked child of a process with torch's threads may hang
    executor = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start, initargs=(os.getpid(), plugins)
    )  # fmt: skip
    try:
        yield functools.partial(_elsewhere, executor)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _here(asked: Sequence[Asked]) -> Iterator[tuple[int, Outcome]]:
    for place, (flight, folder) in enumerate(asked):
        try:
            yield place, _flown(flight, folder)
        except Exception as error:
            yield place, error


def _elsewhere(executor: ProcessPoolExecutor, asked: Sequence[Asked]) -> Iterator[tuple[int, Outcome]]:
    futures = {executor.submit(_flown, *ask): place for place, ask in enumerate(asked)}
    for future in as_completed(futures):
        try:
            yield futures[future], future.result()
        except BrokenProcessPool:
            raise StressError(
                f"a process died while flying {asked[futures[future]][0].run_id} or a run beside it (out of memory?); "
                "finished runs are kept, and the same command goes on from there"
            ) from None
        except Exception as error:
            yield futures[future], error


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Runs are too small for more, and equal to the bit whatever the number of processes."""
    usual = torch.get_num_threads()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def _start(parent: int, plugins: tuple[Path, ...]) -> None:
    """In a new process: one thread on a CPU, Ctrl-C left to the parent, and no life after the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    for plugin in plugins:
        load_plugin(plugin)


def _flown(flight: FlightPlan, folder: Path | None) -> dict[str, Any]:
    """Fly one run; what the ledger keeps of it."""
    return measured(fly(flight, folder=folder))
