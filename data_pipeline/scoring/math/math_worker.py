"""Runs in a worker process: Math-Verify on one pair of answers, with its known false verdicts corrected.

Math-Verify parses, and compares formulas. Constants are compared here at many digits, tuples, sets, matrices and
intervals value by value, and its verdict on formulas is checked at values of their letters: where the two disagree, the
verdict is unknown.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import math_verify
import sympy

from data_pipeline.scoring.math import math_answers
from data_pipeline.scoring.scorer import Verdict

# It would warn that its own time-out is off; ours, which kills the process, replaces it.
logging.getLogger("math_verify").setLevel(logging.ERROR)
DIGITS = 60
"""Significant digits at which two constants are compared."""
PRIMES = (11, 13, 17, 19, 23, 29, 31, 37)
"""Values of letters in checks: from eleven on, formulas that differ hardly agree by chance."""

Outcome = tuple[Verdict, str]
_DEGREES = r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|°)"
_ANGLE = re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\\left\s*)?[({]?\s*)(\d+(?:\.\d+)?)" + _DEGREES)
_DEGREE = re.compile(r"(\d+(?:\.\d+)?)" + _DEGREES)
_AMBIGUOUS = re.compile(
    r"\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\\left\s*)?[({]?\s*\d+(?:\.\d+)?(?![\d.]|\s*[a-zA-Z\\^/°])"  # Degrees?
    r"|\\log(?!\s*_|[a-zA-Z])"  # To which base?
    r"|\d/\d+\s*[a-zA-Z(\\]"  # 1/2x: a half of x?
    r"|\d, \d{3}(?!\d)"  # Two numbers, or one in groups of digits?
)


def verify(pair: tuple[str, str]) -> Outcome:
    """(verdict, reason) for (label, answer), both as LaTeX or plain text.

    Raises:
      MemoryError: the comparison needs more than the process may have.
    """
    try:
        verdict, reason = _verify(*map(math_answers.in_symbols, pair))
    except MemoryError:
        raise
    except Exception as error:  # Whatever sympy raises on strange input, RecursionError too.
        return "unknown", f"math_verify_failed: {type(error).__name__}"
    if verdict == "wrong" and any(map(_AMBIGUOUS.search, pair)):
        return "unknown", "ambiguous_notation"
    return verdict, reason


def _verify(gold: str, found: str) -> Outcome:
    gold, found = (_ANGLE.sub(r"\1(\\frac{\2\\pi}{180})", text) for text in (gold, found))
    tuples = math_answers.is_tuple(gold), math_answers.is_tuple(found)
    names = math_answers.named_values(gold), math_answers.named_values(found)
    if all(names) and names[0].keys() == names[1].keys():
        gold, found = (math_answers.as_tuple(values.values()) for values in names)
    elif tuples[0] != tuples[1] and any(names):
        gold, found = (
            math_answers.as_tuple(values.values()) if values else text
            for values, text in zip(names, (gold, found), strict=True)
        )
    elif tuples[0] != tuples[1] and (plain := found if tuples[0] else gold)[:1] not in "([\\":
        verdict, reason = _compare_texts(*(text if text is not plain else f"({text})" for text in (gold, found)))
        return ("unknown", "tuple_against_list") if verdict == "wrong" else (verdict, reason)
    verdict, reason = _compare_texts(gold, found)
    # The parser drops the degree sign: it reads 45 degrees as 45, not as a quarter of pi.
    degrees = [bool(_DEGREE.search(text)) for text in (gold, found)]
    if verdict == "correct" or degrees[0] == degrees[1]:
        return verdict, reason
    if "\\pi" not in gold + found:
        return "unknown", "degrees_against_number"
    return _compare_texts(*(_DEGREE.sub(r"\\frac{\1\\pi}{180}", text) for text in (gold, found)))


def _compare_texts(gold: str, found: str) -> Outcome:
    left, right = _parse(gold), _parse(found)
    if left is None or right is None:
        return "unknown", "label_not_parsed" if left is None else "answer_not_parsed"
    verdict, reason = _compare(*_with_imaginary_unit(left, right))
    if verdict == "wrong" and _letters_differ(left, right):
        return "unknown", "other_variables"
    return verdict, reason


def _parse(answer: str) -> Any:
    """A sympy object, or None."""
    # `\mathrm{e}` is taken for a unit, and cut off with all that follows.
    answer = re.sub(r"\\(?:mathrm|text|operatorname)\s*(?:\{\s*([ei])\s*\}|\s([ei])(?![a-zA-Z]))", r"\1\2", answer)
    answer = re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})(?![\w.])", r"\1\\times 10^{\2}", answer)
    try:
        # In a box the parser reads the whole answer or nothing; in `$...$` perhaps only some number within it.
        parsed = math_verify.parse(f"\\boxed{{{answer.strip().strip('$')}}}", parsing_timeout=None)
    except MemoryError:
        raise
    except Exception:  # Whatever sympy raises: no parse, no verdict.
        return None
    understood = parsed and not isinstance(parsed[0], str)
    return parsed[0] if understood and parsed[-1].count("{") == parsed[-1].count("}") else None


def _with_imaginary_unit(left: Any, right: Any) -> tuple[Any, Any]:
    """Reads i as the imaginary unit where it is the only letter."""
    symbols = {str(symbol) for value in (left, right) for symbol in getattr(value, "free_symbols", ())}
    if symbols != {"i"} or not all(isinstance(value, sympy.Expr) for value in (left, right)):
        return left, right
    units = {symbol: sympy.I for value in (left, right) for symbol in value.free_symbols}
    return left.subs(units), right.subs(units)


def _letters_differ(left: Any, right: Any) -> bool:
    """Whether each has letters that the other lacks: n^2 may be meant as x^2."""
    letters: list[set[Any]] = [getattr(value, "free_symbols", set()) for value in (left, right)]
    return bool(letters[0] - letters[1] and letters[1] - letters[0])


def _compare(left: Any, right: Any) -> Outcome:
    if left == right:
        return "correct", "same_value"
    infinite = [value in (sympy.oo, -sympy.oo) for value in (left, right)]
    if any(infinite) and all(one or _is_constant(value) for one, value in zip(infinite, (left, right), strict=True)):
        return "wrong", "other_value"
    same = _same_constants(left, right)
    if same is not None:
        # Math-Verify compares at a few digits: to it, 1/2004! is 1/2006!.
        if same:
            return "correct", "same_value"
        return ("unknown", "rounded") if _is_rounding(left, right) else ("wrong", "other_value")
    values = _values(left), _values(right)
    if values[0] is not None and values[1] is not None and values[0].kind == values[1].kind:
        if values[0].shape != values[1].shape:
            return "wrong", "other_shape"
        return _compare_all(values[0].values, values[1].values)
    if _counts_differ(left, right):
        return "wrong", "other_count"
    sets = _solutions(left), _solutions(right)
    if None not in sets:
        if _letters_differ(left, right):
            return "unknown", "other_variables"
        return ("correct", "same_set") if sets[0] == sets[1] else ("wrong", "other_set")
    options: dict[str, Any] = {"timeout_seconds": None, "raise_on_error": True}
    equal = math_verify.verify(left, right, **options) or math_verify.verify(right, left, **options)
    kinds = (sympy.Expr, sympy.Set, sympy.MatrixBase, sympy.Tuple, sympy.core.relational.Relational)
    if not equal and not any(isinstance(left, kind) and isinstance(right, kind) for kind in kinds):
        return "unknown", "not_comparable"
    return _checked(left, right, equal=equal)


def _compare_all(left: Sequence[Any], right: Sequence[Any]) -> Outcome:
    """Wrong if any value is wrong; correct if all are."""
    found = [_compare(a, b) for a, b in zip(left, right, strict=True)]
    for wanted in ("wrong", "unknown"):
        for verdict, reason in found:
            if verdict == wanted:
                return verdict, reason
    return "correct", "same_values"


class _Values(NamedTuple):
    """What is compared value by value, where kind and shape are the same."""

    kind: str
    shape: tuple[int, ...]
    values: list[Any]


def _values(value: Any) -> _Values | None:
    if isinstance(value, sympy.MatrixBase):
        return _Values("matrix", value.shape, list(value))
    if isinstance(value, sympy.Tuple):
        return _Values("tuple", (len(value),), list(value))
    if isinstance(value, sympy.Interval):
        # (1, 2) is read as an interval, (2, 1) as a point.
        ends = [value.start, value.end]
        if value.left_open and value.right_open:
            return _Values("tuple", (2,), ends)
        return _Values("interval", (bool(value.left_open), bool(value.right_open)), ends)
    if isinstance(value, sympy.FiniteSet) and all(_is_constant(element) for element in value):
        # Rounded, so that the last digit does not decide the order of conjugates.
        ordered = sorted(value, key=lambda element: [round(float(part), 9) for part in element.as_real_imag()])
        return _Values("set", (len(value),), ordered)
    return None


def _counts_differ(left: Any, right: Any) -> bool:
    """Whether they are lists of different numbers of constants, or a list against one constant."""
    counts = []
    for value in (left, right):
        elements = tuple(value) if isinstance(value, sympy.FiniteSet | sympy.sets.sets.EmptySet) else (value,)
        if not all(_is_constant(element) for element in elements):
            return False
        counts.append(len(elements))
    # "No solutions" may be written as 0.
    return counts[0] != counts[1] and not (0 in counts and 0 in (left, right))


def _is_constant(value: Any) -> bool:
    infinite = (sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)
    return isinstance(value, sympy.Expr) and not value.free_symbols and not value.has(*infinite)


def _same_constants(left: Any, right: Any) -> bool | None:
    """Whether two constants are equal, at many digits; None if one is no constant."""
    if not _is_constant(left) or not _is_constant(right):
        return None
    a, b = _exact(left).evalf(DIGITS), _exact(right).evalf(DIGITS)
    sizes = [abs(value).evalf(DIGITS) for value in (a, b, a - b)]
    if not all(size.is_comparable for size in sizes):
        return None
    scale = max(sizes[:2])
    return bool(scale == 0 or sizes[2] <= scale * sympy.Float(10, DIGITS) ** (10 - DIGITS))


def _exact(value: Any) -> Any:
    """With the decimal numbers as written, not as the nearest binary ones."""
    return value.xreplace({number: sympy.Rational(str(number)) for number in value.atoms(sympy.Float)})


def _is_rounding(left: Any, right: Any) -> bool:
    """Whether two constants, one of them a decimal number, are within a hundredth of each other: 3.46 and 2 sqrt(3)."""
    a, b = left.evalf(), right.evalf()
    if not (left.has(sympy.Float) or right.has(sympy.Float)) or not (a.is_comparable and b.is_comparable):
        return False
    return bool(abs(a - b) <= max(abs(a), abs(b)) / 100)


def _solutions(value: Any) -> Any:
    """The set of real numbers that an interval or inequalities in one variable stand for; None for anything else."""
    if isinstance(value, sympy.Interval | sympy.Union):
        return _exact(value)
    # "x < -2 or x > 2" is read as the set of the two.
    parts = tuple(value) if isinstance(value, sympy.FiniteSet) else (value,)
    kinds = (sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge, sympy.And, sympy.Or)
    if not parts or not all(isinstance(part, kinds) for part in parts) or len(value.free_symbols) != 1:
        return None
    return sympy.Union(*(_exact(part).as_set() for part in parts))


def _checked(left: Any, right: Any, *, equal: bool) -> Outcome:
    """Math-Verify's verdict on two formulas or equations, if it agrees with a check at values of their letters."""
    checks = [_agree(left, right, divisor) for divisor in (1, 7)]
    # At whole numbers cos(n pi) is (-1)^n.
    if equal and any(check is False for check in checks) and not any(checks):
        return "unknown", "checks_disagree"
    if not equal and (any(checks) or None in checks):
        return "unknown", "checks_disagree" if any(checks) else "not_checked"
    return "correct" if equal else "wrong", "math_verify"


def _agree(left: Any, right: Any, divisor: int) -> bool | None:
    """Whether two formulas have equal values at two points, and equations proportional ones; None if there are none.

    The letters stand for primes over `divisor`.
    """
    equations = isinstance(left, sympy.Eq) and isinstance(right, sympy.Eq)
    if equations and left.lhs == right.lhs:  # f(x) = 2x has no value on its left.
        left, right, equations = left.rhs, right.rhs, False
    elif equations:
        left, right = (value.lhs - value.rhs for value in (left, right))
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        return None
    letters = sorted(left.free_symbols | right.free_symbols, key=str)
    found = []
    for start in (0, 3):
        primes = (PRIMES[(start + index) % len(PRIMES)] for index in range(len(letters)))
        point = {letter: sympy.Rational(prime, divisor) for letter, prime in zip(letters, primes, strict=True)}
        values = [_exact(value).subs(point).evalf(30) for value in (left, right)]
        if not all(abs(value).evalf().is_comparable for value in values):
            return None
        found.append(values)
    (a, b), (c, d) = found
    couples = [(a * d, b * c)] if equations else [(a, b), (c, d)]
    return all(bool(abs(p - q) <= max(abs(p), abs(q)) * sympy.Float(10) ** -15) for p, q in couples)
