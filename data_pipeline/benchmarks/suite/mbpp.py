"""MBPP: 378 functions of Python, given by a sentence and an assertion (Austin et al., 2021; EvalPlus' MBPP+ v0.2.0).

Judged as EvalPlus judges its base tests: the function's results for MBPP's own inputs beside those of the reference
solution, within a tolerance where they are floats; never by the text of MBPP's assertions, some of which are wrong. The
reference runs in the sandbox, too, where the answer's program cannot see it.

Two shapes of rows: EvalPlus' own (`MbppPlus.jsonl`), whose inputs are JSON and must become the types that each task
means, and its copy on the Hub, whose `test` lists all inputs as Python, MBPP's own first.
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.benchmarks.benchmark import DataFile, Row
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.programming import CANDIDATE, Programming
from data_pipeline.scoring.code.code_tests import UNPARSABLE
from fusejax.common.cli import UserError

SETS = frozenset(
    [
        "Diff",
        "common_in_nested_lists",
        "extract_singly",
        "find_char_long",
        "find_dissimilar",
        "intersection_array",
        "larg_nnum",
        "similar_elements",
    ]
)
"""Functions whose results may come in any order."""
FOUND = frozenset(["check_str", "text_match_three", "text_starta_endb"])
"""Functions of which only whether they return something is compared: their references return match objects."""
SPECIAL = {
    "are_equivalent": "True",
    "sum_div": "got == want or got == 0",
    "surface_Area": "got == want or got == round(call[0] ** 2 "
    "+ 2 * call[0] * ((call[0] / 2) ** 2 + call[1] ** 2) ** 0.5)",
    "digit_distance_nums": "got == want or got == sum(abs(int(one) - int(other)) for one, other in zip("
    "*(str(number).zfill(max(len(str(call[0])), len(str(call[1])))) for number in call)))",
}
"""Functions of which EvalPlus takes another result as well, since the task can be read in two ways or the test is
wrong (Mbpp 164, 295, 581, 558)."""

_TESTS = """\
import copy
inf = float("inf")
nan = float("nan")
SOURCE = {source!r}
CALLS = {calls}
def expected(call):
    scope = {{}}
    exec(SOURCE, scope)
    return scope[{entry_point!r}](*call)
CASES = [(call, expected(copy.deepcopy(call))) for call in CALLS]
def floats(value):
    return isinstance(value, float) or (isinstance(value, (list, tuple)) and value != type(value)()
        and all(isinstance(part, float) for part in value))
def close(got, want, tolerance):
    if isinstance(want, (list, tuple)):
        return (isinstance(got, type(want)) and len(got) == len(want)
            and all(close(one, other, tolerance) for one, other in zip(got, want)))
    return got == want or (isinstance(got, type(want)) and abs(got - want) <= tolerance + 1e-7 * abs(want))
def agree(call, got, want):
    if {same}:
        return True
    tolerance = {tolerance!r} or (1e-6 if floats(want) else 0)
    return tolerance != 0 and close(got, want, tolerance)
