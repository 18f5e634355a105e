import numpy as np
import pytest

from lbw_sim.errors import StressError
from lbw_sim.stress.corpus import VOCABULARY, corpus, random_labels, training_windows, validation_windows


@pytest.mark.parametrize("name", ["prose", "code"])
def test_a_corpus_is_ascii_and_its_last_tenth_is_kept_for_validation(name):
    text = corpus(name)
    assert text.train.max() < VOCABULARY
    assert text.validation.max() < VOCABULARY
    share = len(text.validation) / (len(text.train) + len(text.validation))
    assert share == pytest.approx(0.1, abs=1e-4)


def test_an_unknown_corpus_is_refused_by_name():
    with pytest.raises(StressError, match=r"no corpus named 'poems'\. Known: code, library, prose"):
        corpus("poems")


def test_a_batch_follows_from_seed_and_step_alone():
    text = corpus("prose")
    first = training_windows(text, 3, 7, 12, 33)
    assert first.shape == (12, 33)
    assert np.array_equal(first, training_windows(text, 3, 7, 12, 33))
    assert not np.array_equal(first, training_windows(text, 3, 8, 12, 33))
    assert not np.array_equal(first, training_windows(text, 4, 7, 12, 33))


def test_windows_are_text_of_the_part_that_they_are_drawn_from():
    text = corpus("prose")
    whole = text.train.tobytes()
    assert all(window.tobytes() in whole for window in training_windows(text, 0, 0, 12, 33))
    held_out = text.validation.tobytes()
    windows = validation_windows(text, 20, 33)
    assert windows[0].tobytes() == held_out[:33]
    assert windows[-1].tobytes() == held_out[-33:]
    assert all(window.tobytes() in held_out for window in windows)


def test_random_labels_cover_the_vocabulary_and_follow_from_seed_and_step():
    labels = random_labels(1, 5, 100, 100)
    assert set(np.unique(labels)) == set(range(VOCABULARY))
    assert np.array_equal(labels, random_labels(1, 5, 100, 100))
    assert not np.array_equal(labels, random_labels(1, 6, 100, 100))
