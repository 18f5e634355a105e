"""Faults and benign changes that are put into a run on purpose, each at exactly known steps.

A fault says what it does to schedule, data, labels, loss or gradient; the training loop asks it at every step. It
never touches weights, and it draws everything random from (seed, step), so that it hits alike whatever the method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lbw_sim.errors import StressError, unknown_name
from lbw_sim.trace.labels import Label
from lbw_sim.values import nan

AFTERMATH_STEPS = 40
"""How long after the last injected step an alarm still belongs to the fault: damage outlives its cause, and the loss
needs about as many steps to come back, or to show that it won't."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One injected change. Every field after `confidence` does nothing at its default."""

    name: str
    onset_step: int
    length_steps: int
    """Steps on which it acts and is marked. A lasting change is marked on its first step only."""
    kind: str
    """A label kind of `trace.labels`."""
    confidence: str = "high"
    """`low`: scoring neither rewards nor punishes an alarm here."""
    lr_factor: float = 1.0
    """On the scheduled learning rate."""
    loss_factor: float = 1.0
    """On the loss, and so on its gradient."""
    gradient_factor: float = 1.0
    """On the gradient alone; the loss is what it was."""
    noise_ratio: float = 0.0
    """Norm of Gaussian noise added to the gradient, in units of the gradient's own norm."""
    random_labels: bool = False
    """Labels are uniform random bytes."""
    repeats_batch: bool = False
    """The batch of the onset step comes again and again."""
    corpus: str | None = None
    """Text trained on from the onset to the end of the run."""
    restarts_schedule: bool = False
    """The cosine starts again at its peak."""

    @property
    def benign(self) -> bool:
        """Whether an alarm on it would be false."""
        return self.kind.startswith("benign")

    @property
    def end_step(self) -> int:
        """Last step on which it acts, inclusive."""
        return self.onset_step + self.length_steps - 1

    def active(self, step: int) -> bool:
        """Whether it acts, and is marked, on this step."""
        return self.onset_step <= step <= self.end_step

    def label(self, steps: int, *, guarded: bool) -> Label:
        """The exact label in a run of so many steps: onset to end of the aftermath, both inclusive.

        A loss that is nan ends a run for good unless a guard may skip the step: then the aftermath is the whole rest.
        """
        broken = self.loss_factor * self.gradient_factor
        fatal = broken != broken and not guarded
        return Label(
            start_step=self.onset_step,
            end_step=steps - 1 if fatal else min(self.end_step + AFTERMATH_STEPS, steps - 1),
            kind=self.kind,
            confidence=self.confidence,
            source="injected",
            note=self.name,
        )


def lr_bump(onset_step: int, factor: float = 30.0, length_steps: int = 20) -> Fault:
    """The learning rate is `factor` times too high for a while: the update blows up, then the loss."""
    return Fault(name="lr_bump", onset_step=onset_step, length_steps=length_steps, kind="divergence", lr_factor=factor)


def bad_labels(onset_step: int, length_steps: int = 8) -> Fault:
    """Batches whose labels are random: the loss jumps at once, the weights are pushed the wrong way."""
    return Fault(name="bad_labels", onset_step=onset_step, length_steps=length_steps, kind="spike", random_labels=True)


def nan_loss(onset_step: int, length_steps: int = 2) -> Fault:
    """The loss, and every gradient with it, is nan; one such update applied kills the run."""
    return Fault(name="nan_loss", onset_step=onset_step, length_steps=length_steps, kind="nonfinite", loss_factor=nan)


def nan_gradient(onset_step: int, length_steps: int = 2) -> Fault:
    """The loss is fine and every gradient is nan, as from a broken kernel in the backward pass."""
    return Fault(
        name="nan_gradient", onset_step=onset_step, length_steps=length_steps, kind="nonfinite", gradient_factor=nan
    )


def gradient_noise(onset_step: int, ratio: float = 10.0, length_steps: int = 20) -> Fault:
    """Gaussian noise of `ratio` times the gradient's norm, as from a broken reduction: hardly any signal is left."""
    return Fault(
        name="gradient_noise", onset_step=onset_step, length_steps=length_steps, kind="spike", noise_ratio=ratio
    )


def repeated_batch(onset_step: int, length_steps: int = 25) -> Fault:
    """One batch again and again, as from a stuck data loader: training loss falls, validation suffers a little.

    Labelled `spike` with low confidence, so that scoring neither rewards nor punishes an alarm. It is a
    fault, and an operator would want to know; but the loss shows no rise while it lasts, only the return to normal
    when it ends, and leaving it alone costs less than damping or rolling back on it.
    """
    return Fault(
        name="repeated_batch",
        onset_step=onset_step,
        length_steps=length_steps,
        kind="spike",
        confidence="low",
        repeats_batch=True,
    )


def data_switch(onset_step: int) -> Fault:
    """From prose to code, for good: the loss rises because the text is harder, and nothing is wrong."""
    return Fault(name="data_switch", onset_step=onset_step, length_steps=1, kind="benign_shift", corpus="code")


def warm_restart(onset_step: int) -> Fault:
    """The cosine starts again at its peak (Loshchilov & Hutter, arXiv 1608.03983); the loss rises for a while."""
    return Fault(
        name="warm_restart", onset_step=onset_step, length_steps=1, kind="benign_shift", restarts_schedule=True
    )


FAULTS: dict[str, Callable[[int], Fault]] = {
    "lr_bump": lr_bump,
    "bad_labels": bad_labels,
    "nan_loss": nan_loss,
    "gradient_noise": gradient_noise,
    "repeated_batch": repeated_batch,
    "data_switch": data_switch,
    "warm_restart": warm_restart,
}
"""The faults that demo and shipped traces show, by name, made with their usual strength from their onset step."""


def fault(name: str, onset_step: int) -> Fault:
    """A fault by name, at its usual strength. Raises StressError.

    >>> fault("nan_loss", 200).label(steps=400, guarded=True)[:3]
    (200, 241, 'nonfinite')
    """
    if name not in FAULTS:
        raise StressError(unknown_name("fault", name, FAULTS))
    return FAULTS[name](onset_step)
