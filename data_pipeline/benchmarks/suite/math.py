"""MATH: 5,000 problems of competitions in seven subjects, with formulas for answers (Hendrycks et al., 2021).

All of them, not the 500 of MATH-500: FuseChat-3.0's numbers are impossible with 500.
"""

from collections.abc import Mapping

from data_pipeline.benchmarks.benchmark import DataFile, Row
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.mathematics import Mathematics
from data_pipeline.scoring.math import math_answers
from fusejax.common.cli import UserError

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


class MATH(Mathematics):
    name, title, published = "math", "MATH", "math"
    files: Mapping[str, DataFile] = {
        "math": DataFile("EleutherAI/hendrycks_math", SUBJECTS, bring="Qwen2.5-Math's data/math/test.jsonl")
    }

    def label(self, row: Row, where: str) -> str:
        """The column `answer`; without it, what the solution puts in a box.

        Raises:
          UserError: the solution boxes nothing.
        """
        if row.get("answer") not in (None, ""):
            return columns.text(row, where, "answer")
        solution = columns.text(row, where, "answer", "solution")
        found = math_answers.extract(solution, marked_only=True)
        if found is None:
            raise UserError(f"{where}: no answer, and no box in its solution")
        return found.answer
