"""Runs in a worker process: Math-Verify on one pair of answers, with its known false verdicts set right."""

import logging
import re
from typing import Any

import math_verify
import sympy

from data_pipeline.scorers.base import Verdict

logging.getLogger("math_verify").setLevel(
    logging.ERROR
)  # It warns that its own time-out is off: ours kills the process.
DIGITS = 60
"""Significant digits at which two constants are compared."""


_DEGREES = r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|°)"
_ANGLE = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\\left\s*)?[({]?\s*)(\d+(?:\.\d+)?)" + _DEGREES)


def verify(pair: tuple[str, str]) -> tuple[Verdict, str]:
    """(verdict, reason) for (label, answer), both as LaTeX or plain text.

    Raises:
      MemoryError: the comparison needs more than the process may have.
    """
    try:
        return _verify(*pair)
    except MemoryError:
        raise
    except Exception as error:  # Whatever sympy raises on strange input, RecursionError too.
        return "unknown", f"math_verify_failed: {type(error).__name__}"


def _verify(gold_text: str, found_text: str) -> tuple[Verdict, str]:
    gold_text, found_text = (_ANGLE.sub(r"\1(\\frac{\2\\pi}{180})", text) for text in (gold_text, found_text))
    gold, found = _parse(gold_text), _parse(found_text)
    if not gold or not found:
        return "unknown", "label_not_parsed" if not gold else "answer_not_parsed"
    left, right = _with_imaginary_unit(gold[0], found[0])
    verdict, reason = _compare(left, right, gold, found)
    # The parser drops the sign: 45 degrees are 45 to it, and no quarter of pi.
    if verdict == "wrong" and bool(re.search(_DEGREES, gold_text)) != bool(re.search(_DEGREES, found_text)):
        return "unknown", "degrees_against_number"
    return verdict, reason


def _compare(left: Any, right: Any, gold: list[Any], found: list[Any]) -> tuple[Verdict, str]:
    same = _same_constants(left, right)
    if same is not None:
        # Math-Verify compares at a few digits: to it, 1/2004! is 1/2006!.
        return ("correct", "same_value") if same else ("wrong", "other_value")
    options: dict[str, Any] = {"timeout_seconds": None, "raise_on_error": True}
    if math_verify.verify(gold, found, **options) or math_verify.verify(found, gold, **options):
        return "correct", "math_verify"
    if _is_rounding(left, right):
        return "unknown", "rounded"
    sets = _solutions(left), _solutions(right)
    if None not in sets:
        if left.free_symbols and right.free_symbols and left.free_symbols != right.free_symbols:
            return "unknown", "other_variables"
        return ("correct", "same_set") if sets[0] == sets[1] else ("wrong", "other_set")
    return ("wrong", "math_verify") if _comparable(left, right) else ("unknown", "not_comparable")


def _parse(answer: str) -> list[Any]:
    # `\mathrm{e}` is taken for a unit, and cut off with all that follows.
    answer = re.sub(r"\\(?:mathrm|text|operatorname)\s*(?:\{\s*([ei])\s*\}|\s([ei])(?![a-zA-Z]))", r"\1\2", answer)
    answer = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?![\w.])", r"\1\\times 10^{\2}", answer)
    try:
        # In a box the whole answer is read or nothing; in `$...$` it may be some number within it.
        parsed = math_verify.parse(f"\\boxed{{{answer.strip().strip('$')}}}", parsing_timeout=None)
    except MemoryError:
        raise
    except Exception:  # Whatever sympy raises: no parse, no verdict.
        return []
    understood = parsed and not isinstance(parsed[0], str)
    return parsed if understood and parsed[-1].count("{") == parsed[-1].count("}") else []


def _with_imaginary_unit(left: Any, right: Any) -> tuple[Any, Any]:
    """Where i is the only letter, it is no variable."""
    symbols = {str(symbol) for value in (left, right) for symbol in getattr(value, "free_symbols", ())}
    if symbols != {"i"} or not all(isinstance(value, sympy.Expr) for value in (left, right)):
        return left, right
    units = {symbol: sympy.I for value in (left, right) for symbol in value.free_symbols}
    return left.subs(units), right.subs(units)


def _same_constants(left: Any, right: Any) -> bool | None:
    """Whether two constants are equal, at many digits; None if one is no constant."""
    for value in (left, right):
        if not isinstance(value, sympy.Expr) or value.free_symbols or value.has(sympy.nan, sympy.zoo, sympy.oo):
            return None
        if value.has(sympy.Float):
            return None  # A rounded number has no many digits.
    a, b = left.evalf(DIGITS), right.evalf(DIGITS)
    sizes = [abs(value).evalf(DIGITS) for value in (a, b, a - b)]
    if not all(size.is_comparable for size in sizes):
        return None
    scale = max(sizes[:2])
    return bool(scale == 0 or sizes[2] <= scale * sympy.Float(10, DIGITS) ** (10 - DIGITS))


def _solutions(value: Any) -> Any:
    """The set of real numbers that an interval or inequalities in one variable stand for; None for anything else."""
    if isinstance(value, sympy.Interval | sympy.Union):
        return value
    # "x < -2 or x > 2" is read as the set of the two.
    parts = tuple(value) if isinstance(value, sympy.FiniteSet) else (value,)
    kinds = (sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge, sympy.And, sympy.Or)
    if not parts or not all(isinstance(part, kinds) for part in parts) or len(value.free_symbols) != 1:
        return None
    return sympy.Union(*(part.as_set() for part in parts))


def _is_rounding(left: Any, right: Any) -> bool:
    """Whether two constants, one of them a decimal number, are within a hundredth of each other: 3.46 and 2 sqrt(3)."""
    if not all(isinstance(value, sympy.Expr) and value.is_number for value in (left, right)):
        return False
    a, b = left.evalf(), right.evalf()
    if not (left.has(sympy.Float) or right.has(sympy.Float)) or not (a.is_comparable and b.is_comparable):
        return False
    return bool(abs(a - b) <= max(abs(a), abs(b)) / 100)


def _comparable(left: Any, right: Any) -> bool:
    """Whether both were understood as the same kind of thing, so that "not equal" means wrong."""
    kinds = (sympy.Expr, sympy.Set, sympy.MatrixBase, sympy.Tuple, sympy.core.relational.Relational)
    # (1, 2) is read as an interval, (2, 1) as a point.
    lists = (sympy.Tuple, sympy.Interval)
    return any(isinstance(left, kind) and isinstance(right, kind) for kind in (*kinds, lists))
