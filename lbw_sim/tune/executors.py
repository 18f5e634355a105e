"""Who does the work: threads of this process, or a Ray cluster. The results are the same, in the order of the tasks.

An executor decides nothing: what is measured, and what follows from it, is settled before a task is handed out.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from lbw_sim.cores import usable_cores
from lbw_sim.errors import LbwError, TuneError, unknown_name
from lbw_sim.tune.measure import Task

T = TypeVar("T")
IN_FLIGHT = 2
"""Tasks handed out per worker: one at work and one waiting."""


class Executor(Protocol):
    """Works on tasks."""

    workers: int

    def map(self, tasks: Iterable[Task[T]]) -> Iterator[T]:
        """The results, in the order of the tasks; few tasks more than there are workers are handed out at a time."""
        ...

    def close(self) -> None:
        """Let go of the workers."""
        ...


class Local:
    """Threads: the compiled kernels, where the time goes, run side by side."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or usable_cores()
        self._pool = ThreadPoolExecutor(self.workers)

    def map(self, tasks: Iterable[Task[T]]) -> Iterator[T]:
        """See `Executor`."""
        waiting: deque[Future[T]] = deque()
        try:
            for task in tasks:
                waiting.append(self._pool.submit(task.do))
                if len(waiting) >= IN_FLIGHT * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()

    def close(self) -> None:
        """See `Executor`."""
        self._pool.shutdown(cancel_futures=True)


class Ray:
    """A Ray cluster: the one that `RAY_ADDRESS` names, else workers on this machine, started for the occasion.

    A task whose worker has died is done again, as often as that takes. Every worker opens the traces itself, so paths
    have to mean the same to all of them, and lbw-sim has to be installed there. Raises TuneError without ray.
    """

    def __init__(self, workers: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise TuneError("--executor ray needs ray: pip install 'lbw-sim[ray]'") from None
        self._ray: Any = ray
        self._started = not ray.is_initialized()
        if self._started:
            address = os.environ.get("RAY_ADDRESS")
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if not address:
                options |= {"num_cpus": workers or usable_cores(), "include_dashboard": False}
            try:
                ray.init(address=address, **options)
            except (ConnectionError, OSError, RuntimeError) as error:
                raise TuneError(f"no Ray cluster at {address or 'this machine'}: {error}") from None
        self.workers = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._do: Any = ray.remote(num_cpus=1, max_retries=-1)(_do)

    def map(self, tasks: Iterable[Task[T]]) -> Iterator[T]:
        """See `Executor`."""
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(self._do.remote(task))
                if len(waiting) >= IN_FLIGHT * self.workers:
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            for one in waiting:
                with contextlib.suppress(Exception):
                    self._ray.cancel(one)

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            # its own text is a worker's stack trace: what a user can mend is said as it is said here
            if isinstance(error.cause, LbwError):
                raise error.cause from None
            raise

    def close(self) -> None:
        """See `Executor`."""
        if self._started:
            self._ray.shutdown()


def _do(task: Task[T]) -> T:
    return task.do()


EXECUTORS: dict[str, Callable[[int | None], Executor]] = {"local": Local, "ray": Ray}


def executor(name: str, workers: int | None = None) -> Executor:
    """An executor by name. Raises TuneError."""
    if name not in EXECUTORS:
        raise TuneError(unknown_name("executor", name, EXECUTORS))
    return EXECUTORS[name](workers)
