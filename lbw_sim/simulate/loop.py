"""The closed loop as one pure step: plant, telemetry, guard, action; and what is kept of it.

The same step runs as plain Python and is read by the kernel generator. It draws nothing: learning rate and noise of
every step are handed in. A rollback cannot be simulated, because a plant keeps no snapshots: a rollout ends there as
`cut`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lbw_sim.guard import Guard
from lbw_sim.params import param
from lbw_sim.values import Action, Measured, Noise, Posture, Telemetry, nan

COMPLETED, DIVERGED, CUT = 0, 1, 2
ENDED = ("completed", "diverged", "cut")
"""How a rollout ended, by code. `diverged`: the loss went out of bounds. `cut`: we stopped watching."""
_MOST = 1e300


class Plant(Protocol):
    """A model of training. State is a NamedTuple of plain numbers."""

    def init(self) -> Any: ...
    def step(self, state: Any, action: Action, noise: Noise, /) -> tuple[Any, Measured]: ...


class StepInputs(NamedTuple):
    """What one step is handed."""

    lr: float
    """Scheduled learning rate."""
    batch: float
    """`Noise.batch`."""
    walk: float
    """`Noise.walk`."""


class StepOutputs(NamedTuple):
    """What one step shows, for those who want every row."""

    loss: float
    expected_loss: float
    effective_lr: float
    scale: float
    regime: int
    posture: int
    dead: float


class LoopState(NamedTuple):
    """The whole memory of a rollout."""

    guard: Any
    plant: Any
    step: int
    loss: float
    """Of the last step, as the fields down to `skipped`."""
    grad_norm: float
    nonfinite: float
    lr: float
    effective_lr: float
    skipped: float
    ended: int
    """Index into `ENDED`; whatever is summed up below stops when it is not 0."""
    steps: int
    """Steps until the end."""
    final_loss: float
    """Expected loss of the last step."""
    dead: float
    energy: float
    damped_steps: int
    skipped_steps: int
    lowest_scale: float
    above_steps: int
    """Steps whose effective learning rate lies above the calibrated range; as the next two."""
    below_steps: int
    late_steps: int
    """Steps beyond the longest run of the calibration."""
    sudden_steps: int
    """Steps whose effective learning rate changed more suddenly than in any run of the calibration."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Guard and plant, and the range for which the plant was calibrated."""

    guard: Guard
    plant: Plant
    lowest_lr: float = param(0.0, low=0.0, high=_MOST, doc="lowest effective learning rate of the calibration")
    highest_lr: float = param(_MOST, low=0.0, high=_MOST, doc="highest")
    longest_steps: float = param(_MOST, low=0.0, high=_MOST, doc="steps of its longest run")
    sharpest_rise: float = param(_MOST, low=1.0, high=_MOST, doc="largest factor by which it rose from step to step")
    sharpest_fall: float = param(_MOST, low=1.0, high=_MOST, doc="largest factor by which it fell")
    stop_outside: int = param(0, low=0, high=1, doc="1: a rollout that leaves the calibrated range is cut there")

    def init(self) -> LoopState:
        """Before the first step."""
        return LoopState(
            self.guard.init(), self.plant.init(), 0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0,
            COMPLETED, 0, 0.0, 0.0, 0.0, 0, 0, 1.0, 0, 0, 0, 0,
        )  # fmt: skip

    def step(self, state: LoopState, inputs: StepInputs) -> tuple[LoopState, StepOutputs]:
        """One step of training: the batch is measured, the guard decides, the action is ready for the next step."""
        plant, measured = self.plant.step(
            state.plant, Action(state.effective_lr, state.skipped), Noise(inputs.batch, inputs.walk)
        )
        now = Telemetry(state.step, measured.loss, inputs.lr, measured.grad_norm, nan, nan, measured.nonfinite)
        before = Telemetry(state.step - 1, state.loss, state.lr, state.grad_norm, nan, nan, state.nonfinite)
        if state.step == 0:
            before = Telemetry(-1)
        guard, decision = self.guard.step(state.guard, self.guard.seen(now, before))
        skipped = 1.0 if decision.posture == Posture.SKIP else 0.0
        effective_lr = inputs.lr * decision.scale
        outputs = StepOutputs(
            measured.loss, measured.expected_loss, effective_lr, decision.scale, decision.regime, decision.posture,
            measured.dead,
        )  # fmt: skip

        ended = state.ended
        watched = 1 if ended == COMPLETED else 0
        # a skipped step is no learning rate of 0: nothing moves
        acting = watched if skipped == 0.0 else 0
        above = acting if effective_lr > self.highest_lr else 0
        below = acting if effective_lr < self.lowest_lr else 0
        late = watched if state.step >= self.longest_steps else 0
        # the last rate with which a step was taken
        last_lr = state.effective_lr
        sudden = 0
        if last_lr > 0.0 and (
            effective_lr > last_lr * self.sharpest_rise or last_lr > effective_lr * self.sharpest_fall
        ):
            sudden = acting
        if ended == COMPLETED:
            if measured.nonfinite == 1.0 and skipped == 0.0:
                ended = DIVERGED
            elif decision.posture == Posture.ROLLBACK or (self.stop_outside == 1 and above + below + late + sudden > 0):
                ended = CUT
        scale = decision.scale if watched == 1 else 1.0
        return (
            LoopState(
                guard,
                plant,
                state.step + 1,
                measured.loss,
                measured.grad_norm,
                measured.nonfinite,
                inputs.lr,
                effective_lr if skipped == 0.0 else last_lr,
                skipped,
                ended,
                state.steps + watched,
                measured.expected_loss if watched == 1 else state.final_loss,
                measured.dead if watched == 1 else state.dead,
                decision.energy if watched == 1 else state.energy,
                state.damped_steps + (1 if scale < 1.0 else 0),
                state.skipped_steps + (watched if skipped == 1.0 else 0),
                min(state.lowest_scale, scale),
                state.above_steps + above,
                state.below_steps + below,
                state.late_steps + late,
                state.sudden_steps + sudden,
            ),
            outputs,
        )


class PlaybackInputs(NamedTuple):
    """What one step of a recorded run is handed."""

    effective_lr: float
    """Learning rate with which the step was really taken."""
    skipped: float


class PlaybackOutputs(NamedTuple):
    """What a plant makes of one step of a recorded run."""

    expected_loss: float
    dead: float


class PlaybackState(NamedTuple):
    """The whole memory of a playback."""

    plant: Any
    effective_lr: float
    skipped: float


@dataclass(frozen=True, kw_only=True)
class Playback:
    """A plant without noise along a recorded run's own learning rates: what calibration compares with the record."""

    plant: Plant

    def init(self) -> PlaybackState:
        """Before the first step."""
        return PlaybackState(self.plant.init(), 0.0, 1.0)

    def step(self, state: PlaybackState, inputs: PlaybackInputs) -> tuple[PlaybackState, PlaybackOutputs]:
        """The batch of one step is measured; its update follows with the next."""
        plant, measured = self.plant.step(state.plant, Action(state.effective_lr, state.skipped), Noise(0.0, 0.0))
        return (
            PlaybackState(plant, inputs.effective_lr, inputs.skipped),
            PlaybackOutputs(measured.expected_loss, measured.dead),
        )
