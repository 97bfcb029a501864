"""The benchmarks' data, where they are."""
"""Published data for checks by number; the repository holds none of it."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """Folder with slices of the benchmarks' own data."""
    if "FUSEJAX_EVAL_DATA" not in os.environ:
        pytest.skip("FUSEJAX_EVAL_DATA names no folder with the benchmarks' data")
    return Path(os.environ["FUSEJAX_EVAL_DATA"])
    folder = os.environ.get("FUSEJAX_EVAL_DATA")
    if not folder:
        pytest.skip("published data: set FUSEJAX_EVAL_DATA to its folder")
    return Path(folder)
