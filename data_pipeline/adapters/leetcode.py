"""LeetCode statements: their worked examples become tests.

The data set has no column of tests. A statement shows examples as

    **Input:** nums = [2,7,11,15], target = 9
    **Output:** [0,1]

and the reference solution in `python` has the function's name and parameters, which the question then asks for. Left
out is what equality on plain values cannot judge: lists and trees of nodes, arguments changed in place, classes, and
problems that accept any of several answers. Where any order is accepted, sorted results are compared.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from data_pipeline.adapters.base import Rejected, Row, text

_END = r"^\s*(?:Explanation|Example|Constraints|Note|Input|Follow)|^\s*$|\Z"
_EXAMPLE = re.compile(rf"^\s*Input:?\s*(.+?)^\s*Output:?\s*(.+?)(?={_END})", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"```(?:python)?[^\n]*\n(.*?)```", re.DOTALL)
_NODES = re.compile(
    r"\b(?:linked list|ListNode|TreeNode|binary (?:search )?tree|n-ary tree|quad[- ]?tree|trie)\b", re.I
)
_IN_PLACE = re.compile(r"\bin-place\b|\bdo not return\b|\bwithout returning\b", re.I)
_SEVERAL = re.compile(
    r"return \W*any\W*(?: one)? (?:of|valid|such|possible|array|permutation|solution|answer)|"
    r"any (?:valid|of the) (?:answers?|solutions?)|"
    r"(?:multiple|several|more than one) (?:valid )?(?:answers?|solutions?)[^.]{0,60}\bany\b|"
    r"\bwill be accepted\b|\brandom(?:ly)?\b",
    re.I,
)
_ANY_ORDER = re.compile(r"\bin \W*any order\b", re.I)
_JSON = {"true": True, "false": False, "null": None}


def read(row: Row) -> dict[str, Any]:
    """A record with a question that names the function, and one `assert` an example.

    Raises:
      Rejected: no example can be made a test, or tests would judge wrongly.
    """
    statement = plain(text(row, "content"))
    for pattern, reason in ((_NODES, "tests_need_nodes"), (_IN_PLACE, "changes_in_place"), (_SEVERAL, "many_answers")):
        if match := pattern.search(statement):
            raise Rejected(reason, match[0])
    name, parameters = signature(row.get("python"))
    unordered = bool(_ANY_ORDER.search(statement))
    tests = [_assertion(name, arguments, output, unordered) for arguments, output in examples(statement, parameters)]
    if not tests:
        raise Rejected("no_tests", "no example with plain values")
    header = f"def {name}({', '.join(parameters)}):"
    question = f"{statement}\n\nWrite this function in Python:\n\n```python\n{header}\n```"
    return {"id": row.get("slug"), "prompt": question, "tests": tests}


def plain(statement: str) -> str:
    r"""The statement without Markdown's emphasis and escapes.

    >>> plain("**Input:** nums = \\[2,7\\]")
    'Input: nums = [2,7]'
    """
    without_bold = statement.replace("\xa0", " ").replace("**", "").replace("```", "")
    return re.sub(r"\\([\[\]_*<>()\-+.#!`|{}])", r"\1", without_bold).strip()


def signature(solution: Any) -> tuple[str, list[str]]:
    """Name and parameters of the solution's function, the last that stands alone, or else `Solution`'s first.

    Raises:
      Rejected: there is no such function, or it takes no fixed number of arguments.
    """
    match = _FENCE.search(solution) if isinstance(solution, str) else None
    try:
        body = ast.parse(textwrap.dedent(match[1]) if match else "").body
    except SyntaxError:
        body = []
    functions = [node for node in body if isinstance(node, ast.FunctionDef)][-1:]
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == "Solution":
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef))
            functions += [method for method in methods if not method.name.startswith("_")][:1]
    if not functions:
        raise Rejected("no_reference_function")
    arguments = functions[0].args
    names = [argument.arg for argument in arguments.args if argument.arg != "self"]
    if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or not names:
        raise Rejected("no_reference_function", functions[0].name)
    return functions[0].name, names


def examples(statement: str, parameters: list[str]) -> Iterator[tuple[list[Any], Any]]:
    """The arguments, in the parameters' order, and the result of each example that has plain values."""
    for given, result in _EXAMPLE.findall(statement):
        try:
            call = ast.parse(f"f({' '.join(given.split())})", mode="eval").body
            output = _value(ast.parse(" ".join(result.split()), mode="eval").body)
            if not isinstance(call, ast.Call) or isinstance(output, tuple):
                continue
            named = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
            arguments = [_value(node) for node in call.args]
        except (SyntaxError, ValueError):
            continue
        if set(named) == set(parameters) and not arguments:
            yield [named[name] for name in parameters], output
        elif len(named) + len(arguments) == len(parameters):
            # The reference renames its parameters: the statement's order is the only one there is.
            yield [*arguments, *named.values()], output


def _value(node: ast.expr) -> Any:
    """`ast.literal_eval`, which also knows JSON's constants.

    Raises:
      ValueError: it is no literal.
    """
    if isinstance(node, ast.Name) and node.id in _JSON:
        return _JSON[node.id]
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)


def _assertion(name: str, arguments: list[Any], output: Any, unordered: bool) -> str:
    call = f"{name}({', '.join(map(repr, arguments))})"
    if isinstance(output, float):
        return f"assert abs({call} - {output!r}) < 1e-5"
    if unordered and isinstance(output, list):
        return f"assert sorted({call}) == {sorted(output)!r}" if _sortable(output) else f"assert {call} == {output!r}"
    return f"assert {call} == {output!r}"


def _sortable(values: list[Any]) -> bool:
    try:
        sorted(values)
    except TypeError:
        return False
    return True
