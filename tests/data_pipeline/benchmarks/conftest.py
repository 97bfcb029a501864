"""Published data for checks by number; the repository holds none of it."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """Folder with slices of the benchmarks' own data."""
    folder = os.environ.get("FUSEJAX_EVAL_DATA")
    if not folder:
        pytest.skip("published data: set FUSEJAX_EVAL_DATA to its folder")
    return Path(folder)
