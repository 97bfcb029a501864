"""LiveCodeBench: problems of programming contests, answered ten times each, judged by hidden tests (Jain et al., 2024).

AtCoder's problems want a program that reads standard input and prints, LeetCode's a method of `Solution`. Prompts,
limits and the rules of comparison are those of LiveCodeBench's runner in October 2024, which FuseChat-3.0 used. Its
name says the problems of August to November 2024, its script from 2024-06-30 on: which they were is not published, so
there is a benchmark for either.
"""

import ast
import base64
import binascii
import io
import json
import os
import pickle
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

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
    weighted_mean,
)
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.raw_prompts import raw
from data_pipeline.sampling.sampler import Sampling
from data_pipeline.scoring.code.code_tests import UNPARSABLE, message
from data_pipeline.scoring.code.imports import BENCHMARK_IMPORTS, preloaded
from data_pipeline.scoring.sandbox import judge
from fusejax.common.cli import UserError

LIMITS = judge.Limits(cpu_seconds=6, memory_mb=4096)
"""Of each test."""
_MAX_TEST_BYTES = 2**30
"""Of a problem's tests, unpacked."""

_STARS = ("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics",
          "itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing")  # fmt: skip
SETTING = "\n".join(
    [
        *(f"from {module} import *" for module in _STARS),
        f"import {', '.join(module for module in _STARS if module not in ('builtins', 'typing'))}",
        "sys.setrecursionlimit(6 * 10**5)",
    ]
)
"""What the runner puts before each program."""

_TASK = (
    "You will be given a question (problem specification) and will generate a correct Python program that matches the "
    "specification and passes all tests. You will NOT return anything except for the program."
)
SYSTEM = f"You are an expert Python programmer. {_TASK}"
_WITH_STARTER_CODE = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
_WITHOUT_STARTER_CODE = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows."
)


def _file(number: int) -> DataFile:
    name = f"test{number}.jsonl"
    bring = f"{name} of livecodebench/code_generation_lite on the Hub, under this name"
    return DataFile("livecodebench/code_generation_lite", file=name, bring=bring)


