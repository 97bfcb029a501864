"""GSM8K: 1,319 word problems of grade school, each with a whole number for an answer (Cobbe et al., 2021)."""

from collections.abc import Mapping

from data_pipeline.benchmarks.benchmark import DataFile, Row
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.mathematics import Mathematics
from fusejax.common.cli import UserError


class GSM8K(Mathematics):
    name, title, published = "gsm8k", "GSM8K", "gsm8k"
    files: Mapping[str, DataFile] = {
        "gsm8k": DataFile("openai/gsm8k", "main", bring="test.jsonl of openai/grade-school-math on GitHub")
    }

    def label(self, row: Row, where: str) -> str:
        """What is behind `####`; without it, all of the answer.

        Raises:
          UserError: there is nothing.
        """
        label = columns.text(row, where, "answer").rpartition("####")[2].strip()
        if not label:
            raise UserError(f"{where}: nothing behind ####")
        return label
