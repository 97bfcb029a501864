"""LiveCodeBench, on problems written here in the format that is published."""

import base64
import json
import pickle
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_pipeline.benchmarks.benchmark import Answer, Benchmark, Graded, Item, Prompt, Tools
from data_pipeline.benchmarks.suite.livecodebench import LiveCodeBench, LiveCodeBenchV4, code_of, read_problem
from fusejax.common.cli import UserError


def packed(tests: object) -> str:
    """As private tests are published."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def cases(kind: str, *pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"input": given, "output": expected, "testtype": kind} for given, expected in pairs]


def row(name: str, **changes: str) -> dict[str, str]:
    return {
        "question_title": name.upper(),
        "question_content": f"Content of {name}.",
        "platform": "atcoder",
        "question_id": name,
        "contest_id": "abc365",
        "contest_date": "2024-08-03T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(cases("stdin", ("2\n3 4\n", "7\n"))),
        "private_test_cases": packed(cases("stdin", ("1\n5\n", "5\n"), ("3\n1 1 1\n", "3.0\n"))),
        "metadata": "{}",
        **changes,
    }


SUM = row("sum")
PAIR = row(
    "pair",
    platform="leetcode",
    starter_code="class Solution:\n    def pair(self, x: List[int], y: int) -> List[int]:\n        ",
    public_test_cases=json.dumps(cases("functional", ("[1, 2]\n3", "[3, 3]"))),
    private_test_cases=packed(cases("functional", ("[5]\n-1", "[5, -1]"), ('[]\n"a"', '[0, "a"]'))),
    metadata='{"func_name": "pair"}',
)


def items(*rows: dict[str, str], benchmark: LiveCodeBench | None = None) -> list[Item]:
    benchmark = benchmark or LiveCodeBench()
    first, second = benchmark.files
    return benchmark.items({first: rows[:1], second: rows[1:]})


def test_it_is_what_the_command_runs():
    for benchmark in (LiveCodeBench(), LiveCodeBenchV4()):
        assert isinstance(benchmark, Benchmark) and isinstance(benchmark, Graded)
    assert [file.file for file in LiveCodeBench.files.values()] == ["test4.jsonl", "test5.jsonl"]
    assert [file.file for file in LiveCodeBenchV4.files.values()] == ["test3.jsonl", "test4.jsonl"]


def test_the_windows():
    days = ("2024-06-29", "2024-06-30", "2024-07-31", "2024-08-01", "2024-11-30", "2024-12-01", "2025-01-04")
    rows = [row(day, contest_date=f"{day}T00:00:00") for day in days]
    assert [item.id for item in items(*rows, rows[4])] == ["2024-08-01", "2024-11-30"]
    assert [each["question_id"] for each in rows if LiveCodeBench().keep(each)] == ["2024-08-01", "2024-11-30"]
    assert LiveCodeBench().keep({"question_id": "without a date"})  # for `items` to refuse
    assert [item.id for item in items(*rows, benchmark=LiveCodeBenchV4())] == list(days[1:])


def test_a_row_without_a_column():
    broken = {name: value for name, value in SUM.items() if name != "private_test_cases"}
    with pytest.raises(UserError, match="livecodebench: livecodebench_test5: row 1: no text in private_test_cases"):
        items(PAIR, broken)


def test_the_tests_of_a_problem():
    problem = read_problem("sum", SUM)
    assert [case.expected for case in problem.cases] == ["7\n", "5\n", "3.0\n"] and problem.method is None
    assert read_problem("pair", PAIR).method == "pair"
    unpacked = row("x", private_test_cases=json.dumps(cases("stdin", ("1\n5\n", "5\n"))))
    assert read_problem("x", unpacked).cases == problem.cases[:2]


class Attack:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_pickle_of_anything_but_text_is_refused(tmp_path: Path):
    for value, why in (
        (pickle.dumps(Attack(tmp_path / "harm")), "UnpicklingError: names pathlib"),
        (pickle.dumps([1]), "TypeError: list in place of text"),
        (pickle.dumps("no JSON"), "JSONDecodeError"),
        (pickle.dumps('{"a": 1}'), "TypeError: no list of tests"),
        (pickle.dumps('[{"input": 1, "output": "2"}]'), "TypeError: int in place of text"),
        (b"", "EOFError"),
    ):
        broken = row("x", private_test_cases=base64.b64encode(zlib.compress(value)).decode())
        with pytest.raises(UserError, match=f"livecodebench_test5: row 1: private_test_cases: {why}"):
            items(SUM, broken)
    with pytest.raises(UserError, match="private_test_cases: ValueError: neither JSON nor base64"):
        read_problem("x", row("x", private_test_cases="?"))
    with pytest.raises(UserError, match="x: metadata: ValueError: func_name is no name"):
        read_problem("x", row("x", metadata='{"func_name": "f(1) or exit"}'))
    with pytest.raises(UserError, match="x: no tests"):
        read_problem("x", row("x", public_test_cases="[]", private_test_cases="[]"))
    assert not (tmp_path / "harm").exists()


TASK = (
    "You will be given a question (problem specification) and will generate a correct Python program that matches the "
    "specification and passes all tests. You will NOT return anything except for the program."
)
GENERIC = f"You are an expert Python programmer. {TASK}"
STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows."
)
STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
ASKED = (
    f"### Question:\nContent of sum.\n\n### Format: {STDIN}\n```python\n# YOUR CODE HERE\n```\n\n"
    "### Answer: (use the provided format with backticks)"
)


def test_prompts():
    stdin, method = items(SUM, PAIR)
    ask = LiveCodeBench().prompt
    system, user = {"role": "system", "content": GENERIC}, {"role": "user", "content": ASKED}
    assert ask(stdin, "llama", "clean", ()) == ask(stdin, "other", "clean", ()) == Prompt(messages=(system, user))
    both = f"{GENERIC}\n\n{ASKED}"
    assert ask(stdin, "gemma", "clean", ()) == Prompt(messages=({"role": "user", "content": both},))
    assert ask(stdin, "llama", "fusechat3", ()) == Prompt(
        text=f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{GENERIC}<|eot_id|>"
        f"<|start_header_id|>user<|end_header_id|>\n\n{ASKED}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        bos_again=True,
    )
    qwen = ask(method, "qwen", "fusechat3", ())
    assert qwen == Prompt(
        text="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\n"
        f"{TASK}\n\nQuestion: Content of pair.\n\n{STARTER}\n"
        f"```python\n{PAIR['starter_code']}\n```\n\n<|im_end|>\n<|im_start|>assistant\n"
    )
    assert qwen.text.count(ask(method, "qwen", "clean", ()).messages[1]["content"]) == 1
    asked = LiveCodeBench().asked(stdin, "qwen", "clean")
    assert (asked.samples, asked.max_tokens, asked.sampling.temperature) == (10, 2000, 0.2)
    assert (asked.sampling.top_p, asked.sampling.stop) == (0.95, ("###",))


def test_which_code_counts():
    text = "Idea:\n```\nfirst\n```\nBetter:\n```python\nsecond\nthird\n```\n"
    assert code_of(text, "fusechat3") == "first"
    assert code_of(text, "clean") == "second\nthird"
    assert code_of("```python\ncut off", "clean") is code_of("nothing", "fusechat3") is None


READ = "n = int(input())\n"
METHOD = "class Solution:\n    def pair(self, x: List[int], y: int) -> List[int]:\n        return {}\n"
GRADES = [
    ("sum", READ + "print(sum(map(int, input().split())))", 1.0, "passed"),
    ("sum", READ + "print(7)", 0.0, "wrong_output: test_2: line 1: '7', expected '5'"),
    ("sum", READ + "print(sum(map(int, input().split())) if n < 3 else 4)", 0.0, "wrong_output: test_3: "),
    ("sum", "for _ in range(9):\n    input()", 0.0, "error: test_1: EOFError"),
    ("sum", "print(reduce(add, list(map(int, stdin.read().split()))[1:]))", 1.0, "passed"),
    ("sum", "def f(:\n", 0.0, "syntax_error: "),
    ("sum", "", 0.0, "unanswered: "),
    ("pair", METHOD.format("[sum(x), y]"), 1.0, "passed"),
    ("pair", METHOD.format("(sum(x), y)"), 1.0, "passed"),
    ("pair", METHOD.format("[3, 3]"), 0.0, "failed_test: test_2: AssertionError"),
    ("pair", METHOD.format("[sum(x), y] if x else [1, y]"), 0.0, "failed_test: test_3: AssertionError"),
    ("pair", METHOD.format("[x[0] // 0, y]"), 0.0, "failed_test: test_1: ZeroDivisionError"),
    ("pair", METHOD.replace("pair", "other").format("[]"), 0.0, "failed_test: test_1: AttributeError"),
    ("pair", METHOD.format("1") + "raise ValueError(1)", 0.0, "error: import: ValueError"),
    ("pair", "import numpy as np\ndef pair(x, y):\n    return [int(np.sum(x)), y]", 1.0, "passed"),
    # What it returns says itself that it is right.
    (
        "pair",
        "class All:\n    __eq__ = lambda *_: True\n" + METHOD.format("All()"),
        0.0,
        "unknown: undecidable: test_1",
    ),
]


def test_grades():
    problems = {item.id: item for item in items(SUM, PAIR)}
    answers = [
        Answer(problems[name], index, (f"Here:\n```python\n{code}\n```" if code else "None.",), ("stop",), 9)
        for index, (name, code, _, _) in enumerate(GRADES)
    ]
    grades = LiveCodeBench().grade(answers, "clean", Tools(workers=2))
    for grade, (_, code, score, detail) in zip(grades, GRADES, strict=True):
        assert grade.score == score and (grade.detail or "").startswith(detail), grade
        assert grade.extracted == (code or None)


def test_the_score_is_the_mean_over_problems():
    rows = pl.DataFrame(
        {"id": ["a", "b", "a", "b", "c"], "score": [1.0, 0.0, 0.0, None, 1.0]},
        schema={"id": pl.String(), "score": pl.Float64()},
    )
    benchmark = LiveCodeBench()
    assert benchmark.score(rows, np.ones(5)) == pytest.approx(100 * (0.5 + 0 + 1) / 3)
    assert benchmark.score(rows, np.array([2.0, 0, 2, 0, 1])) == pytest.approx(100 * (2 * 0.5 + 1) / 3)
    assert np.isnan(benchmark.score(rows.with_columns(score=pl.lit(None, pl.Float64())), np.ones(5)))
