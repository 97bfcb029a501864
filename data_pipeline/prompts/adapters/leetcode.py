"""LeetCode statements: their worked examples become tests.

The data set has no column of tests. A statement shows examples as

    **Input:** nums = [2,7,11,15], target = 9
    **Output:** [0,1]

and the reference solution in `python` has the function's name and parameters, which are added to the question. Problems
that equality on plain values cannot judge are left out: lists and trees of nodes, arguments changed in place, classes,
and problems that accept any of several answers. Where any order is accepted, sorted results are compared.
"""

import ast
import re
import textwrap
from dataclasses import dataclass
from typing import Any

from data_pipeline.prompts.adapters.base import Rejected, Row, text

_END = r"\s\W*Explai?nation:|^\s*(?:Example|Constraints|Note|Input|Follow)|^\s*$|\Z"
_EXAMPLE = re.compile(rf"^[>\s]*Input:?\s*(.+?)\sOutput:?\s*(.+?)(?={_END})", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"```(?:python)?[^\n]*\n(.*?)```", re.DOTALL)
_NODES = re.compile(
    r"\b(?:linked list|ListNode|TreeNode|binary (?:search )?tree|n-ary tree|quad[- ]?tree|trie)\b", re.I
)
_IN_PLACE = re.compile(r"\bin-place\b|\bdo not return\b|\bwithout returning\b", re.I)
_SEVERAL = re.compile(
    r"return \W*any\W*(?: one)? (?:of|valid|such|possible|array|permutation|solution|answer)|"
    r"any (?:valid|of the) (?:answers?|solutions?)|"
    r"(?:multiple|several|more than one) (?:valid )?(?:answers?|solutions?)[^.]{0,60}\bany\b|"
    r"\balso (?:a )?(?:valid|correct|accepted)|\bwill be accepted\b|\brandom(?:ly)?\b",
    re.I,
)
_ANY_ORDER = re.compile(r"\bin \W*any order\b", re.I)
# What `ast` raises on strange text.
_UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
_JSON = {"true": True, "false": False, "null": None}


def read(row: Row) -> dict[str, Any]:
    """A record with a question that names the function, and one `assert` per example.

    Raises:
      Rejected: no example can be turned into a test, or the tests would judge wrongly.
    """
    statement = plain(text(row, "content"))
    for pattern, reason in ((_NODES, "tests_need_nodes"), (_IN_PLACE, "changes_in_place"), (_SEVERAL, "many_answers")):
        if match := pattern.search(statement):
            raise Rejected(reason, match[0])
    shown = examples(statement)
    if not shown:
        raise Rejected("no_tests", "no example with plain values")
    name, parameters = signature(row.get("python"), shown[0])
    unordered = bool(_ANY_ORDER.search(statement))
    calls = [(f"{name}({arguments})", item.output) for item in shown if (arguments := item.arguments(parameters))]
    tests = [_assertion(call, output, unordered) for call, output in calls]
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


@dataclass(frozen=True)
class Example:
    """The values of one worked example."""

    inputs: dict[str, Any]
    """By name; by position where the statement gives no names."""
    output: Any

    def arguments(self, parameters: list[str]) -> str | None:
        """The inputs in the parameters' order; None if there are more or fewer."""
        # A reference that renames its parameters keeps the statement's order.
        named = set(self.inputs) == set(parameters)
        values = [self.inputs[name] for name in parameters] if named else list(self.inputs.values())
        return ", ".join(map(repr, values)) if len(values) == len(parameters) else None


def examples(statement: str) -> list[Example]:
    """The examples in a plain statement whose values are plain.

    >>> examples('Input: s = "a b", k = [1,null]\\nOutput: true')
    [Example(inputs={'s': 'a b', 'k': [1, None]}, output=True)]
    """
    found = []
    for given, result in _EXAMPLE.findall(statement):
        try:
            call = ast.parse(f"f({' '.join(given.split())})", mode="eval").body
            output = _value(ast.parse(" ".join(result.split()), mode="eval").body)
            if isinstance(call, ast.Call) and not isinstance(output, tuple):
                values = [(str(place), node) for place, node in enumerate(call.args)]
                values += [(str(keyword.arg), keyword.value) for keyword in call.keywords]
                found.append(Example({name: _value(node) for name, node in values}, output))
        except _UNPARSABLE:
            continue
    return found


def signature(solution: Any, example: Example) -> tuple[str, list[str]]:
    """Name and parameters of the solution's function that takes the example's inputs, preferably under their names.

    Raises:
      Rejected: there is no such function.
    """
    match = _FENCE.search(solution) if isinstance(solution, str) else None
    try:
        body = ast.parse(textwrap.dedent(match[1]) if match else "").body
    except _UNPARSABLE:
        body = []
    body += [item for node in body if isinstance(node, ast.ClassDef) and node.name == "Solution" for item in node.body]
    functions = [
        (node.name, [argument.arg for argument in node.args.args if argument.arg != "self"])
        for node in body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    takers = [(name, parameters) for name, parameters in functions if example.arguments(parameters)]
    takers.sort(key=lambda function: set(function[1]) == set(example.inputs))
    if not takers:
        raise Rejected("no_reference_function")
    return takers[-1]


def _value(node: ast.expr) -> Any:
    """`ast.literal_eval`, which also knows JSON's constants.

    Raises:
      ValueError: it is not a literal.
    """
    if isinstance(node, ast.Name) and node.id in _JSON:
        return _JSON[node.id]
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)


def _assertion(call: str, output: Any, unordered: bool) -> str:
    if isinstance(output, float):
        return f"assert abs({call} - {output!r}) < 1e-5"
    if unordered and isinstance(output, list):
        try:
            return f"assert sorted({call}) == {sorted(output)!r}"
        except TypeError:  # Values of different types cannot be sorted.
            raise Rejected("many_answers", "in any order") from None
    return f"assert {call} == {output!r}"