class LiveCodeBench:
    """The problems of 2024-08-01 to 2024-11-30 in release v5."""

    name = "livecodebench"
    title = "LiveCodeBench 2408-2411"
    scale = 100.0
    published = "livecodebench_2408_2411"
    turns = 1
    # Each file of the data set adds the problems after those of the one before: test3.jsonl ends in July 2024.
    files: Mapping[str, DataFile] = {f"livecodebench_test{number}": _file(number) for number in (4, 5)}
    first, last = "2024-08-01", "2024-11-30"
    """Days of the first and the last contest."""

    def keep(self, row: Row) -> bool:
        """Whether the problem is of the window; the files hold gigabytes of others' tests."""
        return not isinstance(row.get("contest_date"), str) or self.first <= row["contest_date"][:10] <= self.last

    def items(self, rows: Mapping[str, Sequence[Row]]) -> list[Item]:
        """The problems of the window. Their tests stay packed: unpacked, they fill memory.

        Raises:
          UserError: a row lacks a column, or its tests cannot be read.
        """
        found: dict[str, Item] = {}
        for file in self.files:
            for number, row in enumerate(rows[file], 1):
                where = f"{self.name}: {file}: row {number}"
                day = columns.text(row, where, "contest_date")[:10]
                if not self.first <= day <= self.last:
                    continue
                name = columns.text(row, where, "question_id")
                question = columns.text(row, where, "question_content")
                names = ("starter_code", "public_test_cases", "private_test_cases", "metadata")
                for column in names:
                    if not isinstance(row.get(column), str):
                        raise UserError(f"{where}: no text in {column}; its columns are {', '.join(row)}")
                fields = {"question_content": question, **{column: row[column] for column in names}}
                read_problem(where, fields)
                found.setdefault(name, Item(id=name, fields=fields, text=question))
        return list(found.values())

    def asked(self, item: Item, family: Family, profile: Profile) -> Asked:
        return Asked(Sampling(temperature=0.2, top_p=0.95, stop=("###",)), max_tokens=2000, samples=10)

    def prompt(self, item: Item, family: Family, profile: Profile, earlier: tuple[str, ...]) -> Prompt:
        turns = _turns(item, family)
        if profile == "fusechat3":
            return raw(family, turns)
        return Prompt(messages=tuple({**turn, "content": turn["content"].strip()} for turn in turns))

    def grade(self, answers: Sequence[Answer], profile: Profile, tools: Tools) -> list[Grade]:
        """1 for a program that passes all tests; doubt is wrong.

        Raises:
          UserError: no sandbox works on this machine.
        """
        problems: dict[str, dict[str, list[int]]] = {}
        codes = [code_of(answer.texts[-1], profile) for answer in answers]
        for number, (answer, code) in enumerate(zip(answers, codes, strict=True)):
            problems.setdefault(answer.item.id, {}).setdefault(code or "", []).append(number)
        workers = tools.workers or os.cpu_count() or 1
        grades: dict[int, Grade] = {}
        with (
            judge.Sandbox(
                LIMITS,
                preloaded(BENCHMARK_IMPORTS),
                workers=workers,
                tier=judge.strongest(allow_unsafe=tools.allow_unsafe),
            ) as sandbox,
            ThreadPoolExecutor(workers) as threads,
        ):

            def judge_problem(programs: dict[str, list[int]]) -> None:
                item = answers[next(iter(programs.values()))[0]].item
                problem = None
                for code, numbers in programs.items():
                    if code:
                        problem = problem or read_problem(item.id, item.fields)
                        grade = _graded(sandbox, problem, code)
                    else:
                        grade = Grade(0.0, None, "unanswered: no code between two lines with ```")
                    grades.update(dict.fromkeys(numbers, grade))

            list(threads.map(judge_problem, problems.values()))
        return [grades[number] for number in range(len(answers))]

    def score(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> float:
        """pass@1: the mean over problems of the share of samples that are right."""
        _, problem = np.unique(rows["id"].to_numpy(), return_inverse=True)
        scores = rows["score"].cast(pl.Float64).to_numpy()
        there = ~np.isnan(scores)
        count = np.bincount(problem[there], minlength=problem.max(initial=-1) + 1)
        right = np.bincount(problem[there], scores[there], minlength=len(count))
        weight = np.bincount(problem, weights) / np.bincount(problem)
        with np.errstate(invalid="ignore"):
            return self.scale * weighted_mean(right / count, weight)


class LiveCodeBenchV4(LiveCodeBench):
    """The problems from 2024-06-30 on in release v4, the newest when FuseChat-3.0 appeared."""

    name = "livecodebench_v4"
    title = "LiveCodeBench v4 from 2406"
    files: Mapping[str, DataFile] = {f"livecodebench_test{number}": _file(number) for number in (3, 4)}
    first, last = "2024-06-30", "9999-12-31"


def code_of(text: str, profile: Profile) -> str | None:
    """The lines between two with ```: the first two of the answer as in October 2024, or the last two as since.

    >>> text = "A:\\n```\\n1\\n```\\nB:\\n```python\\n2\\n```"
    >>> code_of(text, "fusechat3"), code_of(text, "clean"), code_of("```python\\n3", "clean")
    ('1', '2', None)
    """
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    if len(fences) < 2:
        return None
    start, end = fences[:2] if profile == "fusechat3" else fences[-2:]
    return "\n".join(lines[start + 1 : end])


@dataclass(frozen=True)
class Problem:
    cases: tuple[judge.Case, ...]
    """For a method: JSON values, of the arguments a line each, and of the result."""
    method: str | None
    """Of `Solution`, or a function; None for a program that reads standard input."""


def read_problem(where: str, fields: Row) -> Problem:
    """A problem's tests: the public ones, then the private ones.

    Args:
      where: names the problem in errors.

    Raises:
      UserError: they are not in the published format.
    """
    column = ""
    try:
        tests: list[Any] = []
        for column in ("public_test_cases", "private_test_cases"):
            tests += _unpacked(fields[column])
        cases = tuple(judge.Case(_text(test["input"]), _text(test["output"])) for test in tests)
        column = "metadata"
        method = json.loads(fields[column]).get("func_name")
        if method is not None and not (isinstance(method, str) and method.isidentifier()):
            raise ValueError("func_name is no name")
    except (ValueError, TypeError, LookupError, AttributeError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        raise UserError(f"{where}: {column}: {type(error).__name__}: {error}") from None
    if not cases:
        raise UserError(f"{where}: no tests")
    return Problem(cases, method)


def _unpacked(text: str) -> list[Any]:
    """JSON, or a pickle of that, compressed and in base64."""
    try:
        found = json.loads(text)
    except ValueError:
        try:
            packed = base64.b64decode(text, validate=True)
        except binascii.Error:
            raise ValueError("neither JSON nor base64") from None
        unpacking = zlib.decompressobj()
        pickled = unpacking.decompress(packed, _MAX_TEST_BYTES)
        if unpacking.unconsumed_tail:
            raise ValueError(f"more than {_MAX_TEST_BYTES} bytes") from None
        found = json.loads(_text(_PlainUnpickler(io.BytesIO(pickled)).load()))
    if not isinstance(found, list):
        raise TypeError("no list of tests")
    return found


class _PlainUnpickler(pickle.Unpickler):
    """Reads no object of any class: a pickle can make whatever it names run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    return value


def _graded(sandbox: judge.Sandbox, problem: Problem, code: str) -> Grade:
    try:
        ast.parse(code)
    except UNPARSABLE as error:
        return Grade(0.0, code, f"syntax_error: {message(error)}")
    if problem.method is None:
        outcome = sandbox.run_script(judge.Script(SETTING, code, problem.cases))
    else:
        outcome = _run_method(sandbox, problem.cases, problem.method, code)
    detail = f"unknown: {outcome.detail}" if outcome.verdict == "unknown" else outcome.detail
    return Grade(float(outcome.verdict == "correct"), code, detail)


def _run_method(sandbox: judge.Sandbox, cases: Sequence[judge.Case], method: str, code: str) -> judge.Outcome:
    """A job for each test, since each has its own time. A tuple in place of a list is no mistake."""
    owner = "Solution" if "class Solution" in code else ""
    called = f"Solution().{method}" if owner else method
    for number, case in enumerate(cases, 1):
        test = (
            f"found = {called}(*map(json.loads, {case.stdin.split(chr(10))!r}))\n"
            f"assert (list(found) if isinstance(found, tuple) else found) == json.loads({case.expected!r})"
        )
        job = judge.Job("import json", SETTING, code, (test,), (), (owner or method,), ())
        outcome = sandbox.run(job)
        if outcome.verdict != "correct":
            return judge.Outcome(outcome.verdict, outcome.detail.replace("test_1", f"test_{number}"))
    return judge.Outcome("correct", "passed")


def _turns(item: Item, family: Family) -> tuple[dict[str, str], ...]:
    question, starter = item.fields["question_content"], item.fields["starter_code"]
    form = _WITH_STARTER_CODE if starter else _WITHOUT_STARTER_CODE
    block = f"```python\n{starter or '# YOUR CODE HERE'}\n```\n\n"
    if family == "qwen":
        user = f"\n{_TASK}\n\nQuestion: {question}\n\n{form}\n{block}"
        return {"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": user}
    user = (
        f"### Question:\n{question}\n\n### Format: {form}\n{block}### Answer: (use the provided format with backticks)"
    )
    if family == "gemma":
        # Its template takes no system turn.
        return ({"role": "user", "content": f"{SYSTEM}\n\n{user}"},)
    return {"role": "system", "content": SYSTEM}, {"role": "user", "content": user}
