"""A guard in flight: what was measured, what is decided and done, and one row of it per training step.

It never raises into the training loop: a fault of the guard or of the recorder grounds it (scale 1 from there on), is
logged once and stands in the trace. It reads no clock to decide, and with a delay it never waits for a device. When a
step begins and ends, `hooks` tells it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import logging
import time
import weakref
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, NoReturn, Self, SupportsFloat

import torch

from lbw_sim.errors import LiveError
from lbw_sim.guard import GuardSpec, GuardState, state_from_data, state_to_data
from lbw_sim.live.hooks import Act, StepHooks
from lbw_sim.live.mailbox import FOUND_INF, Letter, Mail, overflowed, telemetry_of
from lbw_sim.live.probing import Probes
from lbw_sim.live.ranks import DISAGREEMENT, FAULTS, Group, Ranks, decide_together, refuse_together
from lbw_sim.live.sinks import Mirror, Sink
from lbw_sim.live.snapshots import Snapshots
from lbw_sim.notebook import facts
from lbw_sim.trace import Recorder, collect
from lbw_sim.trace.provenance import Fact
from lbw_sim.trace.recovery import living_writers
from lbw_sim.trace.schema import SCALER_OVERFLOW, columns
from lbw_sim.values import UNSAFE_REGIMES, Decision, Posture, Reason, Regime, Telemetry, nan
from lbw_sim.wording import counted

logger = logging.getLogger("lbw_sim")

Mode = Literal["shadow", "active"]

_MANY_LOSSES, _SOME_LOSSES = 1000, 10
"""Observed without any step, so that something is wrong: in mid-run, when gradients may be accumulated; at the end."""
attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
"""Every optimizer that has a guard now."""


def _close(guard: weakref.ref[LiveGuard]) -> None:
    live = guard()
    if live is not None:
        live.close()


class _Row(NamedTuple):
    """A step that was decided; its row is not written yet."""

    now: Telemetry
    mail: Mail
    decision: Decision
    attempt: int
    elapsed_s: float
    scale: float
    """Factor that was really applied."""
    skipped: bool
    rolled_back_to: int
    overflow: bool
    """The gradient scaler dropped this step; with a delay that is not known yet."""
    event: str


class LiveGuard:
    """What `attach` returns. Also a context manager, which closes it."""

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        spec: GuardSpec,
        *,
        trace: str | Path | None,
        run_id: str | None,
        mode: Mode,
        probes: Probes,
        snapshots: Snapshots | None,
        scaler: torch.amp.GradScaler | None,
        process_group: Group,
        mirror: Sequence[Sink],
        provenance: Mapping[str, Fact] | None,
    ) -> None:
        """Everything that may be refused. It touches no optimizer: `take_off` does."""
        self.spec = spec
        self.mode = mode
        self.run_id = run_id or f"run-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        self.step = 0
        """Number of the step that comes next: updates in the lineage of the present weights."""
        self.grounded: str | None = None
        """Why the guard no longer acts; None while it flies."""
        self._guard = spec.build()
        own = self._guard.extra_channels
        self._channels = own + tuple(c for c in probes.channels if c not in (*own, "grad_norm", "update_norm"))
        columns(self._channels)
        self._own_channels = len(own)
        if silent := [channel for channel in own if channel not in probes.channels]:
            logger.warning(
                "lbw-sim: guard %r reads %s, and no probe delivers that: unless the loop passes it to observe(), it is "
                "no evidence, and what depends on it never happens",
                spec.name, ", ".join(silent),
            )  # fmt: skip
        self._probes = probes
        self._snapshots = snapshots
        self._group = process_group
        self._ranks = None
        if decide_together(process_group):
            self._ranks = Ranks(process_group, ("grad_norm", "update_norm", FOUND_INF, *self._channels))
            if snapshots is not None and snapshots.in_checkpoints:
                raise LiveError(
                    "Snapshots(in_checkpoints=True) is for one rank: each rank holds another part of the ring, and a "
                    "checkpoint keeps the guard's memory of one. Leave the ring out: it fills again after a resumption"
                )
        self._optimizers = list(optimizers)
        self._hooks = StepHooks(
            optimizers, self.run_id, begin=self._begin_step, end=self._end_step, observe=self.observe,
            announced=lambda: not self._mail.empty, fault=self.ground,
        )  # fmt: skip
        self._state = self._guard.init()
        self._before = self._guard.not_yet
        self._decision = Decision(int(Regime.WARMUP), int(Posture.HOLD), 1.0, 0.0, int(Reason.NONE))
        self._late = self._guard.delay_steps > 0
        self._mail = Mail()
        self._batch: object | None = None
        self._event = ""
        self._attempt = 0
        self._row: _Row | None = None
        self._letter: Letter | None = None
        """The numbers of the row that is not written yet, on their way; with a delay only."""
        self._trouble: Exception | None = None
        self._unknown: set[str] = set()
        self._started_s = time.perf_counter()
        self._fault_reason = int(Reason.GUARD_FAULT)
        self._alone = False
        """The ranks stopped deciding together; what this one measures is not what they would have seen."""
        self._closed = False
        self._folder: Path | None = None
        first = self._optimizers[0].param_groups[0]["params"][0]
        self._provenance = {
            **collect(device=str(first.device), optimizer="+".join(type(o).__name__ for o in optimizers)),
            **(provenance or {}),
        }
        self._recorder: Recorder | None = None
        self._sinks = mirror
        self._mirror: Mirror | None = None
        if trace is not None and (self._ranks is None or self._ranks.records):
            # as it is now: a loop may change the working folder before its first step
            self._folder = Recorder.check(trace, self.run_id, self._provenance)
        self._scaler = scaler

    def take_off(self) -> None:
        """Put the hooks on, now that nobody refuses; `attach` calls it."""
        if self._sinks and (self._ranks is None or self._ranks.records):
            self._mirror = Mirror(self._sinks)
        self._hooks.put_on(self._scaler)
        attached.update(self._optimizers)
        # weakly: a sweep that throws its optimizers away must not keep every model of it to its end
        self._at_exit = functools.partial(_close, weakref.ref(self))
        atexit.register(self._at_exit)

    def __del__(self) -> None:
        """Nobody closed it, and nobody can reach it any more.

        Python comes here in the middle of anything, an import that pyarrow waits for under a lock, say: so Parquet is
        left to the next reader.
        """
        if "_at_exit" in self.__dict__:
            self._close(leave_journal=True)

    def __copy__(self) -> Self:
        """Itself: a second one would close the recording of the first."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Itself, on the optimizer that it is on: for copies of a model that holds it, as averages of weights make."""
        return self

    def __reduce__(self) -> NoReturn:
        raise LiveError("a live guard is not pickled, nor what holds it: keep its state_dict() in checkpoints")

    def __repr__(self) -> str:
        state = f"grounded: {self.grounded}" if self.grounded else f"scale {self._decision.scale:.3g}"
        return f"LiveGuard({self.spec.name!r}, {self.mode}, run_id={self.run_id!r}, step {self.step}, {state})"

    def _repr_html_(self) -> str:
        """For notebooks: what it is and what it last decided."""
        last = self._decision
        rows: list[tuple[str, object]] = [
            ("guard", self.spec.name), ("fingerprint", self.spec.fingerprint), ("mode", self.mode),
            ("steps", f"{self.step:,}"), ("regime", Regime(last.regime).name), ("posture", Posture(last.posture).name),
            ("scale", f"{last.scale:.3g}, applied {self.applied_scale:.3g}"),
            ("control energy so far", f"{last.energy:.3g}"), ("last word", Reason(last.reason).name),
            ("state", f"grounded: {self.grounded}" if self.grounded else "closed" if self._closed else "flying"),
        ]  # fmt: skip
        return facts(f"live guard of run {self.run_id}", rows)

    @property
    def decision(self) -> Decision:
        """The decision of the last step."""
        return self._decision

    @property
    def applied_scale(self) -> float:
        """Factor that the last step's learning rate really got; 1 in shadow mode, 0 for a step that was dropped."""
        act = self._hooks.act if self.grounded is None else Act()
        return 0.0 if act.skip else act.scale

    @property
    def cost_us(self) -> dict[str, float]:
        """Mean time on the training thread, µs a step: of each probe, and of the snapshots."""
        steps = max(1, self.step)
        taken = {"Snapshots": 1e6 * self._snapshots.seconds / steps} if self._snapshots is not None else {}
        return self._probes.cost_us | taken

    def observe(
        self,
        loss: SupportsFloat,
        *,
        tokens: SupportsFloat | None = None,
        grad_norm: SupportsFloat | None = None,
        batch: object | None = None,
        **channels: SupportsFloat,
    ) -> None:
        """Tell the guard about the coming step: after `backward`, before `optimizer.step()`.

        `loss`: mean training loss of the batch, nats, a number or a tensor of one element. Call once per micro-batch
        when gradients are accumulated: the step's loss is their mean weighted by `tokens`. `grad_norm`: norm of the
        whole gradient before clipping (what `clip_grad_norm_` returns). `batch`: handed on to the probes. Further
        channels by the names that the guard's sensor reads. Never raises: what cannot be read grounds the guard.
        """
        if self._closed or self._hooks.removed:
            return
        try:
            self._mail.post_loss(loss, tokens)
            if self._mail.micro_batches == _MANY_LOSSES:
                self._tell_unstepped()
            if grad_norm is not None:
                self._mail.post("grad_norm", grad_norm)
            if batch is not None:
                self._batch = batch
            for name, value in channels.items():
                if name in self._channels:
                    self._mail.post(name, value)
                elif name not in self._unknown:
                    self._unknown.add(name)
                    logger.warning(
                        "lbw-sim: observe() got channel %r, which guard %r does not read and no probe declares; it is "
                        "left out. Channels: %s",
                        name, self.spec.name, ", ".join(("loss", "tokens", "grad_norm", *self._channels)),
                    )  # fmt: skip
        except Exception as error:
            self.ground(error)

    def _tell_unstepped(self) -> None:
        """A guard that watches nothing must not look like one that sees nothing wrong."""
        if not self._hooks.began:
            named = " or ".join(type(optimizer).__name__ for optimizer in self._optimizers)
            logger.warning(
                "lbw-sim: run %s: %d losses were observed and no step of %s was seen, so nothing is decided or "
                "recorded. Is it another optimizer that steps, one inside of it say? Attach to the one whose step() "
                "is called", self.run_id, self._mail.micro_batches, named,
            )  # fmt: skip

    def mark(self, event: str) -> None:
        """Write a word (24 ASCII characters at most) into the row of the coming step: an injected fault, an epoch.

        `grad_scaler_overflow` is the recorder's own word, for a step that the gradient scaler dropped: as a mark it is
        left out, and the log says so.
        """
        if event == SCALER_OVERFLOW:
            logger.warning(
                "lbw-sim: run %s: mark(%r) is left out: the recorder writes that word itself, for a step that the "
                "gradient scaler dropped. Choose another one", self.run_id, event,
            )  # fmt: skip
            return
        self._event = str(event)  # an epoch's number, most likely

    def state_dict(self) -> dict[str, Any]:
        """The guard's memory as plain numbers and strings: goes into any checkpoint, loads with `weights_only`.

        Take it between steps. With `Snapshots(in_checkpoints=True)` it also holds the ring.
        """
        self._settle_safely()
        return {
            "fingerprint": self.spec.fingerprint,
            "step": self.step,
            "guard": state_to_data(self._state),
            "before": state_to_data(self._before),
            "snapshots": self._snapshots.state_dict() if self._snapshots is not None else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where a checkpoint left off; before the first step. The trace gets a new segment.

        Raises LiveError when the checkpoint is another guard's, or when this guard has already decided a step, and
        keeps the memory that it had. Where ranks decide together all of them call it, and what one refuses all refuse,
        also when they were given different memories.
        """
        refusal: Exception | None = None
        facts: dict[str, object] | None = None
        try:
            guard, before, step = self._remembered(state)
            facts = {"step": step, "memory": hashlib.sha256(repr(state["guard"]).encode()).hexdigest()[:16]}
        except Exception as error:
            refusal = error
        if self._ranks is not None:
            outcome = "no rank goes on from its checkpoint"
            refuse_together(self._group, facts, refusal, outcome=outcome, given="memories")
        if refusal is not None:
            raise refusal
        self._state, self._before, self.step = guard, before, step

    def _remembered(self, state: Mapping[str, Any]) -> tuple[GuardState, Telemetry, int]:
        """What a checkpoint holds; the ring, which one rank only can keep there, is taken over at once."""
        if self._recorder is not None or self.step > 0:
            raise LiveError("load_state_dict() comes before the first step: this guard has already decided one")
        if state.get("fingerprint") != self.spec.fingerprint:
            raise LiveError(
                f"the checkpoint belongs to guard {state.get('fingerprint')!r} and this one is "
                f"{self.spec.fingerprint!r}: its memory would mean something else"
            )
        guard = state_from_data(self._guard.init(), state["guard"])
        before = state_from_data(self._guard.not_yet, state["before"])
        step = int(state["step"])
        if self._snapshots is not None:
            self._snapshots.load_state_dict(state.get("snapshots", {}))
        return guard, before, step

    def hold(self, snapshots: Snapshots) -> None:
        """Take snapshots in shadow mode too, for another guard that may act from here on: on the trunk of a fork."""
        self._snapshots = snapshots

    def close(self) -> None:
        """Write the last row, turn the journal into Parquet, take the guard off the optimizer. Never raises."""
        self._close(leave_journal=False)

    def _close(self, *, leave_journal: bool) -> None:
        if self._closed:
            return
        self._settle_safely()
        if self._mail.micro_batches >= _SOME_LOSSES:
            self._tell_unstepped()
        self._closed = True
        self.detach()
        atexit.unregister(self._at_exit)
        try:
            if costs := self.cost_us:
                told = ", ".join(f"{name} {cost:.0f}" for name, cost in costs.items())
                logger.info("lbw-sim: run %s: µs a step on the training thread: %s", self.run_id, told)
            if self._mirror is not None:
                self._mirror.close()
            if self._recorder is not None:
                closed = self._recorder.leave() if leave_journal else self._recorder.close()
                if closed.lost_rows:
                    told = counted(closed.lost_rows, "row was", "rows were")
                    logger.warning("lbw-sim: run %s: %s not recorded", self.run_id, told)
                failure = self._recorder.failure
                if failure is not None and failure not in (self.grounded or ""):
                    logger.warning("lbw-sim: run %s: %s", self.run_id, failure)
        except Exception as error:
            self.ground(error, everywhere=False)

    def detach(self) -> None:
        """Take the guard off the optimizer; the learning rate is its owner's again. Never raises.

        Called from inside a step, by somebody's hook say, it leaves its own hooks behind, which then do nothing.
        """
        try:
            self._hooks.remove()
        except Exception as error:
            self.ground(error, everywhere=False)
        attached.difference_update(self._optimizers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin_step(self, found_inf: SupportsFloat | None) -> Act:
        """Read what is known, let the guard step, and say what is to be done."""
        mail, self._mail = self._mail, Mail()
        if found_inf is not None:
            mail.post(FOUND_INF, found_inf)
        batch, self._batch = self._batch, None
        event, self._event = self._event, ""
        if self._ranks is not None and self._ranks.joining():
            self._part(self._ranks)
        if self._alone:
            mail = Mail()
        if self._probes.channels:
            for channel, value in self._probes.before_step(self.step, batch).items():
                mail.post(channel, value)
        # before the numbers leave: the other ranks hear with them that this one cannot record
        if self._recorder is None and self._folder is not None:
            folder, self._folder = self._folder, None
            try:
                self._recorder = self._open_recorder(folder)
            except Exception as error:
                self.ground(error)
        self._settle()
        step, lr = self.step, self._hooks.lr
        if self._late:
            now, overflow = Telemetry(step, lr=lr), False
        else:
            numbers = self._heed(mail.send(self._ranks).read())
            now, overflow = telemetry_of(step, lr, numbers, self._channels), overflowed(numbers)
        decision = self._decided(now)
        acts = self.mode == "active" and self.grounded is None
        skipped = acts and decision.posture == Posture.SKIP
        rolled_back_to = -1
        if self._snapshots is not None and self.grounded is None:
            if acts and decision.posture == Posture.ROLLBACK:
                back = self._snapshots.roll_back(self.step, decision.rollback_steps, self._optimizers)
                if self._snapshots.failure is not None:
                    self.ground(self._snapshots.failure)
                rolled_back_to = -1 if back is None else back
                # the gradient belongs to the weights that were given up
                skipped = back is not None
            elif self.step % self._snapshots.every_steps == 0 and decision.regime not in UNSAFE_REGIMES:
                self._take_snapshot()
        scale = decision.scale if acts else 1.0
        elapsed_s = time.perf_counter() - self._started_s
        self._row = _Row(now, mail, decision, self._attempt, elapsed_s, scale, skipped, rolled_back_to, overflow, event)
        # counted here, not after the update: an update that raises has had its decision, and its row
        self.step += 1
        if rolled_back_to >= 0:
            self.step = rolled_back_to
            self._attempt += 1
        return Act(scale, skipped)

    def _decided(self, now: Telemetry) -> Decision:
        if self.grounded is None:
            try:
                self._state, self._decision = self._guard.step(
                    self._state, self._guard.seen(self._own(now), self._before)
                )
            except Exception as error:
                self.ground(error, everywhere=False)
        if self._ranks is not None:
            self._ranks.agree(self._decision)
        return self._decision

    def _take_snapshot(self) -> None:
        assert self._snapshots is not None
        try:
            self._snapshots.take(self.step, self._optimizers)
        except Exception as error:
            # out of memory, most likely: without this snapshot the ranks would go back to different steps
            self.ground(error)

    def _end_step(self) -> None:
        """The weights have been updated: measure that, and with a delay send the step's numbers on their way."""
        # a closure that is evaluated several times a step tells of it several times: the first one counted
        if not self._mail.empty:
            self._mail, self._batch = Mail(), None
        row = self._row
        if row is None:
            return
        measured = self._probes.after_step(row.now.step) if self._probes.channels else {}
        if self._late:
            for channel, value in measured.items():
                row.mail.post(channel, value)
            self._letter = row.mail.send(self._ranks)
            return
        if "update_norm" in measured:
            last = Mail()
            last.post("update_norm", measured["update_norm"])
            # without a delay this cannot travel with the step's other numbers, which were needed before the update
            norm = last.send(self._ranks).read().get("update_norm", nan)
            self._row = row._replace(now=row.now._replace(update_norm=norm))
        self._settle()

    def _settle_safely(self) -> None:
        try:
            self._settle()
        except Exception as error:
            # the last numbers never came from the device: their row is lost, the run is not
            self.ground(error, everywhere=False)

    def _settle(self) -> None:
        """Complete and write the last decided row; with a delay this is where its numbers are read."""
        row, self._row = self._row, None
        if row is None:
            return
        now, overflow = row.now, row.overflow
        if self._late:
            letter, self._letter = self._letter, None
            # unsent when the update raised: then the other ranks know nothing of this step either
            numbers = self._heed((letter or row.mail.send()).read())
            now, overflow = telemetry_of(now.step, now.lr, numbers, self._channels), overflowed(numbers)
        self._before = self._own(now)
        dropped = row.skipped or overflow
        effective_lr = 0.0 if dropped else now.lr * row.scale
        if self._mirror is not None:
            self._mirror.offer(now.step, now, row.decision, effective_lr)
        if self._recorder is None:
            return
        safe = self._recorder.append(
            now,
            row.decision,
            elapsed_s=row.elapsed_s,
            effective_lr=effective_lr,
            skipped=dropped,
            rolled_back_to=row.rolled_back_to,
            attempt=row.attempt,
            event=SCALER_OVERFLOW if overflow else row.event,
        )
        if not safe and not self.grounded:
            self._fault_reason = int(Reason.RECORDER_FAULT)
            self.ground(LiveError(f"the trace cannot be written: {self._recorder.failure}"))

    def _own(self, now: Telemetry) -> Telemetry:
        """The telemetry as the guard knows it: without the channels that only the trace holds."""
        own = self._own_channels
        return now if len(now.extra) == own else now._replace(extra=now.extra[:own])

    def _heed(self, numbers: dict[str, float]) -> dict[str, float]:
        """Look at what the other ranks sent along about themselves."""
        if self._ranks is None:
            return numbers
        if numbers.get(FAULTS, 0.0) > 0.0:
            self.ground(self._trouble or LiveError("the guard of another rank is in trouble"), everywhere=False)
        if numbers.get(DISAGREEMENT, 0.0) != 0.0:
            self.ground(LiveError("the ranks decided differently"), everywhere=False)
        return numbers

    def _part(self, ranks: Ranks) -> None:
        """Stop deciding with the other ranks, which do the same here."""
        self._settle_safely()
        self._ranks, self._alone = None, True
        self.ground(
            LiveError(
                f"the {ranks.size} ranks are inside of a join(), where they may take unequally many steps, and to "
                "decide together takes equally many. Attach with process_group=None, so that each rank decides alone"
            )
        )

    def _open_recorder(self, folder: Path) -> Recorder:
        recorder = Recorder.open(
            folder,
            self.run_id,
            spec=self.spec,
            mode=self.mode,
            provenance=self._provenance,
            extra_channels=self._channels,
            guard_state={"guard": state_to_data(self._state), "before": state_to_data(self._before)},
        )
        with contextlib.suppress(OSError):
            if living_writers(recorder.path.parent) > 1:
                logger.warning(
                    "lbw-sim: run %s in %s is being recorded by another guard too, here or in another process. Whoever "
                    "reads it will take the later one for a resumption that replaces the rows of the other: give each "
                    "its own run_id", self.run_id, folder,
                )  # fmt: skip
        return recorder

    def ground(self, error: Exception, *, everywhere: bool = True) -> None:
        """From here on scale 1. Must not raise, whatever happened.

        `everywhere`: over several ranks, all of them are to stop acting at the same step, so this one only tells that
        it is in trouble and is grounded with the others. Without, it is: they know already, or cannot be told.
        """
        if self.grounded is not None:
            return
        if everywhere and self._ranks is not None:
            self._trouble = self._trouble or error
            self._ranks.trouble = True
            return
        self.grounded = f"{type(error).__name__}: {error}"
        self._decision = self._decision._replace(
            posture=int(Posture.HOLD), scale=1.0, reason=self._fault_reason, rollback_steps=0
        )
        # what cannot be put back now is put back before the next step
        with contextlib.suppress(Exception):
            self._hooks.restore()
        logger.warning(
            "lbw-sim: guard %r on run %s is grounded at step %d and no longer acts: %s",
            self.spec.name, self.run_id, self.step, self.grounded,
        )  # fmt: skip
