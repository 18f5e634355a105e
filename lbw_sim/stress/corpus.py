"""Training text that every CPython ships: prose (the language's help topics) and code (standard library sources).

Nothing is downloaded. The text differs a little between Python versions, so losses compare only under equal `digest`s.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tokenize
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lbw_sim.errors import StressError, unknown_name

Codes = npt.NDArray[np.uint8]

VOCABULARY = 128
"""Tokens are ASCII codes; every other character becomes `?`."""

CODE_MODULES = (
    "argparse", "ast", "configparser", "dataclasses", "difflib", "doctest", "fractions", "functools", "inspect",
    "mailbox", "optparse", "pdb", "pickle", "shutil", "statistics", "subprocess", "tarfile", "threading", "typing",
    "unittest.mock",
)  # fmt: skip

LEAST_CHARACTERS = 10_000
"""A shorter file has no validation part worth the name."""

VALIDATION_SHARE = 0.1
"""The last part of each text, which no training batch touches."""

_BATCH, _LABELS = 1, 2


class Corpus(NamedTuple):
    """One text, split."""

    name: str
    train: Codes
    """ASCII codes; [bytes]."""
    validation: Codes
    """ASCII codes; [bytes]."""
    digest: str
    """First 16 hexadecimal digits of the SHA-256 of the whole text."""


@cache
def corpus(name: str) -> Corpus:
    """A corpus by name: `prose` or `code`. Raises StressError.

    >>> text = corpus("prose")
    >>> len(text.train) > 300_000, int(text.train.max()) < VOCABULARY
    (True, True)
    """
    if name not in _TEXTS:
        raise StressError(unknown_name("corpus", name, _TEXTS))
    return _split(name, _TEXTS[name]())


@cache
def text_of(file: Path | None, name: str) -> Corpus:
    """The text of `file`, in UTF-8, under its own name; without a file the corpus `name`. Raises StressError."""
    if file is None:
        return corpus(name)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StressError(f"{file} cannot be read as a text in UTF-8: {error}") from None
    if len(text) < LEAST_CHARACTERS:
        raise StressError(f"{file} holds {len(text)} characters; a text has to have {LEAST_CHARACTERS} at least")
    return _split(file.name, text)


def _split(name: str, text: str) -> Corpus:
    encoded = text.encode("ascii", "replace")
    codes = np.frombuffer(encoded, dtype=np.uint8)
    cut = int(len(codes) * (1.0 - VALIDATION_SHARE))
    return Corpus(name, codes[:cut], codes[cut:], hashlib.sha256(encoded).hexdigest()[:16])


def training_windows(text: Corpus, seed: int, step: int, batch: int, length: int) -> Codes:
    """The training batch of one step: [batch, length] ASCII codes; a pure function of its arguments.

    Positions come from (seed, step) alone, so runs with one seed share their data whatever else differs.
    """
    starts = np.random.default_rng((_BATCH, seed, step)).random(batch) * (len(text.train) - length + 1)
    windows: Codes = text.train[starts.astype(np.int64)[:, None] + np.arange(length)]
    return windows


def random_labels(seed: int, step: int, batch: int, length: int) -> Codes:
    """Labels that have nothing to do with the text: uniform over the vocabulary; [batch, length]."""
    return np.random.default_rng((_LABELS, seed, step)).integers(0, VOCABULARY, (batch, length), dtype=np.uint8)


def validation_windows(text: Corpus, count: int, length: int) -> Codes:
    """`count` windows spread evenly over the validation part, the same for every run; [count, length]."""
    starts = np.linspace(0, len(text.validation) - length, count).astype(np.int64)
    windows: Codes = text.validation[starts[:, None] + np.arange(length)]
    return windows


def _prose() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics[key] for key in sorted(topics))


def _code() -> str:
    sources, missing = [], []
    for module in CODE_MODULES:
        found = importlib.util.find_spec(module)
        try:
            with tokenize.open(str(found and found.origin)) as file:
                sources.append(file.read())
        except OSError:
            missing.append(module)
    if missing:
        raise StressError(
            f"this Python ships without the source of {', '.join(missing)}; corpus 'code' needs a standard library "
            f"with its .py files"
        )
    return "\n".join(sources)


_TEXTS = {"prose": _prose, "code": _code}
