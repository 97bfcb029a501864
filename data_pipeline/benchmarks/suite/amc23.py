"""AMC 23: 40 problems of the American Mathematics Competitions of 2023, without their choices: numbers for answers."""

from collections.abc import Mapping

from data_pipeline.benchmarks.benchmark import DataFile
from data_pipeline.benchmarks.suite.mathematics import Mathematics


class AMC23(Mathematics):
    name, title, published = "amc23", "AMC 23", "amc23"
    files: Mapping[str, DataFile] = {"amc23": DataFile("math-ai/amc23", bring="Qwen2.5-Math's data/amc23/test.jsonl")}
