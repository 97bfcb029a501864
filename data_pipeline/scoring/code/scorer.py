"""Correctness of a program: static analysis first, then its tests, in a sandbox.

The verdict is "correct" when every test passes, "wrong" when the program does not parse, fails a test, runs out of its
limits or ends early, and "unknown" when that could not be found out (an import that is not allowed, no tests, tests
that are broken or check nothing or let the program judge itself, a machine too busy).
"""

import ast
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.code import code_tests, programs
from data_pipeline.scoring.code.code_tests import (
    BUILTINS,
    UNPARSABLE,
    bound_names,
    imported_modules,
    message,
    own_names,
)
from data_pipeline.scoring.code.imports import ALLOWED_IMPORTS, preloaded
from data_pipeline.scoring.sandbox import judge
from data_pipeline.scoring.sandbox.tiers import Tier
from data_pipeline.scoring.scorer import Item, Score, Verdict
from data_pipeline.stage_files import fingerprint

_BY_NAME = frozenset(["eval", "exec", "globals", "locals", "vars"])
"""Builtins that read names which no syntax tree shows."""


class CodeScorer:
    """Runs the program in the answer against the prompt's `tests`, Python statements; see `code_tests`.

    Args:
      imports: the modules that programs and tests may import; see `imports.BENCHMARK_IMPORTS`.

    Raises:
      UserError: no sandbox works on this machine, and running without one is not allowed.
    """

    def __init__(
        self,
        limits: VerifierLimits,
        workers: int | None,
        *,
        allow_unsafe: bool = False,
        tier: Tier | None = None,
        imports: frozenset[str] = ALLOWED_IMPORTS,
    ):
        self._limits = judge.Limits(limits.timeout_seconds, limits.memory_mb)
        self._workers = workers or os.cpu_count() or 1
        self._imports = imports
        self._known: dict[str, Score] = {}
        self._tier = tier or judge.strongest(allow_unsafe=allow_unsafe)
        self.sandbox = self._tier.name
        files = (*sorted(Path(__file__).parent.glob("*.py")), *sorted(Path(judge.__file__).parent.glob("*.py")))
        more = [sorted(imports)] if imports != ALLOWED_IMPORTS else []
        self.fingerprint = fingerprint(limits.timeout_seconds, limits.memory_mb, *more, *files)

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order; see `scorer.Scorer`. Equal programs with equal tests run once."""
        suites: dict[str, code_tests.Suite] = {}
        keys: list[str] = []
        fresh: dict[str, tuple[str | None, str | None, code_tests.Suite]] = {}
        for item in items:
            tests = item.prompt["tests"] or []
            name = fingerprint(tests)
            if name not in suites:
                suites[name] = code_tests.read(tests, self._imports)
            code, doubt = programs.find(item.text, suites[name].wanted)
            keys.append(fingerprint(code, doubt, name))
            if keys[-1] not in self._known:
                fresh[keys[-1]] = code, doubt, suites[name]
        modules = preloaded(self._imports)
        with (
            judge.Sandbox(self._limits, modules, workers=self._workers, tier=self._tier) as sandbox,
            ThreadPoolExecutor(self._workers) as threads,
        ):
            judged = threads.map(lambda job: _judged(sandbox, self._imports, *job), fresh.values())
            self._known.update(zip(fresh, judged, strict=True))
        return [self._known[key] for key in keys]


def _judged(
    sandbox: judge.Sandbox, imports: frozenset[str], code: str | None, doubt: str | None, suite: code_tests.Suite
) -> Score:
    if doubt is not None:
        return Score(verdict="unknown", extracted=code, detail=doubt)
    if code is None:
        return Score(verdict="wrong", detail="no_code")
    if suite.problem is not None:
        return Score(verdict="unknown", extracted=code, detail=suite.problem)
    running = without_unused_imports(code, suite.wanted, imports)
    problem = analyse(running, suite.shared, suite.withheld, imports)
    if problem is not None and not problem.startswith("undefined_name"):
        verdict: Verdict = "wrong" if problem.startswith("syntax_error") else "unknown"
        return Score(verdict=verdict, extracted=code, detail=problem)
    job = _job(running, suite)
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


def without_unused_imports(code: str, wanted: frozenset[str], imports: frozenset[str] = ALLOWED_IMPORTS) -> str:
    """The program without the imports that are not allowed and of which neither it nor its tests make use.

    >>> without_unused_imports("import os, math\\ndef f(x):\\n    return math.floor(x)", frozenset())
    'import math\\n\\ndef f(x):\\n    return math.floor(x)'
    """
    try:
        tree = ast.parse(code)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | wanted
        if used & _BY_NAME or not imported_modules(tree) - imports:
            return code
        return ast.unparse(_DropImports(used, imports).visit(tree))
    except UNPARSABLE:
        return code


class _DropImports(ast.NodeTransformer):
    def __init__(self, used: set[str] | frozenset[str], imports: frozenset[str]):
        self._used, self._imports = used, imports

    def visit_Import(self, node: ast.Import) -> ast.stmt:
        kept = [alias for alias in node.names if self._keep(alias.name, alias.asname or alias.name)]
        return ast.Import(kept) if kept else ast.Pass()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        module = "." if node.level else node.module or ""
        kept = [alias for alias in node.names if self._keep(module, alias.asname or alias.name)]
        return ast.ImportFrom(node.module, kept, node.level) if kept else ast.Pass()

    def _keep(self, module: str, bound: str) -> bool:
        package = module.partition(".")[0] or "."
        return package in self._imports or bound == "*" or bound.partition(".")[0] in self._used


def analyse(
    code: str,
    setting: str = "",
    withheld: frozenset[str] = frozenset(),
    imports: frozenset[str] = ALLOWED_IMPORTS,
) -> str | None:
    """What is wrong with a program before it runs: it does not parse, imports what is not allowed, or reads a name that
    is withheld from it or that neither the program, its setting nor Python defines. None if nothing is wrong.

    >>> analyse("def f(x):\\n    return y")
    'undefined_name: y'
    """
    try:
        tree = ast.parse(code)
    except UNPARSABLE as error:
        return f"syntax_error: {message(error)}"
    refused = sorted(imported_modules(tree) - imports)
    if refused:
        return f"import_not_allowed: {refused[0]}"
    bound = BUILTINS | bound_names(tree) | bound_names(ast.parse(setting))
    loaded = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    if kept := sorted(withheld.intersection(loaded) - bound):
        return f"reads_the_tests: {kept[0]}"
    return next((f"undefined_name: {name}" for name in loaded if name not in bound), None)
