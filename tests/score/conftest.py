from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_runs() -> Path:
    """Folder of the labelled public runs, which lie beside the repository and not in it."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "real-runs"
    if not (folder / "labels.json").is_file():
        pytest.skip("the labelled real runs are not here")
    return folder
