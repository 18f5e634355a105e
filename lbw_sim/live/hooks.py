"""When a training step begins and ends, as the hooks of its optimizers tell it; and what is done to them in between.

Several optimizers may make one step between them, a step may call its parent class's, a closure may bring the loss
along, an update may raise, a gradient scaler may drop one. All that is sorted out here, so that a guard hears of one
beginning and one end per training step. It decides nothing, and no exception of ours leaves a hook.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, SupportsFloat

import torch
from torch.utils.hooks import RemovableHandle

from lbw_sim.live.actuator import Actuator
from lbw_sim.live.scaler import watch_scaler

logger = logging.getLogger("lbw_sim")

_OPTIMIZER_FILE = inspect.getfile(torch.optim.Optimizer)


class Act(NamedTuple):
    """What is done to every optimizer in one training step."""

    scale: float = 1.0
    """Factor on the learning rate."""
    skip: bool = False
    """The update is dropped."""


class Fault(Protocol):
    """Takes note of an exception; never raises. `everywhere`: the other ranks have to hear of it, and can."""

    def __call__(self, error: Exception, *, everywhere: bool = True) -> None: ...


class StepHooks:
    """Sits on optimizers and makes training steps out of their calls.

    `begin(found_inf)` decides a step and says what is to be done; `found_inf`, not 0 where a gradient scaler found an
    overflow, None where nobody looked. `end()`: every optimizer has ended it. `observe(loss)`: a closure has brought
    the loss. `announced()`: whether anything was measured for the coming step.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> hooks = StepHooks(
    ...     [optimizer], "run", begin=lambda found_inf: Act(scale=0.5), end=lambda: print("ended"), observe=print,
    ...     announced=lambda: True, fault=print)
    >>> hooks.put_on(scaler=None)
    >>> optimizer.step()
    ended
    >>> hooks.remove()
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        run_id: str,
        *,
        begin: Callable[[SupportsFloat | None], Act],
        end: Callable[[], None],
        observe: Callable[[SupportsFloat], None],
        announced: Callable[[], bool],
        fault: Fault,
    ) -> None:
        """Touches no optimizer: `put_on` does. `run_id`: for the log."""
        self._optimizers = list(optimizers)
        self.actuators = {id(optimizer): Actuator(optimizer) for optimizer in optimizers}
        self._first = self.actuators[id(optimizers[0])]
        self._run_id = run_id
        self._begin, self._end = begin, end
        self._observe, self._announced, self._fault = observe, announced, fault
        self.removed = False
        """The optimizers are their owner's again; hooks that could not be taken off do nothing."""
        self.act = Act()
        """Of the step that was begun last."""
        self._stepped: set[int] = set()
        """Optimizers that have begun that step."""
        self._ended: set[int] = set()
        """Of these, the ones that have ended it."""
        self._depth: dict[int, int] = {}
        """Steps of each optimizer that are under way inside each other; left as it was by one that raised."""
        self._overtaken = False
        """It has been said that somebody set a learning rate while it was scaled."""
        self._made_up = False
        """It has been said that an optimizer made up gradients."""
        self._handles: list[RemovableHandle] = []
        self._release_scaler: Callable[[], None] | None = None

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group of the first optimizer, before scaling; see `Actuator.lr`."""
        return self._first.lr

    @property
    def began(self) -> bool:
        """Whether any step has begun since the hooks were put on."""
        return bool(self._stepped)

    def put_on(self, scaler: torch.amp.GradScaler | None) -> None:
        """Put the hooks on the optimizers, and on the gradient scaler where there is one."""
        before, after = _untraced(self._before_step), _untraced(self._after_step)
        for optimizer in self._optimizers:
            at_end = optimizer.register_step_post_hook(after)
            # before everybody else's: a scheduler that somebody's hook steps must not find a scaled learning rate
            for others in [number for number in optimizer._optimizer_step_post_hooks if number != at_end.id]:
                optimizer._optimizer_step_post_hooks[others] = optimizer._optimizer_step_post_hooks.pop(others)
            self._handles += [
                optimizer.register_step_pre_hook(before),
                at_end,
                optimizer.register_state_dict_pre_hook(self._before_state_dict),
            ]
        if scaler is not None:
            self._release_scaler = watch_scaler(scaler, self._optimizers, self._scaler_dropped)

    def remove(self) -> None:
        """Give the optimizers back. From inside a step, by somebody's hook say, the hooks stay and do nothing."""
        self.removed = True
        self.restore()
        if not _within_an_optimizer():
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
        if self._release_scaler is not None:
            self._release_scaler()

    def restore(self) -> None:
        """Put back learning rates and gradients, whatever is under way."""
        for actuator in self.actuators.values():
            actuator.restore()

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.removed:
            return None
        try:
            if self._depth.get(id(optimizer), 0) > 0 and _steps_under_way(optimizer) > 1:
                # a subclass whose step calls its parent's, which has hooks of its own: still the same step
                self._depth[id(optimizer)] += 1
                return None
            self._depth[id(optimizer)] = 1
            # an exception inside the last step skipped its post hook
            self._put_back(optimizer, gradients=False)
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            if closure is None:
                self._take_part(optimizer)
                return None
            # with a closure the loss does not exist yet: decide inside it, after its backward
            if "closure" in kwargs:
                return args, {**kwargs, "closure": self._deciding(optimizer, closure)}
            return (args[0], self._deciding(optimizer, closure), *args[2:]), kwargs
        except Exception as error:
            self._fault(error, everywhere=False)
            return None

    def _deciding(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        decided = False

        def closure_then_decision() -> Any:
            nonlocal decided
            loss = closure()
            try:
                if decided:
                    # a search along the step evaluates it again: still the same step, with new gradients
                    self._hide_again(optimizer)
                    return loss
                if loss is not None and not self._announced() and self._opens_a_step(optimizer):
                    self._observe(loss)
                decided = True
                self._take_part(optimizer)
            except Exception as error:
                self._fault(error, everywhere=False)
            return loss

        return closure_then_decision

    def _opens_a_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this optimizer opens the next step, or takes its part in the one that was begun last."""
        return not self._stepped or id(optimizer) in self._stepped or self._announced()

    def _join(self, optimizer: torch.optim.Optimizer, found_inf: SupportsFloat | None) -> None:
        """Count an optimizer in, with a new step where it opens one."""
        if self._opens_a_step(optimizer):
            self._stepped.clear()
            self._ended.clear()
            self.act = self._begin(found_inf)
        self._stepped.add(id(optimizer))

    def _take_part(self, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer is about to update its parameters."""
        if self.removed:
            return  # by a closure that closed the guard: nobody would put the learning rate back
        # a fused kernel drops the update by itself, after the hooks
        found_inf = getattr(optimizer, "found_inf", None)
        self._join(optimizer, found_inf if isinstance(found_inf, torch.Tensor) else None)
        if self.act.skip:
            self.actuators[id(optimizer)].skip()
        elif self.act.scale != 1.0:
            self.actuators[id(optimizer)].scale(self.act.scale)

    def _hide_again(self, optimizer: torch.optim.Optimizer) -> None:
        if self.act.skip and not self.removed:
            self.actuators[id(optimizer)].hide_gradients()

    def _scaler_dropped(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradient scaler found an overflow and did not call the optimizer."""
        try:
            self._join(optimizer, 1.0)
            self._count_out(optimizer)
        except Exception as error:
            self._fault(error, everywhere=False)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.removed:
            return
        try:
            self._depth[id(optimizer)] -= 1
            if self._depth[id(optimizer)] > 0:
                return
            self._put_back(optimizer)
            self._count_out(optimizer)
        except Exception as error:
            self._fault(error, everywhere=False)

    def _count_out(self, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer has updated its parameters; after the last one the step is over."""
        self._ended.add(id(optimizer))
        if len(self._ended) == len(self._optimizers):
            self._end()

    def _before_state_dict(self, optimizer: torch.optim.Optimizer) -> None:
        try:
            self.actuators[id(optimizer)].restore(gradients=False)
        except Exception as error:
            self._fault(error)

    def _put_back(self, optimizer: torch.optim.Optimizer, *, gradients: bool = True) -> None:
        found = self.actuators[id(optimizer)].restore(gradients=gradients)
        if found.made_up and not self._made_up:
            self._made_up = True
            logger.warning(
                "lbw-sim: run %s: %s made up gradients in a step that was to be skipped, where parameters had none: "
                "the weights stayed, its own state went on. A step() that passes over them, as torch's do, skips whole",
                self._run_id, type(optimizer).__name__,
            )  # fmt: skip
        if found.overtaken and not self._overtaken:
            self._overtaken = True
            logger.warning(
                "lbw-sim: run %s: while the guard held the learning rate at %.3g times its own, somebody set another "
                "one, which stays: a scheduler that was stepped after the optimizer's step had raised, or by a hook of "
                "its own. One that multiplies what it finds has multiplied the scaled one; look at param_groups",
                self._run_id, self.act.scale,
            )  # fmt: skip


def _untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, for a step that may be compiled: traced into it, every new scale would compile it anew."""
    disabled: Callable[..., Any] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]

    def call(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # always the disabled form would cost every uncompiled step some microseconds
        return (disabled if torch.compiler.is_dynamo_compiling() else hook)(optimizer, args, kwargs)

    return call


def _within_an_optimizer() -> bool:
    """Whether some caller is torch's Optimizer, which may be going over its hooks: taking one away would break that."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == _OPTIMIZER_FILE:
            return True
        frame = frame.f_back
    return False


def _steps_under_way(optimizer: torch.optim.Optimizer) -> int:
    """How many calls of this optimizer's `step` are on the stack, by torch's wrapper of it."""
    found, frame = 0, inspect.currentframe()
    while frame is not None:
        found += frame.f_code.co_filename == _OPTIMIZER_FILE and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return found
