"""What all benchmarks promise."""

import pytest

from data_pipeline.benchmarks import published
from data_pipeline.benchmarks.benchmark import Graded, Judged
from data_pipeline.benchmarks.registry import BENCHMARKS, benchmark


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_is_whole(name: str):
    found = benchmark(name)
    assert found.name == name and found.title
    assert isinstance(found, Graded) != isinstance(found, Judged)
    assert isinstance(found, Judged) == (name in published.JUDGES)
    assert name in published.ITEMS
    assert published.number("FuseChat-Llama-3.1-8B-Instruct", found.published) is not None
    for file in found.files.values():
        assert file.bring or file.path, "nobody would know what to bring"


def test_the_fourteen_are_there():
    """LiveBench is graded by its own repository; MMLU and a second window of LiveCodeBench are extra."""
    assert len(BENCHMARKS) == 15 and len({benchmark(name).title for name in BENCHMARKS}) == 15
