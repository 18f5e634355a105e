"""The words that every part speaks: telemetry in, signals and regimes between, a decision out.

Plain NamedTuples and integer enums, so that the same step function runs as Python in flight and can be compiled in
replay. nan in any channel or signal means "not measured": no evidence, neither good nor bad. A loss that WAS measured
and is not finite is told by `Telemetry.nonfinite`, never by nan alone.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from lbw_sim.notebook import facts

nan = float("nan")


class Regime(IntEnum):
    """What the analyzer says the run is in."""

    WARMUP = 0  # too early to judge
    STABLE = 1
    STRESSED = 2  # above its own noise, not yet an event
    SPIKE = 3  # a sudden rise
    OSCILLATION = 4  # swings that do not settle
    DIVERGING = 5  # rising and not coming back
    PLATEAU = 6  # came down from a spike and stayed high
    RECOVERY = 7  # was unsafe, is coming back
    NONFINITE = 8  # loss or gradient is nan or infinite


def is_unsafe(regime: int) -> bool:
    """Whether a step in this regime counts as stress mode; an alarm is the start of a run of such steps.

    Made of comparisons, so that a component's step may call it and is still compiled.

    >>> is_unsafe(Regime.SPIKE), is_unsafe(Regime.RECOVERY)
    (True, False)
    """
    return regime != Regime.WARMUP and regime != Regime.STABLE and regime != Regime.RECOVERY


UNSAFE_REGIMES = frozenset(filter(is_unsafe, Regime))
"""The regimes for which `is_unsafe` holds."""


class Posture(IntEnum):
    """What the policy asks for and, in a `Decision`, what the envelope granted."""

    HOLD = 0  # leave the scale where it is
    DAMP = 1  # lower the scale, or keep it low
    RELEASE = 2  # let the scale return to 1
    SKIP = 3  # drop this step's update: weights, moments and step counts stay
    ROLLBACK = 4  # go back to an earlier snapshot


class Reason(IntEnum):
    """Which rule had the last word on a decision."""

    NONE = 0  # nothing was asked for and nothing was limited
    GRANTED = 1  # the policy's request, as asked
    MIN_SCALE = 2  # held at the floor
    RATE_LIMIT = 3  # moved as fast as allowed, not as far as asked
    DAMPED_TOO_LONG = 4  # longest damping reached: being released
    ENERGY_SPENT = 5  # control-energy budget used up: being released
    RESTING = 6  # damping refused for a while after a forced release
    SKIPS_SPENT = 7  # skip refused: budget used up, or too many in a row
    ROLLBACKS_SPENT = 8  # rollback refused: budget used up, or cooling down
    GUARD_FAULT = 9  # the guard itself failed: scale 1 from here on
    RECORDER_FAULT = 10  # the trace cannot be written: scale 1 from here on


class Telemetry(NamedTuple):
    """What a guard sees of one optimizer step. Every channel but `step` may be nan: not measured."""

    step: int
    """Optimizer step, counted from 0."""
    loss: float = nan
    """Mean training loss of the step over all micro-batches and ranks, weighted by tokens; nats."""
    lr: float = nan
    """Learning rate before scaling, of the first parameter group."""
    grad_norm: float = nan
    """Euclidean norm of the whole gradient, before clipping."""
    update_norm: float = nan
    """Euclidean norm of this step's parameter update, learning rate included."""
    tokens: float = nan
    """Tokens in this step, over all ranks."""
    nonfinite: float = nan
    """1.0: loss or gradient was measured and is nan or infinite; 0.0: measured and finite."""
    extra: tuple[float, ...] = ()
    """Further channels, in the order in which the guard's sensor names them."""


