"""Reads the tests of a prompt: what must run first, what judges the program, and whether anything does."""

import ast
import builtins
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_pipeline.scoring.code.imports import ALLOWED_IMPORTS

UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What `ast.parse` raises on strange text."""
BUILTINS = frozenset(dir(builtins)) | {"__name__", "__file__", "__class__"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*_FUNCTIONS, ast.ClassDef)


@dataclass(frozen=True)
class Suite:
    """The tests of one prompt, read."""

    setting: str = ""
    """Runs before the tests: leading statements that import, assign and define, and need nothing of the program."""
    shared: str = ""
    """The part of the setting that the program gets, too: nothing that reveals what the tests expect; see `_shared`."""
    withheld: frozenset[str] = frozenset()
    """Names that the program does not get."""
    tests: tuple[str, ...] = ()
    """Run after the program, in order. A function `test_*` without parameters is called, too."""
    wanted: frozenset[str] = frozenset()
    """Names that the tests expect of the program."""
    classes: tuple[str, ...] = ()
    """Classes that tests and program share, each side with its own copy."""
    builtins: frozenset[str] = frozenset()
    """Python's builtins that the tests use."""
    problem: str | None = None
    """Why the tests can give no verdict."""


def read(tests: Sequence[str], imports: frozenset[str] = ALLOWED_IMPORTS) -> Suite:
    """The suite of a prompt's `tests`, which may import what is named.

    >>> suite = read(["from math import *", "assert f(pi) == 3"])
    >>> suite.setting, suite.tests, sorted(suite.wanted), suite.problem
    ('from math import *', ('assert f(pi) == 3',), ['f'], None)
    >>> suite = read(["import math\\nCASES = [(1, 3)]", "for x, y in CASES:\\n    assert f(x) == y"])
    >>> suite.shared, sorted(suite.withheld)
    ('import math', ['CASES'])
    >>> read(["f(1) == 3"]).problem
    'tests_check_nothing'
    """
    try:
        return _read([ast.parse(test) for test in tests], imports)
    except UNPARSABLE as error:
        return Suite(problem=f"bad_test: {message(error)}")


