"""Every reason that the pipeline can give has words, and no words are of a reason that nothing gives.

The reasons are read off the sources: none can be added without its words.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import data_pipeline
from data_pipeline.report import reasons
from data_pipeline.scoring.scorer import Verdict
from data_pipeline.scoring.worker_pool import OUT_OF_MEMORY
from data_pipeline.selection.rules import MARKS, PROBLEMS

ROOT = Path(data_pipeline.__file__).parent
_REASON = re.compile(r"[a-z]+(?:_[a-z0-9]+)*")


class Scope(NamedTuple):
    """Where a node stands: the innermost function, or the module itself, and the module."""

    node: ast.AST
    module: ast.AST

    @property
    def name(self) -> str:
        return getattr(self.node, "name", "")


def nodes(*folders: str) -> Iterator[tuple[ast.AST, Scope]]:
    """Every node of the sources below the folders, with its scope."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            module = ast.parse(path.read_text())
            yield from _nodes(Scope(module, module))


def _nodes(scope: Scope) -> Iterator[tuple[ast.AST, Scope]]:
    waiting = list(ast.iter_child_nodes(scope.node))
    while waiting:
        node = waiting.pop()
        yield node, scope
        if isinstance(node, ast.FunctionDef):
            yield from _nodes(Scope(node, scope.module))
        else:
            waiting += ast.iter_child_nodes(node)


def texts(value: ast.AST, scope: Scope) -> set[str]:
    """The reasons that an expression can be, without what follows a colon; of names, those that the scope gives."""
    match value:
        case ast.Constant(value=str(text)):
            return {text.partition(":")[0]}
        case ast.JoinedStr(values=parts):
            return _joined(parts, scope)
        case ast.IfExp(body=body, orelse=orelse):
            return texts(body, scope) | texts(orelse, scope)
        case ast.Name(id=name):
            return set().union(*(texts(given, scope) for given in _given(name, scope)), *_passed(name, scope))
    return set()


def _joined(parts: list[ast.expr], scope: Scope) -> set[str]:
    """The beginnings of a formatted text, up to the colon."""
    heads = {""}
    for part in parts:
        if isinstance(part, ast.FormattedValue):
            heads = {head + text for head in heads for text in texts(part.value, scope)}
        elif isinstance(part, ast.Constant):
            before, colon, _ = str(part.value).partition(":")
            heads = {head + before for head in heads}
            if colon:
                break
    return heads


def _given(name: str, scope: Scope) -> Iterator[ast.AST]:
    """What is assigned to a name."""
    for node in ast.walk(scope.node):
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                yield value
            case ast.For(target=ast.Tuple(elts=targets), iter=ast.Tuple(elts=rows)):
                for place, target in enumerate(targets):
                    if isinstance(target, ast.Name) and target.id == name:
                        yield from (row.elts[place] for row in rows if isinstance(row, ast.Tuple))


def _passed(name: str, scope: Scope) -> Iterator[set[str]]:
    """What the module's calls of the function pass as its parameter of that name."""
    parameters = [argument.arg for argument in scope.node.args.args] if isinstance(scope.node, ast.FunctionDef) else []
    if name in parameters:
        for node in ast.walk(scope.module):
            call = called(node, scope.name)
            if call and isinstance(call.func, ast.Name) and parameters.index(name) < len(call.args):
                yield texts(call.args[parameters.index(name)], Scope(scope.module, scope.module))


def called(node: ast.AST, name: str) -> ast.Call | None:
    """The node, if it calls something of that name."""
    match node:
        case ast.Call(func=ast.Name(id=found) | ast.Attribute(attr=found)) if found == name:
            return node
    return None


def test_reasons_are_found_however_they_are_written():
    source = """
def failed(what, error):
    return Score(detail=f"{what}_failed: {error}")
failed("reward", 1), failed("verifier", 2)
"""
    found = set()
    module = ast.parse(source)
    for node, scope in _nodes(Scope(module, module)):
        if call := called(node, "Score"):
            found |= texts(call.keywords[0].value, scope)
    assert found == {"reward_failed", "verifier_failed"}


@pytest.mark.parametrize(("folder", "words"), [("prompts", reasons.RECORDS), ("importing", reasons.ROWS)])
def test_records_and_rows(folder: str, words: dict[str, str]):
    found: set[str] = set()
    for node, scope in nodes(folder):
        if call := called(node, "Rejected"):
            given = texts(call.args[0], scope)
            assert given, f"cannot tell the reason of {ast.unparse(call)}"
            found |= given
    assert found == set(words)


def test_answers_and_prompts():
    found = {*MARKS, *PROBLEMS.categories}
    for node, scope in nodes("selection"):
        for name, place in (("lit", 0), ("_without", 2)):
            if (call := called(node, name)) and len(call.args) > place:
                found |= texts(call.args[place], scope)
    found -= {"sample", "score", "select"}  # Stages.
    assert found == reasons.ANSWERS.keys() | reasons.PROMPTS.keys()


def test_scores():
    verdicts = set(Verdict.__args__)
    found = {"timeout", "crashed", OUT_OF_MEMORY}  # Of `WorkerPool.map`.
    for node, scope in nodes("scoring"):
        match node:
            case ast.Tuple(elts=[verdict, why]) if texts(verdict, scope) and texts(verdict, scope) <= verdicts:
                found |= texts(why, scope)
            case ast.Call(func=ast.Name(id="Score" | "Suite"), keywords=keywords):
                for keyword in keywords:
                    if keyword.arg in ("detail", "problem"):
                        found |= texts(keyword.value, scope)
            case ast.Call(func=ast.Name(id="Outcome"), args=[_, why]):
                found |= texts(why, scope)
            case ast.Return(value=ast.Tuple(elts=[_, why])) if scope.name == "find":
                found |= texts(why, scope)
            case ast.Return(value=ast.AST() as value) if scope.name in ("analyse", "_conversation", "_unreadable"):
                found |= texts(value, scope)
            case ast.GeneratorExp(elt=elt) if scope.name == "analyse":
                found |= texts(elt, scope)
    for node, scope in nodes("sampling"):
        match node:
            case ast.Tuple(elts=[_, why]) if scope.name in ("_reward", "_verdict"):
                found |= texts(why, scope)
    assert found - verdicts == set(reasons.SCORES)


def test_words_are_short_and_plain():
    for table in reasons.WORDS.values():
        for reason, said in table.items():
            assert _REASON.fullmatch(reason)
            assert 5 <= len(said) <= 75 and not said.endswith("."), said


def test_reasons_of_others_are_left_as_they_are():
    assert reasons.words("record", "contaminated: GSM8K") == "an evaluation set holds part of it"
    assert reasons.words("record", "equal_texts") == "", "of a prompt, not of a record"
    assert reasons.words("score", "of_my_own: 3") == ""
