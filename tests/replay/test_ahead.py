"""Kernels compiled side by side are the ones that replay then finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lbw_sim import GuardSpec
from lbw_sim.replay import ahead, kernel_files, replay_many


def test_what_was_compiled_ahead_is_what_replay_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBW_CACHE", str(tmp_path))
    kernel_files.cache_folder.cache_clear()
    try:
        specs = [GuardSpec.load("never")]
        monkeypatch.setattr(ahead, "WORTH_A_PROCESS", 1)
        heard: list[tuple[int, int]] = []
        assert ahead.compile_ahead([(specs, False)], lambda done, total: heard.append((done, total))) == 2
        assert heard == [(1, 2), (2, 2)]
        made = set(tmp_path.glob("kernel_*.py"))
        assert len(made) == 2
        kernel_files.compiled.cache_clear()
        columns = {"step": np.arange(50), "loss": np.linspace(3.0, 2.0, 50)}
        list(replay_many([columns], specs, engine="compiled"))
        assert set(tmp_path.glob("kernel_*.py")) == made, "replay needed no other kernel"
        assert ahead.compile_ahead([(specs, False)]) == 0, "all is there"
    finally:
        kernel_files.cache_folder.cache_clear()
        kernel_files.compiled.cache_clear()
