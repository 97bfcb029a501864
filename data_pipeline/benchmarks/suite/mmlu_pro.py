"""MMLU-Pro: 12,032 questions in 14 categories, most with ten options (Wang et al., 2024)."""

from collections.abc import Mapping

from data_pipeline.benchmarks.benchmark import DataFile
from data_pipeline.benchmarks.suite.choices import Choices


class MMLUPro(Choices):
    name, title, published = "mmlu_pro", "MMLU-Pro", "mmlu_pro"
    files: Mapping[str, DataFile] = {"mmlu_pro": DataFile("TIGER-Lab/MMLU-Pro")}
