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


def verify(pair: tuple[str, str]) -> tuple[Verdict, str]:
    """(verdict, reason) for (label, answer), both as LaTeX or plain text."""
    gold, found = (_parse(answer) for answer in pair)
    if not gold or not found:
        return "unknown", "label_not_parsed" if not gold else "answer_not_parsed"
    left, right = gold[0], found[0]
    same = _same_constants(left, right)
    if same is not None:
        # Math-Verify compares at a few digits: to it, 1/2004! is 1/2006!.
        return ("correct", "same_value") if same else ("wrong", "other_value")
    options: dict[str, Any] = {"timeout_seconds": None, "raise_on_error": True}
    try:
        if math_verify.verify(gold, found, **options) or math_verify.verify(found, gold, **options):
            return "correct", "math_verify"
    except Exception as error:  # Whatever sympy raises on strange input; a killed or crashed worker is seen outside.
        return "unknown", f"math_verify_failed: {type(error).__name__}"
    if _is_rounding(left, right):
        return "unknown", "rounded"
    return ("wrong", "math_verify") if _comparable(left, right) else ("unknown", "not_comparable")


def _parse(answer: str) -> list[Any]:
    # `\mathrm{e}` is taken for a unit, and cut off with all that follows.
    answer = re.sub(r"\\(?:mathrm|text|operatorname)\s*(?:\{\s*([ei])\s*\}|\s([ei])(?![a-zA-Z]))", r"\1\2", answer)
    answer = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?![\w.])", r"\1\\times 10^{\2}", answer)
    try:
        # In a box the whole answer is read or nothing; in `$...$` it may be some number within it.
        parsed = math_verify.parse(f"\\boxed{{{answer.strip().strip('$')}}}", parsing_timeout=None)
    except Exception:  # The same: no parse, no verdict.
        return []
    understood = parsed and not isinstance(parsed[0], str)
    return parsed if understood and parsed[-1].count("{") == parsed[-1].count("}") else []


def _same_constants(left: Any, right: Any) -> bool | None:
    """Whether two constants are equal, at many digits; None if one is no constant."""
    for value in (left, right):
        if not isinstance(value, sympy.Expr) or value.free_symbols or value.has(sympy.nan, sympy.zoo, sympy.oo):
            return None
        if value.has(sympy.Float):
            return None  # A rounded number has no many digits.
    a, b = left.evalf(DIGITS), right.evalf(DIGITS)
    if not (a.is_number and b.is_number and a.is_comparable is not False and b.is_comparable is not False):
        return None
    scale = max(abs(a), abs(b))
    return bool(scale == 0 or abs(a - b) <= scale * sympy.Float(10, DIGITS) ** (10 - DIGITS))


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
    kinds = (sympy.Expr, sympy.Set, sympy.MatrixBase, sympy.core.relational.Relational)
    return any(isinstance(left, kind) and isinstance(right, kind) for kind in kinds)