"""
_RUN = f"for call, want in CASES:\n    assert agree(call, {CANDIDATE}(*call), want)"


class MBPP(Programming):
    name, title, published = "mbpp", "MBPP", "mbpp"
    files: Mapping[str, DataFile] = {
        "mbpp": DataFile("evalplus/mbppplus", bring="MbppPlus.jsonl of EvalPlus' release mbppplus v0.2.0")
    }

    def identity(self, row: Row, number: int, taken: set[str], where: str) -> str:
        return columns.identity({"task_id": f"Mbpp/{_number(row, where)}"}, number, taken, where, "task_id")

    def fields(self, row: Row, where: str) -> Row:
        if "base_input" in row:
            prompt, entry_point, source = (
                columns.text(row, where, name) for name in ("prompt", "entry_point", "canonical_solution")
            )
            calls = _json_calls(row, where)
            tolerance = row.get("atol") or 0
        else:
            source = columns.text(row, where, "code")
            entry_point, calls, tolerance, first = _of_the_hub(row, where)
            prompt = f'"""\n{columns.text(row, where, "prompt").strip()}\n{first.strip()}\n"""\n'
        same = SPECIAL.get(entry_point, "got == want")
        if entry_point in SETS:
            same = "set(got) == set(want)"
        elif entry_point in FOUND:
            same = "got == (want is not None) if isinstance(got, bool) else (got is None) == (want is None)"
        tests = _TESTS.format(source=source, calls=calls, entry_point=entry_point, same=same, tolerance=tolerance)
        return {"prompt": prompt, "entry_point": entry_point, "tests": [tests, _RUN], "reference": source}


def _number(row: Row, where: str) -> int:
    name = columns.text(row, where, "task_id").rpartition("/")[2]
    if not name.isdecimal():
        raise UserError(f"{where}: the task_id has no number")
    return int(name)


def _json_calls(row: Row, where: str) -> str:
    number, calls = _number(row, where), row["base_input"]
    try:
        if not calls:
            raise ValueError
        return repr([_typed(number, list(call)) for call in calls])
    except (ValueError, TypeError, AttributeError, IndexError):
        raise UserError(f"{where}: base_input holds no inputs of task {number}") from None


def _of_the_hub(row: Row, where: str) -> tuple[str, str, float, str]:
    """(the function's name, calls, tolerance, the first assertion), of `test` and `test_list`.

    Raises:
      UserError: they are not as on the Hub.
    """
    assertions = row.get("test_list")
    if not isinstance(assertions, list | tuple) or not all(isinstance(text, str) for text in assertions):
        raise UserError(f"{where}: neither base_input nor test_list; its columns are {', '.join(row) or 'none'}")
    try:
        defined = _defined(columns.text(row, where, "code"))
        tree = ast.parse(columns.text(row, where, "test"))
        entry_point = next(name for name, _ in _calls(ast.parse(assertions[0])) if name in defined)
        calls = next(
            node.value.elts
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "inputs"
            and isinstance(node.value, ast.List)
        )
        tolerance = next(ast.literal_eval(given[2]) for name, given in _calls(tree) if name == "assertion")
    except (*UNPARSABLE, StopIteration, IndexError):
        raise UserError(f"{where}: its test, code and test_list are not as on the Hub") from None
    return entry_point, ast.unparse(ast.List(calls[: len(assertions)], ast.Load())), tolerance, assertions[0]


def _calls(tree: ast.AST) -> Iterator[tuple[str, list[ast.expr]]]:
    """(name, arguments) of every call of a function by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node.args


def _defined(source: str) -> set[str]:
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


# What JSON cannot say of a task's inputs: by the tasks' numbers, as EvalPlus reads them.
_TUPLES = {2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809}
_LISTS_OF_TUPLES = {63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}
_FIRST_LISTS_TUPLES = {75, 413, 444, 753}
_FIRST_IS_TUPLE = {250, 307, 405, 446, 617, 720, 763, 808}
_SECOND_IS_TUPLE = {106, 750}
_TUPLES_OF_TUPLES = {259, 401, 445}
_ALL_TUPLES = {580, 615, 791}


def _typed(number: int, call: list[Any]) -> list[Any]:
    """The arguments of one call of a task's function, in the types that the task means.

    >>> _typed(2, [[1, 2], [3]]), _typed(63, [[[1, 2], [3]]]), _typed(252, ["1j"])
    ([(1, 2), (3,)], [[(1, 2), (3,)]], [1j])
    """
    if number in _TUPLES:
        return _tuples(call)
    if number in _LISTS_OF_TUPLES:
        return [_tuples(value) for value in call]
    if number in _FIRST_LISTS_TUPLES:
        return [_tuples(call[0]), *call[1:]]
    if number in _FIRST_IS_TUPLE:
        return [tuple(call[0]), *call[1:]]
    if number in _SECOND_IS_TUPLE:
        return [call[0], tuple(call[1]), *call[2:]]
    if number in _TUPLES_OF_TUPLES:
        return [tuple(_tuples(value)) for value in call]
    if number in _ALL_TUPLES:
        return [_deep_tuple(value) for value in call]
    match number:
        case 115:
            return [[set(part) if isinstance(part, list) and part else {} for part in call[0]]]
        case 124:
            return [float(call[0]), complex(call[1])]
        case 252:
            return [complex(call[0])]
        case 278:
            return [tuple(tuple(part) if isinstance(part, list) else part for part in value) for value in call]
        case 722:
            return [{key: tuple(value) for key, value in call[0].items()}, *call[1:]]
    return call


def _tuples(values: list[Any]) -> list[Any]:
    return [tuple(value) for value in values]


def _deep_tuple(value: Any) -> Any:
    return tuple(map(_deep_tuple, value)) if isinstance(value, list) else value
