"""A guard attached to a torch optimizer: `observe` before the step, hooks around it, one row after it.

It never raises into the training loop: a fault of the guard or of the recorder grounds it (scale 1 from there on), is
logged once and stands in the trace. It does not see other ranks, gradient scalers or compiled steps yet.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import time
import weakref
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, SupportsFloat

import torch

from lbw_sim.errors import LiveError
from lbw_sim.guard import GuardSpec, state_from_data, state_to_data
from lbw_sim.live.actuator import Actuator
from lbw_sim.live.mailbox import Mail
from lbw_sim.trace import Recorder, collect
from lbw_sim.values import Decision, Posture, Reason, Regime, Telemetry, nan

logger = logging.getLogger("lbw_sim")
_attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


def attach(
    optimizer: torch.optim.Optimizer,
    guard: GuardSpec | str | Path = "default",
    *,
    trace: str | Path | None = None,
    run_id: str | None = None,
    mode: Literal["shadow", "active"] = "shadow",
    unproven: bool = False,
    provenance: Mapping[str, str | int | float | None] | None = None,
) -> LiveGuard:
    """Put a guard on an optimizer and, when `trace` names a folder, record every step there.

    `guard` is a spec, a preset name or the path of a TOML file. In `shadow` mode (the default) the guard decides and
    records and never acts: training is bit for bit what it would be without it. In `active` mode it scales the learning
    rate and skips updates; as no back-test report can be attached yet, that takes `unproven=True`, which is recorded.
    `provenance` adds facts about the run (a seed, say) to the trace; `{"host": None}` leaves the host name out.

    Raises LiveError when the optimizer is guarded already or steps more than once per call, or when the guard asks for
    what cannot be done here; SpecError for a bad spec; TraceError when `trace` cannot be written.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> with attach(optimizer, "default") as live:
    ...     loss = model(torch.ones(4, 2)).square().mean()
    ...     loss.backward()
    ...     live.observe(loss)
    ...     optimizer.step()
    >>> live.step, live.decision.scale
    (1, 1.0)
    """
    spec = guard if isinstance(guard, GuardSpec) else GuardSpec.load(guard)
    if mode not in ("shadow", "active"):
        raise LiveError(f"mode={mode!r} is not 'shadow' or 'active'")
    if mode == "active" and not unproven:
        raise LiveError(
            f"guard {spec.name!r} ({spec.fingerprint}) would act on this run, and nothing here shows that it should: "
            "watch it in shadow mode first, or say unproven=True, which the trace will record"
        )
    rollbacks = spec.tables["envelope"]["max_rollbacks"]
    if rollbacks > 0:
        raise LiveError(
            f"guard {spec.name!r} allows {rollbacks} rollbacks, and this version keeps no snapshots in a live run; "
            "set envelope.max_rollbacks = 0"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise LiveError("LBFGS evaluates its closure several times a step; a guard needs one loss per update")
    if optimizer in _attached:
        raise LiveError(f"this {type(optimizer).__name__} has a guard already; detach that one first")
    return LiveGuard(optimizer, spec, trace=trace, run_id=run_id, mode=mode, provenance=provenance)


class LiveGuard:
    """What `attach` returns. Also a context manager, which closes it."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        spec: GuardSpec,
        *,
        trace: str | Path | None,
        run_id: str | None,
        mode: Literal["shadow", "active"],
        provenance: Mapping[str, str | int | float | None] | None,
    ) -> None:
        self.spec = spec
        self.mode = mode
        self.run_id = run_id or f"run-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
        self.step = 0
        """Steps decided so far: the number of the next one."""
        self.grounded: str | None = None
        """Why the guard no longer acts; None while it flies."""
        self._guard = spec.build()
        self._actuator = Actuator(optimizer)
        self._state = self._guard.init()
        self._before = self._guard.not_yet
        self._decision = Decision(int(Regime.WARMUP), int(Posture.HOLD), 1.0, 0.0, int(Reason.NONE))
        self._late = self._guard.delay_steps > 0
        self._mail = Mail(wait=not self._late)
        self._tokens = nan
        self._event = ""
        self._unwritten: tuple[Telemetry, Mail, Decision, dict[str, Any]] | None = None
        self._started_s = time.perf_counter()
        self._fault_reason = int(Reason.GUARD_FAULT)
        self._closed = False
        self._folder = Path(trace) if trace is not None else None
        self._provenance = {
            **collect(device=str(optimizer.param_groups[0]["params"][0].device), optimizer=type(optimizer).__name__),
            **({"unproven": 1} if mode == "active" else {}),
            **(provenance or {}),
        }
        self._recorder: Recorder | None = None
        if self._folder is not None:
            Recorder.check(self._folder, self.run_id)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_pre_hook(self._before_state_dict),
        ]
        self._optimizer = optimizer
        _attached.add(optimizer)
        atexit.register(self.close)

    def __repr__(self) -> str:
        state = f"grounded: {self.grounded}" if self.grounded else f"scale {self._decision.scale:.3g}"
        return f"LiveGuard({self.spec.name!r}, {self.mode}, run_id={self.run_id!r}, step {self.step}, {state})"

    @property
    def decision(self) -> Decision:
        """The decision of the last step."""
        return self._decision

    def observe(
        self,
        loss: SupportsFloat,
        *,
        tokens: float | None = None,
        grad_norm: SupportsFloat | None = None,
        **channels: SupportsFloat,
    ) -> None:
        """Tell the guard about the coming step: after `backward`, before `optimizer.step()`.

        `loss`: mean training loss of the batch, nats, a number or a tensor of one element. Call once per micro-batch
        when gradients are accumulated: the step's loss is their mean weighted by `tokens`. `grad_norm`: norm of the
        whole gradient before clipping (what `clip_grad_norm_` returns). Further channels by the names that the guard's
        sensor reads. Never raises: what cannot be read grounds the guard.
        """
        if self._closed:
            return
        try:
            self._mail.post_loss(loss, 1.0 if tokens is None else float(tokens))
            if tokens is not None:
                self._tokens = float(tokens) if self._tokens != self._tokens else self._tokens + float(tokens)
            if grad_norm is not None:
                self._mail.post("grad_norm", grad_norm)
            for name, value in channels.items():
                if name not in self._guard.extra_channels:
                    raise LiveError(
                        f"observe() got channel {name!r}, which guard {self.spec.name!r} does not read; it reads loss, "
                        f"tokens, grad_norm{''.join(', ' + extra for extra in self._guard.extra_channels)}"
                    )
                self._mail.post(name, value)
        except Exception as error:
            self._ground(error)

    def mark(self, event: str) -> None:
        """Write a word (24 ASCII characters at most) into the row of the coming step: an injected fault, an epoch."""
        self._event = event

    def state_dict(self) -> dict[str, Any]:
        """The guard's memory as plain numbers and strings: goes into any checkpoint, loads with `weights_only`."""
        self._settle()
        return {
            "fingerprint": self.spec.fingerprint,
            "step": self.step,
            "guard": state_to_data(self._state),
            "before": state_to_data(self._before),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where a checkpoint left off; before the first step. The trace gets a new segment.

        Raises LiveError when the checkpoint is another guard's, or when this guard has already decided a step.
        """
        if self._recorder is not None or self.step > 0:
            raise LiveError("load_state_dict() comes before the first step: this guard has already decided one")
        if state.get("fingerprint") != self.spec.fingerprint:
            raise LiveError(
                f"the checkpoint belongs to guard {state.get('fingerprint')!r} and this one is "
                f"{self.spec.fingerprint!r}: its memory would mean something else"
            )
        self._state = state_from_data(self._guard.init(), state["guard"])
        self._before = state_from_data(self._guard.not_yet, state["before"])
        self.step = int(state["step"])

    def close(self) -> None:
        """Write the last row, turn the journal into Parquet, take the guard off the optimizer. Idempotent."""
        if self._closed:
            return
        try:
            self._settle()
        except Exception as error:
            # the last numbers never came from the device: their row is lost, the run is not
            self._ground(error)
        self._closed = True
        self.detach()
        atexit.unregister(self.close)
        if self._recorder is not None:
            closed = self._recorder.close()
            if closed.lost_rows:
                logger.warning("lbw-sim: run %s: %d rows were not recorded", self.run_id, closed.lost_rows)

    def detach(self) -> None:
        """Take the guard off the optimizer; the learning rate is its owner's again."""
        self._actuator.restore()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        _attached.discard(self._optimizer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        try:
            # an exception inside the last step skipped its post hook
            self._actuator.restore(gradients=False)
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            if closure is None:
                self._decide()
                return None
            # with a closure the loss does not exist yet: decide inside it, after its backward
            if "closure" in kwargs:
                return args, {**kwargs, "closure": self._deciding(closure)}
            return (args[0], self._deciding(closure), *args[2:]), kwargs
        except Exception as error:
            self._ground(error)
            return None

    def _deciding(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def closure_then_decision() -> Any:
            loss = closure()
            if self._mail.empty:
                self.observe(loss)
            try:
                self._decide()
            except Exception as error:
                self._ground(error)
            return loss

        return closure_then_decision

    def _decide(self) -> None:
        """Read what is known, let the guard step, and act on its decision."""
        mail, self._mail = self._mail, Mail(wait=not self._late)
        self._settle()
        now = Telemetry(self.step, lr=self._actuator.lr, tokens=self._tokens)
        if not self._late:
            now = self._filled(now, mail)
        self._tokens = nan
        try:
            if self._recorder is None and self._folder is not None:
                self._recorder = self._open_recorder(self._folder)
            if self.grounded is None:
                self._state, self._decision = self._guard.step(self._state, self._guard.seen(now, self._before))
        except Exception as error:
            self._ground(error)
        decision = self._decision
        acts = self.mode == "active" and self.grounded is None
        skipped = acts and decision.posture == Posture.SKIP
        scale = decision.scale if acts else 1.0
        context = {
            "elapsed_s": time.perf_counter() - self._started_s,
            "effective_lr": 0.0 if skipped else now.lr * scale,
            "skipped": skipped,
            "event": self._event,
        }
        self._event = ""
        self._unwritten = (now, mail, decision, context)
        # counted here, not after the update: an update that raises has had its decision, and its row
        self.step += 1
        if skipped:
            self._actuator.hide_gradients()
        elif scale != 1.0:
            self._actuator.scale(scale)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._actuator.restore()
            if not self._late:
                self._settle()
        except Exception as error:
            self._ground(error)

    def _before_state_dict(self, optimizer: torch.optim.Optimizer) -> None:
        try:
            self._actuator.restore(gradients=False)
        except Exception as error:
            self._ground(error)

    def _settle(self) -> None:
        """Complete and write the last decided row; with a delay this is where its numbers are read."""
        if self._unwritten is None:
            return
        now, mail, decision, context = self._unwritten
        self._unwritten = None
        if self._late:
            now = self._filled(now, mail)
        self._before = now
        if self._recorder is not None and not self._recorder.append(now, decision, **context) and not self.grounded:
            self._fault_reason = int(Reason.RECORDER_FAULT)
            self._ground(LiveError(f"the trace cannot be written: {self._recorder.failure}"))

    def _filled(self, now: Telemetry, mail: Mail) -> Telemetry:
        """Telemetry with the measured numbers in it."""
        numbers = mail.read()
        loss, grad_norm = numbers.get("loss", nan), numbers.get("grad_norm", nan)
        measured = [numbers[name] for name in ("loss", "grad_norm") if name in numbers]
        return now._replace(
            loss=loss,
            grad_norm=grad_norm,
            nonfinite=(0.0 if all(map(math.isfinite, measured)) else 1.0) if measured else nan,
            extra=tuple(numbers.get(name, nan) for name in self._guard.extra_channels),
        )

    def _open_recorder(self, folder: Path) -> Recorder:
        return Recorder.open(
            folder,
            self.run_id,
            spec=self.spec,
            mode=self.mode,
            provenance=self._provenance,
            extra_channels=self._guard.extra_channels,
            guard_state={"guard": state_to_data(self._state), "before": state_to_data(self._before)},
        )

    def _ground(self, error: Exception) -> None:
        """From here on scale 1. Must not raise, whatever happened."""
        if self.grounded is not None:
            return
        self.grounded = f"{type(error).__name__}: {error}"
        self._decision = self._decision._replace(
            posture=int(Posture.HOLD), scale=1.0, reason=self._fault_reason, rollback_steps=0
        )
        # what cannot be put back now is put back before the next step
        with contextlib.suppress(Exception):
            self._actuator.restore()
        logger.warning(
            "lbw-sim: guard %r on run %s is grounded at step %d and no longer acts: %s",
            self.spec.name, self.run_id, self.step, self.grounded,
        )  # fmt: skip
