"""Programs that pass, fail, cheat and misbehave."""

import ast
import time

import pytest

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.code.code_tests import read
from data_pipeline.scoring.code.imports import BENCHMARK_IMPORTS
from data_pipeline.scoring.code.programs import find
from data_pipeline.scoring.code.scorer import CodeScorer, analyse
from data_pipeline.scoring.sandbox.judge import Job, Sandbox
from data_pipeline.scoring.scorer import Item, Score

TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]
GOOD = "def add(a, b):\n    return a + b\n"

# Writes a report to every open file and leaves: the one that there is leads to the examiner, as a value would.
FORGED = """
import sys
os = sys.modules['os']
for fd in range(16):
    try:
        os.write(fd, b'{"failed": null, "nonce": ""}')
    except OSError:
        pass
os._exit(0)
"""


def judge(code: str, tests: list[str] | None = None, *, fenced: bool = True, **config: float) -> Score:
    scorer = CodeScorer(VerifierLimits(**{"timeout_seconds": 1, **config}), workers=1)
    text = f"Here:\n```python\n{code}\n```\nDone." if fenced else code
    return scorer.score([Item({"tests": TESTS if tests is None else tests}, text)])[0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```python\ndef f(): pass\n```\n```python\nprint(f())\n```", "def f(): pass\n"),
        ("```py\ndef f(): pass\n```\n```\noutput\n```", "def f(): pass\n"),
        ("1. First\n   ```python\n   def f():\n       pass\n   ```", "def f():\n    pass\n"),
        ("```\ndef f(): pass\n```", "def f(): pass\n"),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("```java\nclass A {}\n```", None),
        ("I would define f.", None),
        ("def of a function: it maps", None),
    ],
)
def test_the_program_in_an_answer(text: str, code: str | None):
    assert find(text) == (code, None)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (GOOD, None),
        ("def f(:", "syntax_error"),
        ("def f():\n    return undefined", "undefined_name: undefined"),
        ("import os", "import_not_allowed: os"),
        ("from subprocess import run", "import_not_allowed: subprocess"),
        ("from . import x", "import_not_allowed: ."),
        ("from math import *\nx = sqrt(2)", None),
        ("def f(a, *b, c=1, **d):\n    return [x for x in b if (y := x)] + [a, c, d, y]", None),
        ("try:\n    pass\nexcept ValueError as e:\n    print(e)", None),
        ("match 1:\n    case [a, *b] | {'k': a, **b}:\n        print(a, b)\n    case c:\n        print(c)", None),
        ("class A:\n    def f(self):\n        return __class__", None),
    ],
)
def test_analyse(code: str, problem: str | None):
    found = analyse(code)
    assert found == problem if problem is None or ":" in problem else found is not None and found.startswith(problem)


def test_correct_and_wrong():
    assert judge(GOOD) == Score(verdict="correct", extracted=GOOD + "\n", detail="passed")
    failed = judge("def add(a, b):\n    return 3")
    assert (failed.verdict, failed.detail) == ("wrong", "failed_test: test_2: AssertionError: ")
    assert judge("def add(a, b):\n    raise KeyError(a)").detail == "failed_test: test_1: KeyError: 1"
    assert judge(GOOD, ["assert add(1, 2) == 3\nassert add(1, 1) == 3"]).verdict == "wrong"


def test_setting_comes_before_the_program_and_counts_as_known():
    code = "def first(xs: List[int]) -> Optional[int]:\n    return xs[0] if xs else None"
    setting = "from typing import *\nfrom math import *"
    assert judge(code, [setting, "def check(f):\n    assert f([1]) == 1", "check(first)"]).verdict == "correct"
    assert judge(code, ["assert first([1]) == 1"]).detail == "undefined_name: Optional"
    # `check` asserts, so it runs after the program: an answer cannot replace it.
    cheat = "def first(xs):\n    return 0\ndef check(f):\n    pass"
    assert judge(cheat, [setting, "def check(f):\n    assert f([1]) == 1", "check(first)"]).verdict == "wrong"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys\nsys.exit(0)", "error"),
        ("raise SystemExit", "error"),
        ("import sys\ndef add(a, b):\n    sys.exit(0)", "failed_test"),
        ("import sys\ndef add(a, b):\n    sys.modules['os']._exit(0)", "ended_early"),
        ("def add(a, b):\n    print('{\"failed\": null}')\n    return 0", "failed_test"),
        (FORGED, "misbehaved"),
        ("def add(a, b):\n    while True:\n        pass", "timeout"),
        ("x = 'a' * (8 * 2**30)", "error"),
        ("def add(a, b):\n    return add(a, b)", "failed_test"),
        ("def add(a, b):\n    return input()", "failed_test"),
    ],
)
def test_wrong_for_misbehaving(code: str, reason: str):
    score = judge(code)
    assert score.verdict == "wrong" and score.detail is not None
    assert score.detail.startswith(reason), score.detail


