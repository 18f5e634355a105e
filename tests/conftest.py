"""What keeps a run of all tests short: one folder of kernels, no garbage sought in what stays, long files first.

Kernels that tests compile go into a folder of this run, which its workers and the commands they start share.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Generator, Iterator

import pytest
from forked import Forked

from lbw_sim.replay import kernel_files

# before torch is imported, here and in what tests start: two workers of two threads each on two cores wait for each
# other at every operation, and small models took twenty times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")


LONG = (
    "test_docs.py", "test_ranks.py", "test_attach.py", "test_commands.py", "test_sinks.py", "test_traps.py",
    "test_demo.py", "test_suite.py", "test_compiled.py", "test_hf.py", "test_language_models.py", "test_lightning.py",
    "test_accelerate.py", "test_importers_trainers.py",
)  # fmt: skip
"""Files whose tests share an import, a run or a process that takes long: they come first, where one worker has them
together, and none of them is begun last. First those whose single steps are longest: a worker that has nothing left
takes from the end of what the other still has to do, and halves are equal only where the rest is small."""
_modules = 0


def keep() -> None:
    """Look for no garbage in what was imported: it stays, and that took a tenth of all, in real trainers a half."""
    global _modules
    _modules = len(sys.modules)
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing is garbage while modules are imported and tests are listed."""
    gc.disable()
    try:
        return (yield)
    finally:
        keep()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order is the same in every worker."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


def pytest_runtest_teardown() -> None:
    """Some tests import what takes long, so that only the process that runs them pays."""
    if len(sys.modules) > _modules + 200:
        gc.collect()
        keep()


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = tmp_path_factory.getbasetemp()
    # each worker of xdist has a folder of its own inside the run's
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LBW_CACHE", str(folder))
        kernel_files.cache_folder.cache_clear()
        yield
    kernel_files.cache_folder.cache_clear()


@pytest.fixture(scope="session")
def forked() -> Iterator[Forked]:
    """Starts processes from one in which torch and the like are imported already."""
    with contextlib.closing(Forked()) as starting:
        yield starting
