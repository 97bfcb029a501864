"""MMLU: 14,042 questions in 57 subjects with four options (Hendrycks et al., 2021)."""

from collections.abc import Mapping

from data_pipeline.benchmarks.benchmark import DataFile
from data_pipeline.benchmarks.suite.choices import Choices


class MMLU(Choices):
    name, title, published = "mmlu", "MMLU", "mmlu"
    files: Mapping[str, DataFile] = {"mmlu": DataFile("cais/mmlu", "all")}
