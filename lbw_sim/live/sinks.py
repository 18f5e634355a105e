"""Mirrors what a live guard does to the dashboards that a team already watches: TensorBoard, W&B, trackio.

All under `lbw/`, all from a thread of its own. The training thread only puts a row into a bounded queue: it never waits
for a dashboard, and no failure of one reaches it. The trace is the record; a mirror may drop rows and says how many.
"""

from __future__ import annotations

import contextvars
import importlib.util
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lbw_sim.errors import LiveError
from lbw_sim.live.flags import flag
from lbw_sim.values import UNSAFE_REGIMES, Decision, Telemetry

logger = logging.getLogger("lbw_sim")


_Offered = tuple[int, Telemetry, Decision, float, float]


class MirrorRow(NamedTuple):
    """One optimizer step, as dashboards get it."""

    step: int
    time_s: float
    """When it was offered; seconds since the epoch."""
    values: dict[str, float]
    """`lbw/loss`, `lbw/effective_lr`, `lbw/regime` (the code of a `Regime`), `lbw/scale`, `lbw/energy`; what was not
    measured is left out."""


class Sink(Protocol):
    """One dashboard. Both methods are called from the mirror's thread only, and may raise and take their time."""

    def write(self, rows: Sequence[MirrorRow]) -> None:
        """Take some rows, in order."""

    def close(self) -> None:
        """No more will come."""


class Mirror:
    """Hands rows to sinks from one daemon thread.

    A sink that raises is dropped, with one warning. One that hangs holds up the others, and then the queue fills and
    further rows are dropped. In a forked child a mirror does nothing.

    Python runs one thread at a time, so a mirror that wrote every row of a very fast loop would slow it down. Above
    `rows_per_s` it thins: of each stretch it keeps the row with the worst news, an unsafe regime or the lowest scale.

    >>> class Printed:
    ...     def write(self, rows): print([(row.step, row.values["lbw/scale"]) for row in rows])
    ...     def close(self): print("closed")
    >>> mirror = Mirror([Printed()], interval_s=60.0)
    >>> for step in range(3):
    ...     mirror.offer(step, Telemetry(step, loss=2.0), Decision(1, 0, 1.0, 0.0, 0), effective_lr=1e-3)
    >>> mirror.close()
    [(0, 1.0), (1, 1.0), (2, 1.0)]
    closed
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        rows_per_s: float = 50.0,
        capacity: int = 100_000,
        interval_s: float = 0.5,
    ) -> None:
        """`capacity`: rows that wait at most. `interval_s`: how often the thread looks; a row is that late at most."""
        self.dropped = 0
        """Rows that found no room, or no sink."""
        self.thinned = 0
        """Rows that were left out because there were more than `rows_per_s`."""
        self._rows_per_look = max(1.0, rows_per_s * interval_s)
        self._sinks = list(sinks)
        self._capacity = capacity
        self._interval_s = interval_s
        self._queue: deque[_Offered] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="lbw-mirror", daemon=True)
        _mirrors.add(self)
        self._thread.start()

    def offer(self, step: int, telemetry: Telemetry, decision: Decision, effective_lr: float) -> None:
        """Give one decided step to the sinks, when there is room. Never waits; from one thread at a time."""
        # no lock and no wake-up: the thread looks by itself, so this costs an append
        if len(self._queue) >= self._capacity:
            self.dropped += 1
            return
        self._queue.append((step, telemetry, decision, effective_lr, time.time()))

    def close(self, timeout_s: float = 5.0) -> None:
        """Hand over what waits and close the sinks, in `timeout_s` at most. Never raises; idempotent."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._capacity = 0
        self._stop.set()
        if thread is threading.current_thread():
            return  # the guard was found to be garbage just here, and the loop below goes on to its end
        thread.join(timeout_s)
        if thread.is_alive():
            self.dropped += len(self._queue)
            logger.warning("lbw-sim: a mirror did not finish within %g s and is left behind", timeout_s)
        if self.dropped:
            logger.warning("lbw-sim: %d rows were not mirrored; the trace has them", self.dropped)

    def _work(self) -> None:
        stopping = False
        while not stopping:
            # first the question, then the rows: what was offered before `close` is among them
            stopping = self._stop.wait(self._interval_s)
            waiting = [self._queue.popleft() for _ in range(len(self._queue))]
            kept = _thin(waiting, self._rows_per_look)
            self.thinned += len(waiting) - len(kept)
            if rows := [_row(*offered) for offered in kept]:
                for sink in tuple(self._sinks):
                    self._call(sink, "write", rows)
            if not self._sinks:
                self._capacity = 0
                self._queue.clear()
                return
        for sink in tuple(self._sinks):
            self._call(sink, "close")

    def _call(self, sink: Sink, method: str, *arguments: Any) -> None:
        try:
            getattr(sink, method)(*arguments)
        except BaseException as error:
            # SystemExit too: a library that gives up must not take the other sinks with it
            self._sinks.remove(sink)
            logger.warning(
                "lbw-sim: %s no longer mirrors this run: %s: %s", type(sink).__name__, type(error).__name__, error
            )

    def _forget(self) -> None:
        """In a forked child: its parent has the thread, and the queue's rows."""
        self._thread = None
        self._capacity = 0
        self._queue.clear()


_mirrors: weakref.WeakSet[Mirror] = weakref.WeakSet()