def message(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__


def _read(trees: list[ast.Module], imports: frozenset[str]) -> Suite:
    statements = [statement for tree in trees for statement in tree.body]
    everything = ast.Module(statements, [])
    refused = sorted(imported_modules(everything) - imports)
    if refused:
        return Suite(problem=f"bad_test: imports {refused[0]}")
    setting: list[ast.stmt] = []
    known = set(BUILTINS)
    for statement in statements:
        own = bound_names(statement)
        if not _is_setting(statement) or any(name not in known | own for name in _loaded(statement)):
            break
        setting.append(statement)
        known |= own
    parts: list[str] = []
    proper: list[ast.stmt] = []
    skip = len(setting)
    for tree in trees:
        body, skip = tree.body[skip:], max(0, skip - len(tree.body))
        calls = [f"{node.name}()" for node in body if isinstance(node, _FUNCTIONS) and _is_test(node)]
        body += [node for call in calls for node in ast.parse(call).body]
        if body:
            parts.append("\n".join(map(ast.unparse, body)))
            proper += body
    if not parts:
        return Suite(problem="no_tests")
    if not _checks(proper, everything):
        return Suite(problem="tests_check_nothing")
    shared = _shared(setting, proper)
    bound = bound_names(everything) | BUILTINS
    loaded = {node.id for node in ast.walk(everything) if isinstance(node, ast.Name)}
    return Suite(
        setting="\n".join(map(ast.unparse, setting)),
        shared="\n".join(map(ast.unparse, shared)),
        withheld=frozenset(set().union(*map(own_names, setting)) - set().union(*map(own_names, shared))),
        tests=tuple(parts),
        wanted=frozenset(loaded - bound),
        classes=tuple(node.name for node in shared if isinstance(node, ast.ClassDef)),
        builtins=frozenset(loaded & BUILTINS),
    )


def _shared(setting: list[ast.stmt], tests: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of the setting that the program may see: imports, classes, what no test reads, and definitions of
    infinity and of aliases. Anything else that tests read may be the answers, or a function that computes them.
    """
    read = {name for test in tests for name in _names(test)}
    for statement in reversed(setting):
        if own_names(statement) & read:
            read |= _names(statement)
    shared: list[ast.stmt] = []
    withheld: set[str] = set()
    for statement in setting:
        own = own_names(statement)
        public = isinstance(statement, ast.Import | ast.ImportFrom | ast.ClassDef) or _names_only(statement)
        if _names(statement) & withheld or (own & read and not public):
            withheld |= own
        else:
            shared.append(statement)
    return shared


def _names_only(statement: ast.stmt) -> bool:
    """`inf = float('inf')`, `Tree = Optional[Node]`."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return False
    kinds = (ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.expr_context)
    text = ast.unparse(statement.value)
    return text.lstrip("-") in ("float('inf')", "float('-inf')") or all(
        isinstance(node, kinds) for node in ast.walk(statement.value)
    )


def own_names(statement: ast.stmt) -> set[str]:
    """The names that a statement defines at the top level of its module."""
    return {statement.name} if isinstance(statement, _DEFINITIONS) else bound_names(statement)


def _names(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def imported_modules(tree: ast.AST) -> set[str]:
    """Top-level packages that are imported anywhere; "." stands for relative imports."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").partition(".")[0] if not node.level else ".")
    return modules


def bound_names(tree: ast.AST) -> set[str]:
    """Every name that some scope binds. Scopes are not told apart: only a name bound nowhere counts as undefined."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.ImportFrom(module=str(module), names=[ast.alias(name="*")]) if module in ALLOWED_IMPORTS:
                names.update(dir(importlib.import_module(module)))
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name.partition(".")[0] for alias in aliases}
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                names.add(name)
            case ast.MatchMapping(rest=str(name)):
                names.add(name)
    return names


def _is_setting(statement: ast.stmt) -> bool:
    # A statement that asserts runs after the program, which could otherwise replace what it defines.
    kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, *_DEFINITIONS)
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(statement))
    is_test = isinstance(statement, _FUNCTIONS) and statement.name.startswith("test")
    # A docstring or other constant does nothing.
    does_nothing = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return does_nothing or (isinstance(statement, kinds) and not asserts and not is_test)


def _is_test(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args
    required = len(arguments.args) - len(arguments.defaults) + sum(d is None for d in arguments.kw_defaults)
    return function.name.startswith("test_") and not required and isinstance(function, ast.FunctionDef)


def _executed(statement: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run with the statement: no bodies of functions, nothing under a `__main__` guard."""
    if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
        return
    yield statement
    for name, value in ast.iter_fields(statement):
        if name == "body" and isinstance(statement, (*_FUNCTIONS, ast.Lambda)):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _executed(child)


def _loaded(statement: ast.AST) -> Iterator[str]:
    for node in _executed(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id


def _checks(tests: list[ast.stmt], everything: ast.Module) -> bool:
    """Whether anything that runs asserts, raises, or calls something of the tests' own that does."""

    def any_check(nodes: Iterator[ast.AST], checkers: set[str]) -> bool:
        return any(
            isinstance(node, ast.Assert | ast.Raise)
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _root(node.value) in checkers)
            for node in nodes
        )

    imports = (ast.Import, ast.ImportFrom)
    checkers = set().union(*(bound_names(node) for node in ast.walk(everything) if isinstance(node, imports)))
    definitions = [node for node in everything.body if isinstance(node, _DEFINITIONS)]
    for _ in definitions:  # A checker may call another that is defined after it.
        checkers |= {node.name for node in definitions if any_check(ast.walk(node), checkers)}
    return any(any_check(_executed(statement), checkers) for statement in tests)


def _root(node: ast.AST) -> str | None:
    """`a` of `a.b().c(d)`."""
    while not isinstance(node, ast.Name):
        match node:
            case ast.Call(func=inner) | ast.Attribute(value=inner) | ast.Subscript(value=inner):
                node = inner
            case _:
                return None
    return node.id
