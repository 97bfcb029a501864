"""Every reason that the pipeline can give has words, and no words are of a reason that nothing gives.

The reasons are read off the sources: none can be added without its words.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import data_pipeline
from data_pipeline.report import reasons
from data_pipeline.scoring.scorer import Verdict
from data_pipeline.scoring.worker_pool import OUT_OF_MEMORY
from data_pipeline.selection.rules import MARKS, PROBLEMS

ROOT = Path(data_pipeline.__file__).parent
_REASON = re.compile(r"[a-z]+(?:_[a-z0-9]+)*")


def nodes(*folders: str) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(node, the function or module that it is in) for every node of the sources below the folders."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from _nodes(ast.parse(path.read_text()))


def _nodes(scope: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        yield node, scope
        if isinstance(node, ast.FunctionDef):
            yield from _nodes(node)
        else:
            waiting += ast.iter_child_nodes(node)


def texts(value: ast.AST, scope: ast.AST) -> set[str]:
    """The reasons that an expression can be; of names, those that the scope gives them."""
    match value:
        case ast.Constant(value=str(text)):
            return {text.partition(":")[0]}
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return {text.partition(":")[0]}
        case ast.JoinedStr(values=[ast.FormattedValue(value=inner), *_]):
            return texts(inner, scope)
        case ast.IfExp(body=body, orelse=orelse):
            return texts(body, scope) | texts(orelse, scope)
        case ast.Name(id=name):
            return set().union(*(texts(given, scope) for given in _given(name, scope)))
    return set()


def _given(name: str, scope: ast.AST) -> Iterable[ast.AST]:
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                yield value
            case ast.For(target=ast.Tuple(elts=targets), iter=ast.Tuple(elts=rows)):
                for place, target in enumerate(targets):
                    if isinstance(target, ast.Name) and target.id == name:
                        yield from (row.elts[place] for row in rows if isinstance(row, ast.Tuple))


def called(node: ast.AST, name: str) -> ast.Call | None:
    """The node, if it calls something of that name."""
    match node:
        case ast.Call(func=ast.Name(id=found) | ast.Attribute(attr=found)) if found == name:
            return node
    return None


def test_records():
    found: set[str] = set()
    for node, scope in nodes("prompts"):
        if call := called(node, "Rejected"):
            given = texts(call.args[0], scope)
            assert given, f"cannot tell the reason of {ast.unparse(call)}"
            found |= given
    assert found == set(reasons.RECORDS)


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
            case ast.Return(value=ast.AST() as value) if getattr(scope, "name", "") in ("analyse", "_conversation"):
                found |= texts(value, scope)
            case ast.GeneratorExp(elt=elt) if getattr(scope, "name", "") == "analyse":
                found |= texts(elt, scope)
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
