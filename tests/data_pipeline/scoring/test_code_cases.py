"""Verdicts on programs of every kind that answers contain, held against plain Python; see code_cases.txt."""

import ast
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import pytest

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.code.programs import find
from data_pipeline.scoring.code.scorer import CodeScorer
from data_pipeline.scoring.scorer import Item, Score


@dataclass(frozen=True)
class Case:
    name: str
    unknown: bool
    program: str
    tests: str


def read_cases() -> list[Case]:
    text = Path(__file__).with_name("code_cases.txt").read_text()
    parts = re.split(r"^=== ([^\n:]+)(: unknown)?\n", text, flags=re.MULTILINE)[1:]
    cases = []
    for name, unknown, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        program, _, tests = body.partition("--- tests\n")
        cases.append(Case(name, unknown is not None, program, tests))
    return cases


CASES = read_cases()


@pytest.fixture(scope="module")
def scores() -> dict[str, Score]:
    scorer = CodeScorer(VerifierLimits(timeout_seconds=5), 2)
    items = [Item({"tests": [case.tests]}, f"```python\n{case.program}\n```") for case in CASES]
    return dict(zip((case.name for case in CASES), scorer.score(items), strict=True))


def plain_verdict(case: Case, monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("answer")
    monkeypatch.setitem(sys.modules, "answer", module)
    try:
        for part in (case.program, case.tests):
            exec(compile(part, "answer.py", "exec"), module.__dict__)
    except (Exception, SystemExit):
        return "wrong"
    return "correct"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdict_is_plain_pythons_or_unknown(scores: dict[str, Score], case: Case, monkeypatch: pytest.MonkeyPatch):
    score = scores[case.name]
    assert score.verdict == ("unknown" if case.unknown else plain_verdict(case, monkeypatch)), score.detail


def negated(tests: str) -> Iterator[str]:
    """The tests with one claim turned into its opposite, for each claim."""
    places = [
        (index, part)
        for index, node in enumerate(ast.walk(ast.parse(tests)))
        if isinstance(node, ast.Assert)
        for part in (range(len(node.test.values)) if _is_and(node.test) else [None])
    ]
    for index, part in places:
        tree = ast.parse(tests)
        node: Any = list(ast.walk(tree))[index]
        if part is None:
            node.test = ast.UnaryOp(ast.Not(), node.test)
        else:
            node.test.values[part] = ast.UnaryOp(ast.Not(), node.test.values[part])
        yield ast.unparse(ast.fix_missing_locations(tree))


def _is_and(node: ast.expr) -> TypeGuard[ast.BoolOp]:
    return isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And)


def test_the_opposite_of_each_claim_has_the_other_verdict_or_none(monkeypatch: pytest.MonkeyPatch):
    changed = [replace(case, tests=tests) for case in CASES for tests in negated(case.tests)]
    assert len(changed) > 500
    scorer = CodeScorer(VerifierLimits(timeout_seconds=5), 2)
    found = scorer.score([Item({"tests": [case.tests]}, f"```python\n{case.program}\n```") for case in changed])
    for case, score in zip(changed, found, strict=True):
        assert score.verdict in ("unknown", plain_verdict(case, monkeypatch)), (case.name, case.tests, score.detail)


def test_enough_cases():
    assert len({case.name for case in CASES}) == len(CASES) >= 260
    assert sum(case.unknown for case in CASES) < 0.2 * len(CASES)


