"""Correctness of a program: static analysis first, then its tests in a separate process.

The verdict is "correct" when every test passes, "wrong" when the program does not parse, uses a name that nothing
defines, fails a test, runs out of its limits or ends early, and "unknown" when that could not be found out (an import
that is not allowed, no tests, a broken test, a machine too busy).
"""

import ast
import builtins
import os
import re
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipeline.config import ScorerConfig
from data_pipeline.scorers import sandbox
from data_pipeline.scorers.base import Item, Score, Verdict
from data_pipeline.store import fingerprint

ALLOWED_IMPORTS = frozenset(
    [
        "__future__",
        "abc",
        "array",
        "bisect",
        "calendar",
        "cmath",
        "collections",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "json",
        "math",
        "numbers",
        "operator",
        "queue",
        "random",
        "re",
        "statistics",
        "string",
        "sys",
        "textwrap",
        "time",
        "types",
        "typing",
        "unicodedata",
    ]
)
_UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What `ast.parse` raises on strange text."""
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


class CodeScorer:
    """Runs the program in the answer against the prompt's `tests`: Python statements, mostly asserts, run in order.

    Leading ones that only import, assign and define, and assert nothing, are the program's setting: they run before it.
    """

    def __init__(self, config: ScorerConfig, workers: int | None):
        self._limits = sandbox.Limits(config.timeout_seconds, config.memory_mb)
        self._workers = workers or os.cpu_count() or 1
        self._known: dict[str, Score] = {}
        self.fingerprint = fingerprint(
            config.timeout_seconds, config.memory_mb, Path(__file__), Path(sandbox.__file__), sandbox.RUNNER
        )

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score an item, in order; see `base.Scorer`. Equal programs with equal tests run once."""
        programs = [extract(item.text) for item in items]
        keys = [fingerprint(code, item.prompt["tests"]) for code, item in zip(programs, items, strict=True)]
        fresh = {
            key: (code, item.prompt["tests"] or [])
            for key, code, item in zip(keys, programs, items, strict=True)
            if key not in self._known
        }
        with ThreadPoolExecutor(self._workers) as threads:
            judged = threads.map(lambda job: self._judge(*job), fresh.values())
            self._known.update(zip(fresh, judged, strict=True))
        return [self._known[key] for key in keys]

    def _judge(self, code: str | None, tests: list[str]) -> Score:
        if code is None:
            return Score(verdict="wrong", detail="no_code")
        if not tests:
            return Score(verdict="unknown", extracted=code, detail="no_tests")
        try:
            setting, tests = split_setting(tests)
        except _UNPARSABLE as error:
            return Score(verdict="unknown", extracted=code, detail=f"bad_test: {_message(error)}")
        problem = analyse(code, setting)
        if problem is not None:
            verdict: Verdict = "unknown" if problem.startswith("import_not_allowed") else "wrong"
            return Score(verdict=verdict, extracted=code, detail=problem)
        outcome = sandbox.run(code, tests, self._limits, setting=setting)
        return Score(verdict=outcome.verdict, extracted=code, detail=outcome.detail)


def extract(text: str) -> str | None:
    """The program in an answer: its last Python block that defines something, else its last Python block, else the
    whole text if that is a program with a definition.

    >>> extract("Use this:\\n```python\\ndef f():\\n    return 1\\n```\\nThen\\n```\\n$ python f.py\\n```")
    'def f():\\n    return 1\\n'
    """
    blocks = [(language.lower(), textwrap.dedent(body)) for language, body in _FENCE.findall(text)]
    python = [body for language, body in blocks if language in ("python", "python3", "py")]
    candidates = python or [body for language, body in blocks if not language]
    defining = [body for body in candidates if re.search(r"^\s*(?:async\s+def|def|class)\s", body, re.MULTILINE)]
    if candidates:
        return (defining or candidates)[-1]
    if blocks or not re.search(r"^(?:def|class)\s", text, re.MULTILINE):
        return None
    try:
        ast.parse(text)
    except _UNPARSABLE:
        return None
    return text


def split_setting(tests: list[str]) -> tuple[str, list[str]]:
    """(what runs before the program, the tests proper).

    >>> split_setting(["from math import *", "assert f(pi) == 3", "import re"])
    ('from math import *', ['assert f(pi) == 3', 'import re'])
    """
    kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.ClassDef, ast.FunctionDef)
    trees = [ast.parse(test) for test in tests]
    is_setting = [
        all(isinstance(statement, kinds) for statement in tree.body)
        and not any(isinstance(node, ast.Assert) for node in ast.walk(tree))
        for tree in trees
    ]
    count = is_setting.index(False) if False in is_setting else len(tests)
    return "\n".join(tests[:count]), tests[count:]


def analyse(code: str, setting: str = "") -> str | None:
    """What is wrong with a program before it runs: it does not parse, imports what is not allowed, or reads a name that
    nothing in it, in its setting or in Python defines. None if nothing is.

    >>> analyse("def f(x):\\n    return y")
    'undefined_name: y'
    """
    try:
        tree = ast.parse(code)
    except _UNPARSABLE as error:
        return f"syntax_error: {_message(error)}"
    modules, loaded, bound = set(), [], set(dir(builtins)) | {"__name__", "__file__", "__class__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0] if not node.level else ".")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            loaded.append(node.id)
    refused = sorted(modules - ALLOWED_IMPORTS)
    if refused:
        return f"import_not_allowed: {refused[0]}"
    bound |= _bound_names(tree) | _bound_names(ast.parse(setting))
    if "*" in bound:
        return None  # `from m import *` may define anything; running will tell.
    unbound = [name for name in loaded if name not in bound]
    return f"undefined_name: {unbound[0]}" if unbound else None


def _message(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def _bound_names(tree: ast.AST) -> set[str]:
    """Every name that some scope binds; scopes are not told apart, so what this misses is always defined."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names.add(name)
            case ast.MatchMapping(rest=str(name)):
                names.add(name)
    return names
