"""Every benchmark by name, in the order of tables."""

import functools
import importlib

from data_pipeline.benchmarks.benchmark import Benchmark

BENCHMARKS = {
    "alpacaeval2": "alpacaeval2:AlpacaEval2",
    "arena_hard": "arena_hard:ArenaHard",
    "mt_bench": "mt_bench:MTBench",
    "alignbench": "alignbench:AlignBench",
    "gsm8k": "gsm8k:GSM8K",
    "math": "math:MATH",
    "amc23": "amc23:AMC23",
    "mmlu_pro": "mmlu_pro:MMLUPro",
    "mmlu_redux": "mmlu_redux:MMLURedux",
    "mmlu": "mmlu:MMLU",
    "gpqa": "gpqa:GPQA",
    "humaneval": "humaneval:HumanEval",
    "mbpp": "mbpp:MBPP",
    "livecodebench": "livecodebench:LiveCodeBench",
    "livecodebench_v4": "livecodebench:LiveCodeBenchV4",
}
"""Name -> file of `suite` and class in it."""
MISSING = ("LiveBench: its graders are a repository of its own, which grades a model's answers itself",)
"""What FuseChat-3.0 is judged by beside these: lines for tables."""


@functools.cache
def benchmark(name: str) -> Benchmark:
    """The benchmark, imported only now: some bring packages that others do without."""
    module, kind = BENCHMARKS[name].split(":")
    return getattr(importlib.import_module(f"data_pipeline.benchmarks.suite.{module}"), kind)()
