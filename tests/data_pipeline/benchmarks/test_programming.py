"""HumanEval and MBPP: rows, prompts, and programs that run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data_pipeline.benchmarks.benchmark import Answer, Grade, Graded, Item, Prompt, Tools
from data_pipeline.benchmarks.suite.humaneval import HumanEval
from data_pipeline.benchmarks.suite.mbpp import MBPP
from data_pipeline.benchmarks.suite.programming import Programming, needed, program
from data_pipeline.scoring.code.programs import find
from fusejax.common.cli import UserError

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def twice(x):\n    """ Twice x. """\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 6\n",
}
MBPP_ROW = {
    "task_id": "Mbpp/2",
    "prompt": '"""\nFind the shared elements.\nassert set(similar_elements((3, 4), (4, 5))) == {4}\n"""\n',
    "entry_point": "similar_elements",
    "canonical_solution": "def similar_elements(a, b):\n  return tuple(set(a) & set(b))\n",
    "base_input": [[[3, 4, 5, 6], [5, 7, 4, 10]], [[1], [2]]],
    "plus_input": [[[1], [1]]],
    "atol": 0,
}
HUB_ROW = {
    "task_id": 2,
    "code": MBPP_ROW["canonical_solution"],
    "prompt": "Find the shared elements.",
    "test_imports": [],
    "test_list": ["assert set(similar_elements((3, 4), (4, 5))) == {4}", "assert not similar_elements((1,), (2,))"],
    "test": "import numpy as np\nfrom math import inf\n\ndef assertion(out, exp, atol):\n    assert out == exp\n\n"
    "inputs = [[(3, 4, 5, 6), (5, 7, 4, 10)], [(1,), (2,)], [(1,), (1,)]]\nresults = [(4, 5), (), (1,)]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(similar_elements(*inp), exp, 0)\n",
}  # fmt: skip
EVALPLUS = "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
BEGUN = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:\n"
    "```python\n"
)
SYSTEM = "You are an intelligent programming assistant to produce Python algorithmic solutions"
QWEN = 'Can you complete the following Python function?\n```python\ndef twice(x):\n    """ Twice x. """\n\n```\n'


def item_of(benchmark: Programming, row: dict[str, Any]) -> Item:
    return benchmark.items({benchmark.name: [row]})[0]


def grade(benchmark: Programming, *answers: tuple[Item, str]) -> list[Grade]:
    return benchmark.grade(
        [Answer(item, 0, (text,), ("stop",), 5) for item, text in answers], "clean", Tools(workers=1)
    )


def mbpp(entry_point: str, reference: str, calls: list[list[Any]], *, number: int = 1000, atol: float = 0) -> Item:
    row = MBPP_ROW | {"task_id": f"Mbpp/{number}", "entry_point": entry_point, "canonical_solution": reference}
    return item_of(MBPP(), row | {"base_input": calls, "atol": atol})


@pytest.mark.parametrize("kind", [HumanEval, MBPP])
def test_they_are_benchmarks(kind: type[Programming]):
    assert isinstance(kind(), Graded)


def test_both_shapes_of_mbpp_are_one_task():
    ours, hub = (item_of(MBPP(), row) for row in (MBPP_ROW, HUB_ROW))
    assert ours.id == hub.id == "Mbpp/2"
    assert ours.fields == hub.fields
    assert "CALLS = [[(3, 4, 5, 6), (5, 7, 4, 10)], [(1,), (2,)]]\n" in ours.fields["tests"][0]


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        (HumanEval(), {"prompt": "p"}, "humaneval: row 2: no text in entry_point; its columns are prompt"),
        (HumanEval(), HUMANEVAL | {"prompt": "def f("}, "humaneval: row 2: prompt or test is no Python"),
        (HumanEval(), HUMANEVAL, "humaneval: row 2: HumanEval/0 has been the name of a row before"),
        (MBPP(), MBPP_ROW | {"base_input": []}, "mbpp: row 2: base_input holds no inputs of task 2"),
        (MBPP(), MBPP_ROW | {"base_input": [[1]]}, "mbpp: row 2: base_input holds no inputs of task 2"),
        (MBPP(), MBPP_ROW | {"task_id": "two"}, "mbpp: row 2: the task_id has no number"),
        (MBPP(), HUB_ROW | {"test": "x"}, "mbpp: row 2: its test, code and test_list are not as on the Hub"),
        (MBPP(), {"code": "x"}, "mbpp: row 2: neither base_input nor test_list; its columns are code"),
    ],
)
def test_a_wrong_row_is_one_line(benchmark: Programming, row: dict[str, Any], message: str):
    good = HUMANEVAL if benchmark.name == "humaneval" else MBPP_ROW | {"task_id": "Mbpp/3"}
    with pytest.raises(UserError) as error:
        benchmark.items({benchmark.name: [good, row]})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("family", "profile", "expected"),
    [
        *(
            (family, profile, Prompt(
                ({"role": "user", "content": f'{EVALPLUS}```\ndef twice(x):\n    """ Twice x. """\n```\n'},),
                prefix=BEGUN, bos_again=again,
            ))
            for family, profile, again in (
                ("llama", "clean", False), ("gemma", "clean", False), ("other", "clean", False),
                ("llama", "fusechat3", True), ("gemma", "fusechat3", False),
            )
        ),
        ("qwen", "clean", Prompt(
            ({"role": "system", "content": SYSTEM}, {"role": "user", "content": QWEN}), prefix="```python\n",
        )),
        ("qwen", "fusechat3", Prompt(
            text=f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{QWEN}<|im_end|>\n<|im_start|>assistant\n",
            prefix="```python\n",
        )),
    ],
)  # fmt: skip
def test_prompts(family: Any, profile: Any, expected: Prompt):
    item = item_of(HumanEval(), HUMANEVAL)
    assert HumanEval().prompt(item, family, profile, ()) == expected
    asked = HumanEval().asked(item, family, profile)
    stop = ("\nif __name__", "\ndef main(", "\nprint(", "\n```")
    assert asked.sampling.stop == ((*stop, "\n#") if profile == "fusechat3" else stop)
    assert (asked.sampling.temperature, asked.max_tokens) == (0.0, 2048)


@pytest.mark.parametrize(
    ("code", "kept"),
    [
        ("import os\nx = int(input())\ndef f():\n    return 1\nassert f() == 2", "import os\n\ndef f():\n    return 1"),
        (
            "def g():\n    return h\nh = 1\ndef f():\n    return g()",
            "def g():\n    return h\nh = 1\n\ndef f():\n    return g()",
        ),
        ("def f(:", "def f(:"),
        ("def g():\n    pass", "def g():\n    pass"),
    ],
)
def test_what_is_needed_of_a_program(code: str, kept: str):
    assert needed(code, "f") == kept


def test_the_program_in_an_answer_is_found_again():
    text = "def f(x):\n    return '```'\n\nprint(f(1))\n"
    assert find(program(text, "f"), ["f"]) == ("def f(x):\n    return '```'\nfunction_of_the_answer = f\n", None)


def test_humaneval_runs_programs():
    helped = HUMANEVAL | {
        "task_id": "HumanEval/1",
        "prompt": 'def double(x):\n    return 2 * x\n\ndef half(x):\n    """ Undo double. """\n',
        "entry_point": "half",
        "test": "def check(candidate):\n    assert candidate(double(4)) == 4\n",
        "canonical_solution": "    return x // 2\n",
    }
    first, second = HumanEval().items({"humaneval": [HUMANEVAL, helped]})
    grades = grade(
        HumanEval(),
        (first, first.fields["reference"]),
        (first, "def twice(x):\n    return x + x\n"),
        (first, "def twice(x):\n    pass\n"),
        (first, "def twice(x):\n    return 2 * y\n"),
        (first, "def thrice(x):\n    return 2 * x\n"),
        (first, "def twice(x):\n    return 2 * x\n\nassert twice(1) == 3\n"),
        (first, "import tkinter\ndef twice(x):\n    return tkinter.f(x)\n"),
        (second, "def half(x):\n    return x // 2\n"),
        (first, "import numpy\ndef twice(x):\n    return int(numpy.add(x, x))\n"),
    )
    assert [found.score for found in grades] == [1, 1, 0, 0, 0, 1, 0, 1, 1]
    assert (grades[6].detail or "").startswith("unknown: import_not_allowed: tkinter")


def test_mbpp_compares_with_the_reference():
    shared = item_of(MBPP(), MBPP_ROW)
    thirds = mbpp("third", "def third(x):\n    return x / 3\n", [[1], [2]])
    rough = mbpp("third", "def third(x):\n    return x / 3\n", [[1]], atol=0.01)
    total = mbpp("sum", "def sum(a, b):\n    return a + b\n", [[1, 2]])
    match = mbpp("check_str", "import re\ndef check_str(x):\n    return re.search('a', x)\n", [["a"], ["b"]])
    pyramid = mbpp("surface_Area", "def surface_Area(b, s):\n    return 2 * b * s + b ** 2\n", [[3, 4]])
    broken = mbpp("f", "def f(x):\n    return 1 / 0\n", [[1]])
    counted = mbpp("count", "def count(x):\n    x.append(1)\n    return len(x)\n", [[[1]], [[1]]])
    cases = [
        (shared, shared.fields["reference"], 1),
        (shared, "def similar_elements(a, b):\n    return [x for x in b if x in a]\n", 1),
        (shared, "def similar_elements(a, b):\n    return a\n", 0),
        (shared, "def similar_elements(a, b):\n    assert type(a) is tuple\n    return set(a) & set(b)\n", 1),
        (thirds, "def third(x):\n    return x * 0.33333333\n", 1),
        (thirds, "def third(x):\n    return x * 0.333\n", 0),
        (rough, "def third(x):\n    return x * 0.333\n", 1),
        (total, "def sum(x, y):\n    return x + y\n", 1),
        (total, "def sum(x, y):\n    return x - y\n", 0),
        (match, "def check_str(x):\n    return 'a' in x\n", 1),
        (match, "def check_str(x):\n    return 'found' if 'a' in x else None\n", 1),
        (match, "def check_str(x):\n    return None\n", 0),
        (pyramid, "def surface_Area(b, h):\n    return round(b * b + 2 * b * ((b / 2) ** 2 + h * h) ** 0.5)\n", 1),
        (pyramid, "def surface_Area(b, h):\n    return 7\n", 0),
        (broken, "def f(x):\n    return 1\n", 0),
        (shared, "import numpy\ndef similar_elements(a, b):\n    return tuple(numpy.intersect1d(a, b))\n", 1),
        (shared, "import numpy\ndef similar_elements(a, b):\n    return tuple(numpy.union1d(a, b))\n", 0),
        (thirds, "import numpy\ndef third(x):\n    return numpy.divide(x, 3)\n", 1),
        (thirds, "import numpy\ndef third(x):\n    return numpy.divide(x, 4)\n", 0),
        (match, "import numpy\ndef check_str(x):\n    return numpy.isin('a', list(x))[()]\n", 1),
        (counted, "def count(x):\n    x.append(1)\n    return len(x)\n", 1),
    ]
    grades = grade(MBPP(), *((item, text) for item, text, _ in cases))
    assert [found.score for found in grades] == [score for *_, score in cases]
    broken_reference = next(found for found, (item, *_) in zip(grades, cases, strict=True) if item is broken)
    assert (broken_reference.detail or "").startswith("unknown: bad_test: setting")


def test_a_program_sees_neither_reference_nor_inputs():
    shared = item_of(MBPP(), MBPP_ROW)
    for name in ("SOURCE", "CASES", "expected"):
        found = grade(MBPP(), (shared, f"def similar_elements(a, b):\n    return {name}\n"))[0]
        assert found.score == 0
        assert name in (found.detail or "")


def test_the_score_is_pass_at_1():
    rows = pl.DataFrame({"score": [1.0, 0.0]})
    assert HumanEval().score(rows, np.array([3.0, 1.0])) == 75


def test_the_references_pass_and_empty_bodies_fail(eval_data: Path):
    rows = [json.loads(line) for line in (eval_data / "humaneval.jsonl").read_text().splitlines()]
    items = HumanEval().items({"humaneval": rows})
    assert len(items) == 164
    answers = [(item, item.fields["reference"]) for item in items]
    answers += [(item, item.fields["prompt"] + "    pass\n") for item in items]
    grades = grade(HumanEval(), *answers)
    assert [found.score for found in grades] == [1] * 164 + [0] * 164
