import pytest

from lbw_sim.errors import StressError
from lbw_sim.stress import AFTERMATH_STEPS, FAULTS, fault
from lbw_sim.trace.labels import KINDS

EXPECTED = {
    "lr_bump": (20, "divergence", "high"),
    "bad_labels": (8, "spike", "high"),
    "nan_loss": (2, "nonfinite", "high"),
    "gradient_noise": (20, "spike", "high"),
    "repeated_batch": (25, "spike", "low"),
    "data_switch": (1, "benign_shift", "high"),
    "warm_restart": (1, "benign_shift", "high"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_acts_exactly_on_its_steps_and_its_label_says_so(name):
    length, kind, confidence = EXPECTED[name]
    made = fault(name, 100)
    assert made.name == name
    assert [step for step in range(300) if made.active(step)] == list(range(100, 100 + length))
    label = made.label(steps=300, guarded=True)
    assert (label.start_step, label.end_step) == (100, 100 + length - 1 + AFTERMATH_STEPS)
    assert (label.kind, label.confidence, label.source, label.note) == (kind, confidence, "injected", name)
    assert kind in KINDS
    assert made.benign == kind.startswith("benign")
    assert len(name.encode("ascii")) <= 24  # what the trace's event column holds


def test_a_label_ends_with_the_run():
    assert fault("lr_bump", 90).label(steps=100, guarded=False).end_step == 99


def test_an_unguarded_nan_is_an_event_to_the_end_of_the_run():
    assert fault("nan_loss", 90).label(steps=400, guarded=False).end_step == 399
    assert fault("nan_loss", 90).label(steps=400, guarded=True).end_step == 91 + AFTERMATH_STEPS
    assert fault("bad_labels", 90).label(steps=400, guarded=False).end_step == 97 + AFTERMATH_STEPS


def test_an_unknown_fault_is_refused_by_name():
    with pytest.raises(StressError, match="Did you mean 'lr_bump'"):
        fault("lr_bum", 1)
