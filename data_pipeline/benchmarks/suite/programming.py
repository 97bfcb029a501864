"""What HumanEval and MBPP have in common: a function to be written, asked once, greedily, and run against its tests.

The prompts are EvalPlus', as FuseChat-3.0 used them, with the beginning of the answer put into the model's mouth. What
is run is what EvalPlus' `sanitize` keeps: imports, and the definitions and assignments that the function needs. It runs
in the sandbox of `scoring`, within its limits of time and memory for all tests of an answer together; EvalPlus gives
each test a second or more. What the sandbox cannot judge is wrong, and counted as unknown.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from jaxtyping import Float

from data_pipeline.benchmarks.benchmark import (
    Answer,
    Asked,
    DataFile,
    Family,
    Grade,
    Item,
    Profile,
    Prompt,
    Row,
    Tools,
    Turn,
    weighted_mean,
)
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.raw_prompts import raw
from data_pipeline.sampling.sampler import Sampling
from data_pipeline.scoring.code import programs
from data_pipeline.scoring.code.code_tests import UNPARSABLE, own_names
from data_pipeline.scoring.code.imports import BENCHMARK_IMPORTS
from data_pipeline.scoring.code.scorer import CodeScorer
from data_pipeline.scoring.scorer import Item as Judged
from data_pipeline.scoring.scorer import Score

CANDIDATE = "function_of_the_answer"
"""What tests call the function: some are named like a builtin of Python's, which tests may need."""
STOP = ("\nif __name__", "\ndef main(", "\nprint(", "\n```")
COMMENT = "\n#"
"""With which FuseChat-3.0's scripts end an answer as well, be it in the middle of the code."""
_SYSTEM = "You are an intelligent programming assistant to produce Python algorithmic solutions"
_BEGUN = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:\n"
    "```python\n"
)
_IMPORTS = (ast.Import, ast.ImportFrom)
_DEFINING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
_FENCE = "~" * 30
"""No program has a line of these."""


class Programming:
    """Base of the benchmarks of functions; see `benchmark.Graded`."""

    name: str
    title: str
    files: Mapping[str, DataFile]
    published = ""
    scale = 100.0
    turns = 1

    def fields(self, row: Row, where: str) -> Row:
        """`prompt`, `entry_point` (the function's name), `tests` (of `CANDIDATE`) and `reference`, a right program."""
        raise NotImplementedError

    def identity(self, row: Row, number: int, taken: set[str], where: str) -> str:
        return columns.identity(row, number, taken, where, "task_id")

    def items(self, rows: Mapping[str, Sequence[Row]]) -> list[Item]:
        taken: set[str] = set()
        found = []
        for where, number, row in columns.numbered(self.name, self.files, rows):
            fields = self.fields(row, where)
            found.append(Item(self.identity(row, number, taken, where), fields, text=fields["prompt"]))
        return found

    def asked(self, item: Item, family: Family, profile: Profile) -> Asked:
        stop = (*STOP, COMMENT) if profile == "fusechat3" else STOP
        return Asked(Sampling(temperature=0.0, stop=stop), max_tokens=2048)

    def prompt(self, item: Item, family: Family, profile: Profile, earlier: tuple[str, ...]) -> Prompt:
        turns = _turns(item.fields["prompt"], family)
        if profile == "fusechat3" and family == "qwen":
            return replace(raw(family, turns), prefix=_prefix(family))
        # The others' chat template, of which only Llama's text keeps its BOS before the tokenizer adds one.
        again = profile == "fusechat3" and family == "llama"
        return Prompt(messages=turns, prefix=_prefix(family), bos_again=again)

    def grade(self, answers: Sequence[Answer], profile: Profile, tools: Tools) -> list[Grade]:
        scorer = CodeScorer(tools.limits, tools.workers, allow_unsafe=tools.allow_unsafe, imports=BENCHMARK_IMPORTS)
        items = [
            Judged({"tests": answer.item.fields["tests"]}, program(answer.texts[-1], answer.item.fields["entry_point"]))
            for answer in answers
        ]
        return [_grade(score) for score in scorer.score(items)]

    def score(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> float:
        """The share of answers that pass: pass@1."""
        return self.scale * weighted_mean(rows["score"].to_numpy(), weights)


def _turns(problem: str, family: Family) -> tuple[Turn, ...]:
    if family == "qwen":
        user = f"Can you complete the following Python function?\n```python\n{problem}\n```\n"
        return {"role": "system", "content": _SYSTEM}, {"role": "user", "content": user}
    user = (
        "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
        f"```\n{problem.strip()}\n```\n"
    )
    return ({"role": "user", "content": user},)


def _prefix(family: Family) -> str:
    return "```python\n" if family == "qwen" else _BEGUN


def program(text: str, entry_point: str) -> str:
    """The program in an answer that goes on behind an open fence, as it is run, in a fence of its own; the answer with
    its beginning where there is none.

    >>> print(program("def f(x):\\n    return g(x)\\ng = abs\\ny = input()\\n", "f").replace(_FENCE, "~~~"))
    ~~~python
    def f(x):
        return g(x)
    g = abs
    function_of_the_answer = f
    ~~~
    <BLANKLINE>
    """
    whole = f"```python\n{text}"
    code, doubt = programs.find(whole, [entry_point])
    if code is None or doubt is not None:
        return whole
    return f"{_FENCE}python\n{needed(code, entry_point)}\n{CANDIDATE} = {entry_point}\n{_FENCE}\n"


def needed(code: str, entry_point: str) -> str:
    """The imports of a program, and the definitions and assignments that a name of it needs, directly or not; all of it
    where it does not parse or does not define the name."""
    try:
        tree = ast.parse(code)
        uses: dict[str, set[str]] = {}
        for statement in tree.body:
            if isinstance(statement, _DEFINING):
                loaded = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
                for name in own_names(statement):
                    uses.setdefault(name, set()).update(loaded)
        reached, waiting = set[str](), [entry_point]
        while waiting:
            name = waiting.pop()
            if name in uses and name not in reached:
                reached.add(name)
                waiting += uses[name]
        if not reached:
            return code
        kept: list[ast.stmt] = [
            statement
            for statement in tree.body
            if isinstance(statement, _IMPORTS) or (isinstance(statement, _DEFINING) and own_names(statement) & reached)
        ]
        return ast.unparse(ast.Module(kept, []))
    except UNPARSABLE:
        return code


def _grade(score: Score) -> Grade:
    if score.verdict == "unknown":
        return Grade(0.0, score.extracted, f"unknown: {score.detail}")
    detail = f"unanswered: {score.detail}" if score.detail == "no_code" else score.detail
    return Grade(float(score.verdict == "correct"), score.extracted, detail)
