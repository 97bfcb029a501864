"""The worked examples of docstrings are run."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("fusejax", "data_pipeline", "examples")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str):
    result = doctest.testmod(importlib.import_module(module.removesuffix(".__init__")))
    assert result.attempted and not result.failed
