"""Programs that read standard input: what they may use, what is wrong with them, and what they cannot do."""

import sys
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.scoring.code.imports import BENCHMARK_IMPORTS, preloaded
from data_pipeline.scoring.sandbox import judge, tiers
from data_pipeline.scoring.sandbox.exchange import MAX_OUTPUT_BYTES
from data_pipeline.scoring.sandbox.judge import Case, Outcome, Sandbox, Script
from data_pipeline.scoring.sandbox.outputs import difference
from tests.data_pipeline.scoring.bait import Bait, nobody_left


def run(sandbox: Sandbox, code: str, *cases: tuple[str, str], setting: str = "") -> Outcome:
    return sandbox.run_script(Script(setting, code, tuple(Case(*case) for case in cases or [("", "")])))


@pytest.fixture(scope="module")
def sandbox(tier: tiers.Tier):
    with Sandbox(judge.Limits(1, 1024), preloaded(BENCHMARK_IMPORTS), workers=1, tier=tier) as sandbox:
        assert run(sandbox, "").verdict == "correct"
        yield sandbox


DEEP = 30_000 if sys.version_info < (3, 12) else 300
"""Later versions of Python limit calls through C, whatever the stack."""
SUMS = (("1 2\n", "3\n"), ("10 -4", "6.0"))
PROGRAMS = {
    "input": "a, b = map(int, input().split())\nprint(a + b)",
    "prompt of input": "print(sum(map(int, input('').split())), end='')",
    "sys.stdin": "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))",
    "read": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "readline": "import sys\ninput = sys.stdin.readline\nprint(sum(map(int, input().split())))\nassert input() == ''",
    "buffer": "import sys\nsys.stdout.buffer.write(b'%d' % sum(map(int, sys.stdin.buffer.read().split())))",
    "open(0)": "print(sum(map(int, open(0).read().split())))",
    "os.read": "import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())",
    "numpy": "import numpy as np, sys\nprint(np.array(sys.stdin.read().split(), dtype=np.int64).sum())",
    "main": "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
    "exit": "import sys\nprint(sum(map(int, input().split())))\nsys.exit(1)\nprint('more')",
    "exit at the end": "import atexit\natexit.register(lambda: print(sum(map(int, input().split()))))\nexit()",
    "own output": "import io, os, sys\nout, sys.stdout = sys.stdout, io.StringIO()\n"
    "print(sum(map(int, input().split())))\nout.write(sys.stdout.getvalue())",
    "thread": "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**27)\n"
    "def f(n):\n    return n and 1 + f(n - 1)\n"
    "def main():\n    print(sum(map(int, input().split())) + f(50_000) - 50_000)\n"
    "thread = threading.Thread(target=main)\nthread.start()\nthread.join()",
    "deep in C": "import functools, sys\nsys.setrecursionlimit(10**6)\n"
    "@functools.lru_cache(None)\ndef f(n):\n    return n and 1 + f(n - 1)\n"
    f"print(sum(map(int, input().split())) + f({DEEP}) - {DEEP})",
    "errors printed": "import sys\nprint('x' * 10**6, file=sys.stderr)\nprint(sum(map(int, input().split())))",
    "classes of its own": "import dataclasses, pickle\n@dataclasses.dataclass\nclass P:\n    a: int\n"
    "print(sum(pickle.loads(pickle.dumps(P(int(x)))).a for x in input().split()))",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(sandbox: Sandbox, name: str):
    assert run(sandbox, PROGRAMS[name], *SUMS) == Outcome("correct", "passed")
    assert run(sandbox, PROGRAMS[name], ("1 2", "3"), ("1 2", "4")).detail.startswith(
        "wrong_output: test_2: line 1: '3"
    )


WRONG = {
    "print(2)": "wrong_output: test_1: line 1: '2', expected '3'",
    "print(3)\nprint(4)": "wrong_output: test_1: 2 lines, expected 1",
    "print(3)\n1 / 0": "error: test_1: ZeroDivisionError: division by zero",
    "print(3)\nraise ValueError('a\\nb')": "error: test_1: ValueError: a b",
    "input(), input()": "error: test_1: EOFError: EOF when reading a line",
    "import nowhere": "error: test_1: ModuleNotFoundError: No module named 'nowhere'",
    "def f(:": "error: test_1: SyntaxError: invalid syntax (main.py, line 1)",
    "import os\nos._exit(4)": "ended_early: test_1: exit status 4",
    "def f():\n    f()\nf()": "error: test_1: RecursionError: maximum recursion depth exceeded",
    "x = bytes(2 * 10**9)": "error: test_1: MemoryError:",
    "while True:\n    pass": "timeout: test_1",
    "while True:\n    print('x' * 9999)": "output_limit: test_1",
    "import os, signal\nsignal.signal(13, signal.SIG_IGN)\nwhile True:\n    try:\n        os.write(1, bytes(9999))\n"
    "    except OSError:\n        pass": "output_limit: test_1",
    "while True:\n    print('x' * 9999, file=__import__('sys').stderr)": "output_limit: test_1",
    "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n"
    "        pass": "timeout: test_1",
    "import os\nos.close(1)\nos.close(0)\nwhile True:\n    pass": "timeout: test_1",
    "import os\nos.fork()": "error: test_1: PermissionError: [Errno 1] Operation not permitted",
    "import os\nos.kill(os.getpid(), 9)": "error: test_1: PermissionError: [Errno 1] Operation not permitted",
    "import os\nos.kill(os.getppid(), 9)": "error: test_1: PermissionError: [Errno 1] Operation not permitted",
    "import ctypes\nctypes.string_at(0)": "ended_early: test_1: exit status -11",
    "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'w').write('x' * 10**6)": "disk_limit",
    "print(open('SECRET_FILE').read())": "error: test_1: ",
    "print(__import__('os').environ['FUSEJAX_SECRET'])": "error: test_1: KeyError: 'FUSEJAX_SECRET'",
    "open('OUTSIDE', 'w')": "error: test_1: ",
    "import _socket\n_socket.socket().connect(('127.0.0.1', PORT))": "error: test_1: PermissionError",
    "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo 3'])": "error: test_1: ",
}
"""Program -> how its detail begins, where it should print 3."""


@pytest.mark.parametrize("code", WRONG)
def test_wrong_programs_and_attacks(sandbox: Sandbox, bait: Bait, descendants: set[int], code: str):
    program = code
    for word, value in bait.words.items():
        program = program.replace(word, value)
    found = run(sandbox, program, ("1 2", "3"))
    assert found.verdict == "wrong" and found.detail.startswith(WRONG[code]), found
    assert run(sandbox, PROGRAMS["input"], *SUMS) == Outcome("correct", "passed")
    assert nobody_left(descendants)
    bait.check()


# Whatever a program can find: its memory, files of an earlier test, descriptors.
SEARCH = """
import gc, os, sys
n = input()
try:
    print(open('left').read())
except OSError:
    open('left', 'w').write(n)
sys.modules['math'].left = getattr(sys.modules['math'], 'left', 0) + 1
print(sys.modules['math'].left)
for descriptor in range(3, 64):
    try:
        os.fstat(descriptor)
        print('open', descriptor)
    except OSError:
        pass
try:
    memory = open('/proc/self/mem', 'rb')
    print('memory')
except OSError:
    pass
texts = [x for x in gc.get_objects() if isinstance(x, (list, dict, tuple))]
secret = ''.join(['expected', '-74'])
print(any(secret in repr(value) for x in texts for value in (x.values() if isinstance(x, dict) else x)
          if isinstance(value, (str, bytes, bytearray)) and value is not secret))
"""


def test_no_test_shows_anything_of_another_nor_what_is_expected(sandbox: Sandbox):
    found = run(sandbox, SEARCH, ("first", "1\nFalse"), ("expected-7", "1\nFalse"), ("third", "expected-74"))
    assert found.detail == "wrong_output: test_3: line 1: '1', expected 'expected-74'"


def test_long_inputs_and_outputs(sandbox: Sandbox):
    long = "7 " * 2_000_000
    assert run(sandbox, "print(input())", (long, long)).verdict == "correct"
    assert run(sandbox, "print(3)", (long, "3")).verdict == "correct"  # It reads nothing.
    most = "x" * (MAX_OUTPUT_BYTES - 1)
    assert run(sandbox, f"print('x' * {len(most)})", ("", most)).verdict == "correct"
    assert run(sandbox, f"print('x' * {len(most) + 1})", ("", most)).detail == "output_limit: test_1"


def test_the_setting_runs_first(sandbox: Sandbox):
    code = "from __future__ import annotations\nx: List[Nothing] = floor(2.5)\nprint(x)"
    assert run(sandbox, code, ("", "2"), setting="from math import *\nfrom typing import *").verdict == "correct"


def test_each_test_has_its_own_time(sandbox: Sandbox):
    code = "import time\nwhile time.process_time() < 0.5:\n    pass\nprint(3)"
    assert run(sandbox, code, *[("", "3")] * 4).verdict == "correct"


def test_a_program_that_sleeps(tier: tiers.Tier):
    with Sandbox(judge.Limits(0.05, 512), ["time"], workers=1, tier=tier) as sandbox:
        slept = run(sandbox, "import time\ntime.sleep(100)")
    # On a busy machine, nobody knows whether it was asleep or had no turn.
    assert slept in (Outcome("wrong", "timeout: asleep"), Outcome("unknown", "wall_timeout"))


def test_no_package_no_run(tier: tiers.Tier):
    with (
        Sandbox(judge.Limits(1, 512), ["no_such_package"], workers=1, tier=tier) as sandbox,
        pytest.raises(judge.UserError, match="needs the package no_such_package, which is not installed"),
    ):
        run(sandbox, "", ("", ""))


numbers = st.one_of(st.integers(), st.decimals(allow_nan=False, allow_infinity=False)).map(str)
lines = st.lists(
    st.lists(numbers | st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3), min_size=1, max_size=3
)


@settings(max_examples=50)
@given(lines)
def test_equal_outputs(parts: list[list[str]]):
    text = "\n".join(" ".join(line) for line in parts)
    assert difference(f"\n {text} \n\n", text) is None
    changed = "\n".join(" ".join([*line[:-1], line[-1] + "7"]) for line in parts)
    assert difference(text, changed) is not None or text == changed


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        ("1.0", "1", True),
        ("1e3 0.10", "1000 0.1", True),
        ("0.3333333333", "0.3333333334", False),
        ("50000000000000000", "50000000000000001", False),
        ("1  2", "1 2", True),
        ("a  b", "a b", False),
        ("1 2", "1 2 3", False),
        ("1\n\n2", "1\n2", False),
        ("Yes", "YES", False),
        ("nan", "NaN", False),
        ("1e999999999", "1", False),
        ("", "\n", True),
        ("٣", "3", True),
    ],
)
def test_outputs_as_the_original_compares_them(found: str, expected: str, equal: bool):
    assert (difference(found, expected) is None) == equal


def test_lines_that_are_not_compared_take_no_memory():
    printed = "ab\n" * 1_000_000
    tracemalloc.start()
    assert difference(printed, "ab") == "1000000 lines, expected 1"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * len(printed)
