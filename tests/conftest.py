"""Kernels that tests compile go into one folder of this run: its workers and the commands they start share it."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator

import pytest

from lbw_sim.replay import kernels

# before torch is imported, here and in what tests start: two workers of two threads each on two cores wait for each
# other at every operation, and small models took twenty times as long
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: to look for garbage in it, now and at every test, costs a tenth of all."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = tmp_path_factory.getbasetemp()
    # each worker of xdist has a folder of its own inside the run's
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LBW_CACHE", str(folder))
        kernels.cache_folder.cache_clear()
        yield
    kernels.cache_folder.cache_clear()
