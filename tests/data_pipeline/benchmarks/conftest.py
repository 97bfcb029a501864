"""The benchmarks' data, where they are."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def eval_data() -> Path:
    """Folder with slices of the benchmarks' own data."""
    if "FUSEJAX_EVAL_DATA" not in os.environ:
        pytest.skip("FUSEJAX_EVAL_DATA names no folder with the benchmarks' data")
    return Path(os.environ["FUSEJAX_EVAL_DATA"])