def _forget_in_child() -> None:
    for mirror in list(_mirrors):
        mirror._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _thin(waiting: list[_Offered], most: float) -> list[_Offered]:
    """At most so many of them: of each stretch the last row among those with the worst news."""
    if len(waiting) <= most:
        return waiting
    each = math.ceil(len(waiting) / most)

    def news(offered: _Offered) -> tuple[bool, float, int]:
        step, _, decision, _, _ = offered
        return decision.regime in UNSAFE_REGIMES, -decision.scale, step

    return [max(waiting[start : start + each], key=news) for start in range(0, len(waiting), each)]


def _row(step: int, telemetry: Telemetry, decision: Decision, effective_lr: float, time_s: float) -> MirrorRow:
    values = {
        "lbw/loss": float(telemetry.loss),
        "lbw/effective_lr": float(effective_lr),
        "lbw/regime": float(decision.regime),
        "lbw/scale": float(decision.scale),
        "lbw/energy": float(decision.energy),
    }
    if telemetry.nonfinite != 1.0 and math.isnan(values["lbw/loss"]):
        del values["lbw/loss"]
    return MirrorRow(int(step), time_s, values)


class TensorBoardSink:
    """Scalars `lbw/…` into TensorBoard, at the guard's own step."""

    def __init__(self, writer: Any) -> None:
        """`writer`: a `SummaryWriter`, which stays its owner's to close, or a folder for one of its own.

        Raises LiveError when a folder is given and tensorboard is not installed.
        """
        self._writer: Any = None if isinstance(writer, (str, Path)) else writer
        self._folder = writer
        self._own = self._writer is None
        if self._own:
            _require("tensorboard", "TensorBoardSink")

    def write(self, rows: Sequence[MirrorRow]) -> None:
        """Add one scalar per value."""
        if self._writer is None:
            # here, in the mirror's thread: this import takes a second
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for row in rows:
            for name, value in row.values.items():
                self._writer.add_scalar(name, value, row.step, walltime=row.time_s)
        self._writer.flush()

    def close(self) -> None:
        """Close the writer when it is this sink's own."""
        if self._own and self._writer is not None:
            self._writer.close()


class WandbSink:
    """Metrics `lbw/…` into Weights & Biases, on an axis `lbw/step` of their own.

    By default they go to a second run beside the user's, named `…-lbw`, in the same project and group. W&B counts one
    step per `log` call of a run, and throws away rows whose `step=` lies below that count: a mirror that logs into the
    user's run would cost a user who passes `step=` his own metrics (measured with wandb 0.31: all of them), and
    `define_metric` does not prevent that. `commit=False` would put the guard's numbers into rows that the user has yet
    to finish. `own_run=False` logs into the user's run all the same: for users who never pass `step=`.
    """

    def __init__(self, run: Any, *, own_run: bool = True) -> None:
        """`run`: what `wandb.init` returned. Raises LiveError when it is no such thing."""
        if not all(callable(getattr(run, name, None)) for name in ("log", "define_metric")):
            raise LiveError(f"WandbSink: {type(run).__name__} is not a W&B run; give what wandb.init() returned")
        self._users = run
        self._own = flag(own_run, "WandbSink: own_run")
        self._run: Any = None

    def write(self, rows: Sequence[MirrorRow]) -> None:
        """Log one row each."""
        if self._run is None:
            self._run = self._beside() if self._own else self._users
            self._run.define_metric("lbw/step")
            self._run.define_metric("lbw/*", step_metric="lbw/step")
        for row in rows:
            self._run.log({"lbw/step": row.step, **row.values})

    def close(self) -> None:
        """Finish the run when it is this sink's own."""
        if self._own and self._run is not None:
            self._run.finish()

    def _beside(self) -> Any:
        import wandb

        users = self._users
        return wandb.init(
            reinit="create_new",  # neither ends the user's run nor becomes `wandb.run`
            project=users.project or None,
            entity=users.entity or None,
            group=users.group or users.id,
            job_type="lbw",
            name=f"{users.name or users.id}-lbw",
            id=f"{users.id}-lbw",
            resume="allow",
            mode="offline" if users.settings.mode == "offline" else None,
            dir=users.settings.root_dir,
            settings=wandb.Settings(console="off", x_disable_stats=True, silent=True),
        )


class TrackioSink:
    """Metrics `lbw/…` into trackio, in a run of their own.

    A run of its own, because a step logged into the user's run would move the number that trackio gives to his next
    row.
    """

    def __init__(self, project: str, name: str, **options: Any) -> None:
        """`project`: usually the user's; `name`: of the run to make, `<his>-lbw` say; `options`: for `trackio.init`.

        Raises LiveError when trackio is not installed.
        """
        _require("trackio", "TrackioSink")
        self._options = {"project": project, "name": name, "resume": "allow", "embed": False, **options}
        self._run: Any = None

    def write(self, rows: Sequence[MirrorRow]) -> None:
        """Log one row each."""
        if self._run is None:
            import trackio

            # a context of its own: `trackio.log` of the user goes on to mean his run
            self._run = contextvars.Context().run(trackio.init, **self._options)
        for row in rows:
            self._run.log(dict(row.values), step=row.step)

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()


def _require(package: str, who: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise LiveError(f"{who} needs {package}, which is not installed: pip install {package}")