class Signals(NamedTuple):
    """What a sensor makes of the telemetry. The whole vocabulary: a sensor fills what it can, the rest stays nan."""

    loss: float = nan
    """The loss as it came; nats."""
    lr: float = nan
    """The learning rate as it came."""
    grad_norm: float = nan
    """The gradient norm as it came."""
    update_norm: float = nan
    """The update norm as it came."""
    nonfinite: float = nan
    """1.0 when loss or gradient was measured and is not finite, 0.0 when it is."""
    loss_level: float = nan
    """Local level of the loss; nats."""
    loss_sd: float = nan
    """Standard deviation of the loss's step-to-step noise; nats."""
    loss_z: float = nan
    """Residual of the loss from its local trend; in `loss_sd`. A sensor may take the lesser of two losses in a row."""
    loss_trend: float = nan
    """Slope of the level; `loss_sd` per step, positive when rising."""
    loss_rise: float = nan
    """Draw-up: the level above its own trailing minimum; in `loss_sd`."""
    loss_rebound: float = nan
    """At the start of a run only: share of the fall so far that the loss has given back; above 1 it stands higher than
    it began."""
    cadence_steps: float = nan
    """Steps since the loss was last measured: 1 when every step is."""
    oscillation: float = nan
    """Share of recent steps on which the loss swung back by more than its noise; in [0, 1]."""
    grad_ratio: float = nan
    """Recent over long-run mean of the gradient norm; 1 when nothing changes."""
    update_ratio: float = nan
    """Recent over long-run mean of the update norm; 1 when nothing changes."""
    probe_gain: float = nan
    """Paired probe: loss of one batch after the step minus before it; nats, negative when the step helped."""
    canary_loss: float = nan
    """Loss of a batch that never changes; nats. nan on the steps on which it was not evaluated."""
    initial_weight_rms: float = nan
    """Root mean square of the weight matrices before training."""
    full_step_lr: float = nan
    """Learning rate at which one step of Adam, its elements all pulling one way, is as large as a typical weight matrix
    before training."""
    gain_ratio: float = nan
    """What the last measured steps did to the loss of their own batches, over twice what their halves would have done:
    1 when the loss is straight along the step, 0 when the whole step brings nothing."""
    gradient_reach: float = nan
    """Gradient norm of the median weight matrix over that of all of them; falls when a network stops looking at its
    input."""
    extra: tuple[float, ...] = ()
    """Further channels passed through, in the order in which the sensor names them."""


class Assessment(NamedTuple):
    """What an analyzer concludes from the signals."""

    regime: int
    """A `Regime`."""
    evidence: float = nan
    """The signal that decided, in its own unit; nan when none did."""
    lr: float = nan
    """The learning rate as it came, from an analyzer that passes it on to its policy; nan from others."""


class Request(NamedTuple):
    """What a policy asks of the envelope."""

    posture: int
    """A `Posture`."""
    scale: float = 1.0
    """Factor wanted on the learning rate. Anything may be asked for: the envelope limits it."""
    rollback_steps: int = 0
    """How many steps to go back; with ROLLBACK only."""


class Decision(NamedTuple):
    """What the guard decided for one optimizer step, after the envelope's limits."""

    regime: int
    """A `Regime`."""
    posture: int
    """The `Posture` that was granted."""
    scale: float
    """Factor on the learning rate of this step; in [min_scale, 1]."""
    energy: float
    """Control energy so far: the sum of (1 - scale)^2 over all steps up to and with this one."""
    reason: int
    """The `Reason` that had the last word."""
    rollback_steps: int = 0
    """How many steps to go back; 0 unless the posture is ROLLBACK."""

    def _repr_html_(self) -> str:
        """For notebooks: codes as words."""
        rows = [
            ("regime", name_of(Regime, self.regime)),
            ("posture", name_of(Posture, self.posture)),
            ("scale", f"{self.scale:g}"),
            ("control energy so far", f"{self.energy:g}"),
            ("last word", name_of(Reason, self.reason)),
        ]
        return facts("Decision", rows)


class Action(NamedTuple):
    """What was really done to the weights in one optimizer step: what a plant answers to."""

    effective_lr: float
    """Scheduled learning rate × scale."""
    skipped: float = 0.0
    """1.0: the update was dropped, weights and moments stayed; 0.0: it was taken."""


class Noise(NamedTuple):
    """The chance in one step, handed in from outside: a plant draws nothing itself. Both of mean 0 and variance 1."""

    batch: float = 0.0
    """Difficulty of the step's batch: drawn, or recorded. Runs on one data order share it."""
    walk: float = 0.0
    """Drives what is random in the weights; of this run alone."""


class Measured(NamedTuple):
    """What a plant shows of the weights after an update, on the next batch."""

    loss: float
    """Training loss of that batch; nats. Infinite once the run is out of bounds."""
    expected_loss: float
    """The same without the batch's difficulty."""
    grad_norm: float = nan
    nonfinite: float = 0.0
    """1.0 when the loss is not finite."""
    dead: float = 0.0
    """1.0: damaged for good, whatever the learning rate does from here on. Never goes back to 0."""


def name_of(words: type[IntEnum], code: int) -> str:
    """The name of a code, in a file or from a component that nobody vouches for.

    >>> name_of(Regime, 3), name_of(Regime, 77)
    ('SPIKE', '77, which is none')
    """
    return words(code).name if code in words._value2member_map_ else f"{code}, which is none"