def test_unknown_where_it_cannot_be_found_out():
    uses = "import numpy as np\ndef add(a, b):\n    return np.add(a, b)"
    assert (judge(uses).verdict, judge(uses).detail) == ("unknown", "import_not_allowed: numpy")
    assert (judge(GOOD, []).verdict, judge(GOOD, []).detail) == ("unknown", "no_tests")
    broken = judge(GOOD, ["assert add(1,"])
    assert broken.verdict == "unknown" and broken.detail is not None and broken.detail.startswith("bad_test")
    started = time.monotonic()
    slept = judge("import time\ntime.sleep(60)", timeout_seconds=0.1)
    assert (slept.verdict, slept.detail) in (("wrong", "timeout: asleep"), ("unknown", "wall_timeout"))
    assert time.monotonic() - started < 10


LEETCODE = "import math\nclass Node:\n    def __init__(self, v):\n        self.v = v\ndef node(v):\n    return Node(v)"


@pytest.mark.parametrize(
    ("tests", "detail"),
    [
        (["def check(candidate):\n    assert candidate(1, 2) == 3"], "tests_check_nothing"),
        (["add(1, 2) == 3"], "tests_check_nothing"),
        (["print(add(1, 2))"], "tests_check_nothing"),
        (["def test_add():\n    add(1, 2) == 3"], "tests_check_nothing"),
        (["if __name__ == '__main__':\n    assert add(1, 2) == 3"], "tests_check_nothing"),
        (["import math"], "no_tests"),
        (["import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        assert False"], "bad_test"),
        (["import numpy as np\nassert add(1, 2) == np.int64(3)"], "bad_test: imports numpy"),
        (["x = 1 / 0", "assert add(1, 2) == 3"], "bad_test: setting: ZeroDivisionError"),
    ],
)
def test_tests_that_cannot_tell_give_no_verdict(tests: list[str], detail: str):
    for code in (GOOD, "def add(a, b):\n    return None"):
        score = judge(code, tests)
        assert score.verdict == "unknown" and score.detail is not None and score.detail.startswith(detail), score


def test_what_a_test_imports_is_not_the_programs_fault():
    score = judge(GOOD, ["assert add(1, 2) == 3", "import numpy"])
    assert (score.verdict, score.detail) == ("unknown", "bad_test: imports numpy")


@pytest.mark.parametrize(
    "tests",
    [
        ["def test_add():\n    assert add(1, 2) == 3"],
        ["def test_add(verbose=False):\n    if add(1, 2) != 3:\n        raise ValueError"],
        ["def check(candidate):\n    assert candidate(1, 2) == 3\ncheck(add)"],
        ["def equal(a, b):\n    assert a == b", "def check(f):\n    equal(f(1, 2), 3)", "check(add)"],
        ["result = add(1, 2)", "assert result == 3"],
        ["for a, b in [(1, 2)]:\n    assert add(a, b) == a + b"],
        [LEETCODE, "assert add(node(1).v, math.floor(2.5)) == 3"],
    ],
)
def test_tests_that_can_tell(tests: list[str]):
    assert judge(GOOD, tests).verdict == "correct"
    assert judge("def add(a, b):\n    return None", tests).verdict == "wrong"


def test_the_block_that_defines_what_is_tested():
    helper = "```python\nfrom math import floor\n```\n"
    solution = "```python\ndef add(a, b):\n    return floor(a + b)\n```\n"
    demonstration = "```python\nfrom solution import add\ndef test_add():\n    assert add(1, 2) == 4\ntest_add()\n```\n"
    scorer = CodeScorer(VerifierLimits(), workers=1)
    (score,) = scorer.score([Item({"tests": TESTS}, helper + solution + demonstration)])
    assert score == Score(
        None, "correct", "from math import floor\n\ndef add(a, b):\n    return floor(a + b)\n", "passed"
    )


def test_an_undefined_name_that_nothing_comes_by_does_no_harm():
    assert judge(GOOD + "def unused():\n    return missing").verdict == "correct"
    failed = judge("def add(a, b):\n    return a + missing")
    assert (failed.verdict, failed.detail) == ("wrong", "undefined_name: missing")


