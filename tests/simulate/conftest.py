"""Kernels compiled by these tests go into a folder of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lbw_sim.replay import kernels


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LBW_CACHE", str(tmp_path_factory.mktemp("kernels")))
        kernels.cache_folder.cache_clear()
        yield
    kernels.cache_folder.cache_clear()
