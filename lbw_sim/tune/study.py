"""A search as an Optuna study, for those who browse them. It is written when the search has ended, and only read by
others: the search itself does not go through Optuna.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from lbw_sim.errors import TuneError
from lbw_sim.tune.tuning import Tuned

SQLITE = (".db", ".sqlite", ".sqlite3")
"""Endings of a file that becomes an SQLite database; any other becomes a journal, which is faster to write."""


def require_optuna() -> Any:
    """The library, before a search is begun whose study could not be kept. Raises TuneError."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise TuneError("--study needs optuna: pip install 'lbw-sim[tune]'") from None
    return optuna


def keep_study(tuned: Tuned, path: Path, *, name: str) -> None:
    """Write every candidate that was measured on every run of the tuning side; a study of that name is replaced.

    The objectives are those of the search, all to be minimised. Optuna cannot hold an undefined value: a candidate that
    saw no event has an infinite delay. Raises TuneError.
    """
    optuna = require_optuna()
    from optuna.distributions import FloatDistribution, IntDistribution

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if path.suffix in SQLITE:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        else:
            from optuna.storages.journal import JournalFileBackend

            storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        if name in optuna.study.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        names = tuned.objectives.used()
        study = optuna.create_study(storage=storage, study_name=name, directions=["minimize"] * len(names))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(names)
        study.set_user_attr("guard", tuned.spec.name)
        study.set_user_attr("recommended", tuned.spec.fingerprint)
        study.set_user_attr("measured_on", "the runs that chose: flattering")
        ranges = {
            d.path: IntDistribution(int(d.info.low), int(d.info.high), log=d.info.log and d.info.low > 0)
            if d.info.integer
            else FloatDistribution(d.info.low, d.info.high, log=d.info.log and d.info.low > 0)
            for d in tuned.space.dimensions
        }
        study.add_trials(
            optuna.trial.create_trial(
                params={
                    d.path: int(v) if d.info.integer else float(v)
                    for d, v in zip(tuned.space.dimensions, row, strict=True)
                },
                distributions=ranges,
                values=[_defined(float(getattr(tuned.objectives, name)[place])) for name in names],
            )
            for place, row in enumerate(tuned.values.tolist())
        )
    except OSError as error:
        raise TuneError(f"{path} cannot be kept as a study: {error}") from None
    finally:
        optuna.logging.set_verbosity(verbosity)


def _defined(value: float) -> float:
    return math.inf if math.isnan(value) else value