def test_no_code_is_wrong():
    assert (judge("I cannot.", fenced=False).verdict, judge("I cannot.", fenced=False).detail) == ("wrong", "no_code")


def test_prints_dataclasses_and_main_guards_do_no_harm():
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nprint('x' * 10**6)\n"
        "@dataclass\nclass P:\n    x: int\n" + GOOD + "if __name__ == '__main__':\n    raise ValueError"
    )
    assert judge(code).verdict == "correct"


def test_equal_programs_run_once(monkeypatch: pytest.MonkeyPatch):
    calls: list[Job] = []
    run = Sandbox.run
    monkeypatch.setattr(Sandbox, "run", lambda sandbox, job: calls.append(job) or run(sandbox, job))
    scorer = CodeScorer(VerifierLimits(), workers=2)
    calls.clear()  # Of the probe.
    items = [Item({"tests": TESTS}, f"```python\n{GOOD}```")] * 3
    assert [score.verdict for score in [*scorer.score(items), *scorer.score(items)]] == ["correct"] * 6
    assert len(calls) == 1


def test_what_the_tests_read_is_withheld_from_the_program():
    tests = [
        "from math import *\ninf = float('inf')\nLIMIT = 9\nCASES = [((1, 2), 3)]\n"
        "def pick(cases):\n    return cases[0]\ndef helper(x):\n    return x\nclass Node:\n    pass",
        "def check(candidate):\n    (a, b), expected = pick(CASES)\n    assert candidate(a, b) == expected < inf",
        "check(add)",
    ]
    suite = read(tests)
    assert suite.problem is None and suite.withheld == {"CASES", "pick"}
    shared = "from math import *\ninf = float('inf')\nLIMIT = 9\ndef helper(x):\n    return x\nclass Node:\n    pass"
    assert ast.dump(ast.parse(suite.shared)) == ast.dump(ast.parse(shared))
    assert judge(GOOD, tests).verdict == "correct"
    assert judge("def add(a, b):\n    return helper(a + b) if a < min(inf, LIMIT) else 0", tests).verdict == "correct"
    cheat = judge("def add(a, b):\n    return CASES[0][1]", tests)
    assert (cheat.verdict, cheat.detail) == ("unknown", "reads_the_tests: CASES")
    assert judge("CASES = {}\ndef add(a, b):\n    CASES[a] = b\n    return a + CASES[a]", tests).verdict == "correct"


def test_an_import_that_fails_is_the_programs_fault():
    failed = judge("from math import nothing\n" + GOOD)
    assert failed.verdict == "wrong" and failed.detail is not None and failed.detail.startswith("error: import")


def test_tests_may_use_what_the_program_imports_under_its_own_name():
    program = "from collections import Counter\n" + GOOD
    assert judge(program, ["assert Counter([add(1, 2)]) == {3: 1}"]).verdict == "correct"


WIDE = "import os, colorsys, urllib.parse\nimport numpy as np\nfrom io import StringIO\n" + (
    "def add(a, b):\n    print(1, file=StringIO())\n"
    "    assert colorsys.rgb_to_hsv(0, 0, 0) == (0, 0, 0) and urllib.parse.quote(os.sep) == '/'\n"
    "    return int(np.linalg.det(np.eye(2)) * np.add(a, b))"
)


def test_benchmarks_import_more():
    item = Item({"tests": TESTS}, f"```python\n{WIDE}\n```")
    narrow = CodeScorer(VerifierLimits(), workers=1)
    wide = CodeScorer(VerifierLimits(), workers=1, imports=BENCHMARK_IMPORTS)
    assert [score.detail for score in narrow.score([item])] == ["import_not_allowed: colorsys"]
    assert [score.detail for score in wide.score([item])] == ["passed"]
    assert wide.fingerprint != narrow.fingerprint
    # Modules that need what the sandbox refuses.
    for code in ("return os.fork()", "return os.kill(1, 9)", "return len(os.listdir('/proc')) and a + b"):
        body = f"import os\ndef add(a, b):\n    {code}"
        (score,) = wide.score([Item({"tests": TESTS}, f"```python\n{body}\n```")])
        assert score.verdict == "wrong" and "Error: [Errno" in (score.detail or "")
    (score,) = wide.score([Item({"tests": ["import os", *TESTS]}, f"```python\n{GOOD}\n```")])
    assert score.verdict == "correct"
