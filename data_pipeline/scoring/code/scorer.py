"""Correctness of a program: static analysis first, then its tests, in a sandbox.

The verdict is "correct" when every test passes, "wrong" when the program does not parse, fails a test, runs out of its
limits or ends early, and "unknown" when that could not be found out (an import that is not allowed, no tests, tests
that are broken or check nothing or let the program judge itself, a machine too busy).
"""

import ast
import contextlib
import os
import re
import textwrap
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.code import code_tests
from data_pipeline.scoring.code.code_tests import (
    ALLOWED_IMPORTS,
    BUILTINS,
    UNPARSABLE,
    bound_names,
    imported_modules,
    message,
    own_names,
)
from data_pipeline.scoring.sandbox import judge
from data_pipeline.scoring.sandbox.tiers import Tier
from data_pipeline.scoring.scorer import Item, Score, Verdict
from data_pipeline.stage_files import fingerprint

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


_IMPORTED_LATE = ("_strptime", "collections.abc", "encodings.ascii", "encodings.latin_1", "encodings.utf_16")
"""Modules that Python imports on first use; loaded before, since a program's process can open no files."""


class CodeScorer:
    """Runs the program in the answer against the prompt's `tests`, Python statements; see `code_tests`.

    Raises:
      UserError: no sandbox works on this machine, and running without one is not allowed.
    """

    def __init__(
        self, limits: VerifierLimits, workers: int | None, *, allow_unsafe: bool = False, tier: Tier | None = None
    ):
        self._limits = judge.Limits(limits.timeout_seconds, limits.memory_mb)
        self._workers = workers or os.cpu_count() or 1
        self._known: dict[str, Score] = {}
        self._tier = tier or judge.strongest(allow_unsafe=allow_unsafe)
        self.sandbox = self._tier.name
        files = (Path(__file__), Path(code_tests.__file__), *sorted(Path(judge.__file__).parent.glob("*.py")))
        self.fingerprint = fingerprint(limits.timeout_seconds, limits.memory_mb, *files)

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order; see `scorer.Scorer`. Equal programs with equal tests run once."""
        suites: dict[str, code_tests.Suite] = {}
        keys: list[str] = []
        fresh: dict[str, tuple[str | None, code_tests.Suite]] = {}
        for item in items:
            tests = item.prompt["tests"] or []
            name = fingerprint(tests)
            if name not in suites:
                suites[name] = code_tests.read(tests)
            code = extract(item.text, suites[name].wanted)
            keys.append(fingerprint(code, name))
            if keys[-1] not in self._known:
                fresh[keys[-1]] = code, suites[name]
        modules = (*ALLOWED_IMPORTS, *_IMPORTED_LATE)
        with (
            judge.Sandbox(self._limits, modules, workers=self._workers, tier=self._tier) as sandbox,
            ThreadPoolExecutor(self._workers) as threads,
        ):
            judged = threads.map(lambda job: _judged(sandbox, *job), fresh.values())
            self._known.update(zip(fresh, judged, strict=True))
        return [self._known[key] for key in keys]


def _judged(sandbox: judge.Sandbox, code: str | None, suite: code_tests.Suite) -> Score:
    if code is None:
        return Score(verdict="wrong", detail="no_code")
    if suite.problem is not None:
        return Score(verdict="unknown", extracted=code, detail=suite.problem)
    problem = analyse(code, suite.shared, suite.withheld)
    if problem is not None and not problem.startswith("undefined_name"):
        verdict: Verdict = "wrong" if problem.startswith("syntax_error") else "unknown"
        return Score(verdict=verdict, extracted=code, detail=problem)
    job = _job(code, suite)
    if shadowed := sorted(suite.builtins & set(job.names)):
        # The tests could mean either, and the program's own `sorted` could make any comparison true.
        return Score(verdict="unknown", extracted=code, detail=f"shadows_builtin: {shadowed[0]}")
    outcome = sandbox.run(job)
    # An undefined name may be in code that never runs, so the tests decide; it only explains a failure.
    explained = problem if problem is not None and outcome.verdict == "wrong" else outcome.detail
    return Score(verdict=outcome.verdict, extracted=code, detail=explained)


def _job(code: str, suite: code_tests.Suite) -> judge.Job:
    statements = ast.parse(code).body
    imports = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
    # Under its own name only: `from operator import length_hint as Counter` would fool tests that count.
    plain = [node for node in imports if not any(alias.asname for alias in node.names)]
    defined = set().union(*(own_names(node) for node in statements if node not in imports))
    return judge.Job(
        setting=suite.setting,
        shared=suite.shared,
        code=code,
        tests=suite.tests,
        classes=suite.classes,
        names=tuple(sorted(defined)),
        imports=tuple(map(ast.unparse, plain)),
    )


def extract(text: str, wanted: Iterable[str] = ()) -> str | None:
    """The program in an answer: its first Python block that defines a wanted name, with the blocks that define what
    this one uses; else its last block that defines something; else its last block; else the whole text, if that is a
    program with a definition.

    Args:
      text: the answer.
      wanted: names that the tests use.

    >>> extract("```python\\ndef f():\\n    return 1\\n```\\nTest:\\n```python\\ndef test_f(): f()\\n```", ["f"])
    'def f():\\n    return 1\\n'
    """
    blocks = [(language.lower(), textwrap.dedent(body)) for language, body in _FENCE.findall(text)]
    python = [body for language, body in blocks if language in ("python", "python3", "py")]
    candidates = python or [body for language, body in blocks if not language]
    if chosen := _needed(candidates, wanted):
        return "\n".join(chosen)
    defining = [body for body in candidates if re.search(r"^[ \t]*(?:async\s+def|def|class)\s", body, re.MULTILINE)]
    if candidates:
        return (defining or candidates)[-1]
    if blocks or not re.search(r"^(?:def|class)\s", text, re.MULTILINE):
        return None
    try:
        ast.parse(text)
    except UNPARSABLE:
        return None
    return text


def _needed(blocks: list[str], wanted: Iterable[str]) -> list[str]:
    """The blocks that define the wanted names, and what those blocks use in turn, in their order."""
    trees: dict[int, ast.Module] = {}
    for index, block in enumerate(blocks):
        with contextlib.suppress(*UNPARSABLE):
            trees[index] = ast.parse(block)
    defined: dict[str, int] = {}
    imports = (ast.Import, ast.ImportFrom)
    for late in (False, True):  # A definition counts before an import: `from solution import f` defines no f.
        for index, tree in trees.items():
            for statement in tree.body:
                if isinstance(statement, imports) == late:
                    for name in own_names(statement):
                        defined.setdefault(name, index)
    names, chosen = list(wanted), set[int]()
    while names:
        index = defined.get(names.pop(), -1)
        if index >= 0 and index not in chosen:
            chosen.add(index)
            tree = trees[index]
            names += {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - bound_names(tree)
    return [blocks[index] for index in sorted(chosen)]


def analyse(code: str, setting: str = "", withheld: frozenset[str] = frozenset()) -> str | None:
    """What is wrong with a program before it runs: it does not parse, imports what is not allowed, or reads a name that
    is withheld from it or that neither the program, its setting nor Python defines. None if nothing is wrong.

    >>> analyse("def f(x):\\n    return y")
    'undefined_name: y'
    """
    try:
        tree = ast.parse(code)
    except UNPARSABLE as error:
        return f"syntax_error: {message(error)}"
    refused = sorted(imported_modules(tree) - ALLOWED_IMPORTS)
    if refused:
        return f"import_not_allowed: {refused[0]}"
    bound = BUILTINS | bound_names(tree) | bound_names(ast.parse(setting))
    loaded = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    if kept := sorted(withheld.intersection(loaded) - bound):
        return f"reads_the_tests: {kept[0]}"
    return next((f"undefined_name: {name}" for name in loaded if name not in bound), None)