GOOD = "def add(a, b):\n    return a + b\n"
BAD = "def add(a, b):\n    return a - b\n"
FOUND = {
    "the last of two": (f"```python\n{BAD}```\nCorrected:\n```python\n{GOOD}```", GOOD),
    "a stub, then the program": (f"```python\ndef add(a, b):\n    pass\n```\n```python\n{GOOD}```", GOOD),
    "the program, then a stub": (f"```python\n{GOOD}```\nSo\n```python\ndef add(a, b):\n    ...\n```", GOOD),
    "documented stub": (
        f'```py\n{GOOD}```\n```py\ndef add(a, b):\n    "Adds."\n    raise NotImplementedError\n```',
        GOOD,
    ),
    "never closed": (f"```python\n{GOOD.rstrip()}", GOOD),
    "never closed, then prose": (f"```python\n{GOOD}\nThis adds both numbers.", GOOD),
    "closed by the next": (f"```python\n{GOOD}```python\nprint(add(1, 2))\n```", GOOD),
    "tildes": (f"~~~python\n{GOOD}~~~", GOOD),
    "tildes around backticks": ("~~~python\ndef add(a, b):\n    '''\n    ```\n    '''\n    return a + b\n~~~", None),
    "four backticks": (f"````python\n{GOOD}````", GOOD),
    "no fence": (f"Here it is:\n\n{GOOD}", GOOD),
    "no fence, prose behind": (f"Sure.\n\n{GOOD}\nIt adds a and b; from there, import it.", GOOD),
    "no fence, imports": (
        f"Sure.\n\nimport math\nfrom os import path\n\n{GOOD}",
        "import math\nfrom os import path\n" + GOOD,
    ),
    "no fence, decorated": ("So:\n@staticmethod\ndef add(a, b):\n    return a + b\n", "@staticmethod\n" + GOOD),
    "indented by four": (f"Here:\n\n    {GOOD.replace(chr(10), chr(10) + '    ').rstrip()}\n", GOOD),
    "in brackets": (f"[PYTHON]\n{GOOD}[/PYTHON]", GOOD),
    "in tags": (f"<code>\n{GOOD}</code>\n", GOOD),
    "a language in braces": (f"```{{.python}}\n{GOOD}```", GOOD),
    "a version": (f"```Python3.11 title=add.py\n{GOOD}```", GOOD),
    "no language, beside usage in python": (f"```\n{GOOD}```\n```python\nprint(add(1, 2))\n```", GOOD),
    "another label": (f"```text\n{GOOD}```", GOOD),
    "in a list": (f"1. ```python\n   {GOOD.replace(chr(10), chr(10) + '   ').rstrip()}\n   ```", GOOD),
    "tests behind": (f"```python\n{GOOD}```\n```python\ndef test_add():\n    assert add(1, 2) == 3\n```", GOOD),
    "output behind": (f"```python\n{GOOD}```\nOutput:\n```\n3\n```", GOOD),
    "another language first": (f"```java\nint add(int a, int b) {{ return a + b; }}\n```\n```python\n{GOOD}```", GOOD),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_program_is_found(name: str):
    text, code = FOUND[name]
    found, doubt = find(text, ["add"])
    assert doubt is None and found is not None
    assert found.strip() == code.strip() if code else "```" in found and "return a + b" in found


def test_a_last_block_that_does_not_parse_leaves_doubt():
    _, doubt = find(f"```python\n{BAD}```\nBetter:\n```python\ndef add(a, b:\n    return a + b\n```", ["add"])
    assert doubt is not None and doubt.startswith("several_programs")
    scorer = CodeScorer(VerifierLimits(), 1)
    prose = "The function:\n> def add(a, b):\n>     return a + b"
    (score,) = scorer.score([Item({"tests": ["assert add(1, 2) == 3"]}, prose)])
    assert (score.verdict, score.detail) == ("unknown", "code_not_found")


@pytest.mark.parametrize(
    "text",
    [
        "```python\nGOOD\ndef broken(:\n    pass\n```",
        "```python\nGOOD\ndef broken(:\n    pass",
        "```python\ndef broken(:\n    pass\n\nGOOD",
        "~~~\nGOOD\nbroken(\n~~~\nThat is all.",
        "Here:\n\nGOOD\ndef broken(:\n    pass\n",
    ],
)
def test_what_does_not_parse_is_not_left_out(text: str):
    found, doubt = find(text.replace("GOOD", GOOD), ["add"])
    assert doubt == "code_not_found" or (found is not None and "broken" in found)
