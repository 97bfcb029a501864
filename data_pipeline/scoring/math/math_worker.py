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

from data_pipeline.scoring.math import math_compare, math_notation
from data_pipeline.scoring.math.math_compare import Outcome

# It would warn that its own time-out is off; ours, which kills the process, replaces it.
logging.getLogger("math_verify").setLevel(logging.ERROR)
DIGITS = 60
"""Significant digits at which two constants are compared."""
PRIMES = (11, 13, 17, 19, 23, 29, 31, 37)
"""Values of letters in checks: from eleven on, formulas that differ hardly agree by chance."""

_RELATIONS = (sympy.Eq, sympy.Ne, sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge)
_ORDERS = _RELATIONS[2:]
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
        gold, found = map(math_notation.in_symbols, pair)
        outcome = math_compare.compare(gold, found, compare_formulas)
    except MemoryError:
        raise
    except Exception as error:  # Whatever sympy raises on strange input, RecursionError too.
        return "unknown", f"math_verify_failed: {type(error).__name__}"
    verdict, reason = outcome or ("unknown", "not_compared")
    if verdict == "wrong" and any(map(_AMBIGUOUS.search, pair)):
        return "unknown", "ambiguous_notation"
    return verdict, reason


def compare_formulas(gold: str, found: str) -> Outcome:
    """The verdict on two formulas, equations, inequalities or intervals."""
    gold, found = (_ANGLE.sub(r"\1(\\frac{\2\\pi}{180})", text) for text in (gold, found))
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
    answer = re.sub(r"(?<=\d)\{,\}(?=\d{3})", "", answer)
    if len(parts := re.split(r"\band\b", answer)) > 1 and math_notation.INEQUALITY.search(answer):
        conditions = [_parse(part) for part in parts]
        relational = all(isinstance(condition, _ORDERS) for condition in conditions)
        return sympy.And(*conditions) if relational else None
    try:
        # In a box the parser reads the whole answer or nothing; in `$...$` perhaps only some number within it.
        parsed = math_verify.parse(f"\\boxed{{{answer.strip().strip('$')}}}", parsing_timeout=None)
    except MemoryError:
        raise
    except Exception:  # Whatever sympy raises: no parse, no verdict.
        return None
    if not parsed or isinstance(parsed[0], str) or parsed[-1].count("{") != parsed[-1].count("}"):
        return None
    # A letter that is not there any more shows that some part was not read.
    unread = {letter.lower() for letter in math_notation.letters(answer)} - set(str(parsed[0]).lower()) - set("dei")
    return None if unread else parsed[0]


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
    if any(isinstance(value, sympy.sets.sets.EmptySet) for value in (left, right)):
        # "No solutions" may be written as 0.
        return ("unknown", "not_comparable") if 0 in (left, right) else ("wrong", "other_count")
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
    if values[0] is not None and values[1] is not None:
        if values[0].shape != values[1].shape:
            return "wrong", "other_shape"
        return _compare_all(values[0].values, values[1].values)
    sets = _solutions(left), _solutions(right)
    if None not in sets:
        if _letters_differ(left, right):
            return "unknown", "other_variables"
        return ("correct", "same_set") if sets[0] == sets[1] else ("wrong", "other_set")
    kinds = (sympy.Expr, sympy.Eq, sympy.Set, sympy.MatrixBase, sympy.core.relational.Relational)
    if not any(isinstance(left, kind) and isinstance(right, kind) for kind in kinds):
        return "unknown", "not_comparable"
    return _checked(left, right)


def _compare_all(left: Sequence[Any], right: Sequence[Any]) -> Outcome:
    """Wrong if any value is wrong; correct if all are."""
    found = [_compare(a, b) for a, b in zip(left, right, strict=True)]
    for wanted in ("wrong", "unknown"):
        for verdict, reason in found:
            if verdict == wanted:
                return verdict, reason
    return "correct", "same_values"


class _Values(NamedTuple):
    """What is compared value by value, where the shape is the same."""

    shape: tuple[object, ...]
    values: list[Any]


def _values(value: Any) -> _Values | None:
    if isinstance(value, sympy.MatrixBase):
        return _Values(("matrix", *value.shape), list(value))
    if isinstance(value, sympy.Interval):
        return _Values(("interval", bool(value.left_open), bool(value.right_open)), [value.start, value.end])
    return None


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


def _checked(left: Any, right: Any) -> Outcome:
    """Math-Verify's verdict on two formulas or equations, if it agrees with checks at values of their letters."""
    options: dict[str, Any] = {"timeout_seconds": None, "raise_on_error": True}
    equal = math_verify.verify(left, right, **options) or math_verify.verify(right, left, **options)
    if _is_identity(left) or _is_identity(right):
        return "unknown", "identity"
    checks = [_agree(left, right, divisor) for divisor in (1, 7)]
    if None in checks:
        return "unknown", "not_checked"
    # At whole numbers cos(n pi) is (-1)^n.
    if equal != all(checks) or equal != any(checks):
        return "unknown", "checks_disagree"
    return "correct" if equal else "wrong", "math_verify"


def _is_identity(equation: Any) -> bool:
    """Whether it holds whatever its letters are, so that it says as much as every other identity: nothing."""
    if not isinstance(equation, sympy.Eq) or not isinstance(equation.lhs - equation.rhs, sympy.Expr):
        return False
    return _agree(equation.lhs, equation.rhs, 1) is True and _agree(equation.lhs, equation.rhs, 7) is True


def _agree(left: Any, right: Any, divisor: int) -> bool | None:
    """Whether two formulas have equal values at two points, and equations or inequalities proportional ones.

    None if they have no values there. The letters stand for primes over `divisor`.
    """
    related = isinstance(left, _RELATIONS) and isinstance(right, _RELATIONS)
    order = related and isinstance(left, _ORDERS)
    if related:
        left, right = (value.canonical if isinstance(value, _ORDERS) else value for value in (left, right))
        if left.func != right.func:
            return None
        if left.lhs == right.lhs and isinstance(left, sympy.Eq):  # f(x) = 2x has no value on its left.
            left, right, related = left.rhs, right.rhs, False
        else:
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
    couples = [(a * d, b * c)] if related else [(a, b), (c, d)]
    if order and not all(sympy.re(p * q) > 0 for p, q in found):  # x > y is not y > x.
        return False
    return all(bool(abs(p - q) <= max(abs(p), abs(q)) * sympy.Float(10) ** -15) for p, q in couples)
