"""Two answers compared by their kinds, down to values that are numbers, quantities, words or choices.

What is certain is decided here; whether two formulas are equal is asked of a function, since that may take long. Only
kinds that can be equal are compared (`_RULES`); a person would ask back about the others, so they are unknown.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import pi
from types import MappingProxyType

from data_pipeline.scoring.math import math_notation, math_units
from data_pipeline.scoring.math.math_forms import Form, Kind, read
from data_pipeline.scoring.scorer import Verdict

Outcome = tuple[Verdict, str]
Formulas = Callable[[str, str], Outcome | None]
"""The verdict on two formulas; None where it is not to be found now."""
_Rule = Callable[[Form, Form, Formulas], Outcome | None]
MOST_PARTS = 12
"""Lists of which more entries than this cannot be matched as texts are not compared entry by entry."""
_WITH_SYNONYMS = frozenset(
    [
        *("all", "always", "dne", "empty", "false", "impossible", "infinite", "infinity", "never", "none", "nothing"),
        *("true", "undefined", "yes"),
    ]
)
"""Words that have synonyms, so that a different word need not be a different answer."""
_TRUTH = {**dict.fromkeys(("yes", "true", "是"), True), **dict.fromkeys(("no", "false", "否", "不是"), False)}
_GEOMETRY = re.compile(r"\\(?:angle|triangle|overline|overrightarrow|widehat)(?![a-zA-Z])")
_DOTS = re.compile(r"\\[lcvd]?dots|\.\.\.|…")
_SUBSCRIPT = re.compile(r"(?<=[\d)}])_\{?(\d+)")
_SIGNS = frozenset("$£€¥₹")
"""Of currencies. A sign goes with every number, the word beside it may be there to tell dollars from cents."""
_REGION = re.compile(r"^[\[(]|\\(?:cup|cap|mathbb|emptyset|varnothing|setminus)")


def compare(gold: str, found: str, formulas: Formulas) -> Outcome | None:
    """(verdict, reason) for two answers as `math_notation.in_symbols` returns them; None if `formulas` says None."""
    decided = _compare_truth(gold, found) or _compare(gold, found, formulas)
    if decided is None or decided[0] != "wrong":
        return decided
    # Wrong only if it is wrong as well where 1,5 means 1.5, 1.234 is 1234, and 100,200 are two numbers.
    other_gold, other_found = math_notation.other_notation(gold, found), math_notation.other_notation(found, gold)
    doubtful = ("correct",) if "{,}" in gold + found else ("correct", "unknown")
    for pair in ((other_gold, found), (gold, other_found), (other_gold, other_found)):
        again = _compare(*pair, formulas) if pair != (gold, found) else decided
        if again is None or again[0] in doubtful:
            return again and ("unknown", "decimal_comma")
    return decided


def _compare(gold: str, found: str, formulas: Formulas) -> Outcome | None:
    if math_notation.normalize(gold) == math_notation.normalize(found):
        return "correct", "same_text"
    decided = _compare_choices(gold, found) or _compare_words(gold, found)
    if decided is not None:
        return decided
    left, right = read(gold), read(found)
    for one, other in ((left, right), (right, left)):
        if len(one.names) == 1 and other.kind not in ("named", "equation"):
            return _compare(one.parts[0], other.text, formulas)
    for one, other in ((left, right), (right, left)):
        if rule := _RULES.get((one.kind, other.kind)):
            return rule(one, other, formulas)
    return "unknown", "not_comparable"


def _all(outcomes: Sequence[Outcome | None]) -> Outcome | None:
    """Wrong if any is wrong, correct if all are."""
    for verdict in ("wrong", "unknown"):
        for outcome in outcomes:
            if outcome is not None and outcome[0] == verdict:
                return outcome if None not in outcomes or verdict == "wrong" else None
    return None if None in outcomes else ("correct", "same_values")


# Several values.


def _in_order(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    if len(left.parts) != len(right.parts):
        return "wrong", "other_count"
    return _all([_compare(a, b, formulas) for a, b in zip(left.parts, right.parts, strict=True)])


def _in_any_order(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    return _matched(left.parts, right.parts, formulas)


def _list_against_value(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    """Correct where all entries are the value: 1/2 or 0.5."""
    outcomes = [_compare(part, right.text, formulas) for part in left.parts[:MOST_PARTS]]
    if None in outcomes:
        return None
    verdicts = {outcome[0] for outcome in outcomes if outcome}
    if verdicts == {"correct"} and len(left.parts) <= MOST_PARTS:
        return "correct", "same_values"
    # A formula may stand for several values, and 100,200 for two.
    several = math_notation.letters(right.text) or "{,}" in right.text
    return ("wrong", "other_count") if "wrong" in verdicts and not several else ("unknown", "not_comparable")


def _matched(left: Sequence[str], right: Sequence[str], formulas: Formulas) -> Outcome | None:
    """Correct if each value has its equal; wrong if one surely has none."""
    texts = [math_notation.normalize(part) for part in left], [math_notation.normalize(part) for part in right]
    rest, unmatched = list(zip(texts[1], right, strict=True)), []
    for text, part in zip(texts[0], left, strict=True):
        same = next((index for index, (other, _) in enumerate(rest) if other == text), None)
        unmatched.append((text, part)) if same is None else rest.pop(same)
    if max(len(unmatched), len(rest)) > MOST_PARTS:
        return "unknown", "too_long"
    table = {(a, b): _compare(a[1], b[1], formulas) for a in unmatched for b in rest}
    if None in table.values():
        return None
    for pair, outcome in table.items():
        if outcome is not None and outcome[0] == "correct" and pair[0] in unmatched and pair[1] in rest:
            unmatched.remove(pair[0])
            rest.remove(pair[1])
    if not unmatched and not rest:
        return "correct", "same_values"
    reason = "other_value" if len(left) == len(right) else "other_count"
    doubtful = {one for pair, outcome in table.items() if outcome is not None and outcome[0] != "wrong" for one in pair}
    repeated = {one for one in unmatched if one[0] in texts[1]} | {one for one in rest if one[0] in texts[0]}
    # One left over that is written nowhere else, and equals none.
    certain = {*unmatched, *rest} - doubtful - repeated
    return "wrong" if certain else "unknown", reason


def _list_against_tuple(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    outcome = _in_order(left, right, formulas)
    return ("unknown", "tuple_against_list") if outcome and outcome[0] != "correct" else outcome


# Names and equations.


def _named(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    values = dict(zip(left.names, left.parts, strict=True)), dict(zip(right.names, right.parts, strict=True))
    if values[0].keys() == values[1].keys():
        outcome = _all([_compare(value, values[1][name], formulas) for name, value in values[0].items()])
        if outcome and outcome[0] == "wrong" and all(re.match(r"x_\{?\d", name) for name in left.names):
            matched = _matched(left.parts, right.parts, formulas)  # Which solution is the first?
            return matched and ("unknown" if matched[0] == "correct" else matched[0], matched[1])
        return outcome
    if len(left.names) == len(right.names) == 1 and all(map(math_notation.letters, left.parts + right.parts)):
        return formulas(left.text, right.text)  # y = 2x and x = y/2.
    return "unknown", "other_names"


def _named_against_tuple(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    """(1, 2) is x = 1, y = 2, in the order of the letters."""
    order = sorted(range(len(left.names)), key=left.names.__getitem__)
    if order != sorted(order) and not set(left.names) <= {"x", "y", "z"}:
        return "unknown", "names_missing"
    return _in_order(left._replace(parts=tuple(left.parts[index] for index in order)), right, formulas)


def _named_against_values(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    """Values without their names: they may be wrong, but who can tell which belongs to which."""
    values = right.parts or (right.text,)
    if len(values) == len(left.parts) and all("_" in name for name in left.names):
        outcome = _in_order(left, right, formulas)
        if outcome is None or outcome[0] == "correct":
            return outcome
    table = [_compare(a, b, formulas) for a in left.parts for b in values]
    if None in table:
        return None
    return "wrong" if all(outcome and outcome[0] == "wrong" for outcome in table) else "unknown", "names_missing"


def _equations(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    return formulas(left.text, right.text)


def _equation_against_value(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    """An equation is none of its sides, unless all are numbers and equal: 2 + 3 = 5."""
    if not any(map(math_notation.letters, left.parts)) and len(set(left.parts)) > 1:
        outcomes = [_compare(side, right.text, formulas) for side in left.parts]
        if None in outcomes or all(outcome and outcome[0] == "correct" for outcome in outcomes):
            return _all(outcomes)
    return "unknown", "equation_against_value"


# Regions, ratios, times.


def _regions(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    """Inequalities against inequalities or intervals."""
    if right.kind not in ("inequality", "tuple") and not _REGION.search(right.text):
        return "unknown", "not_comparable"
    if any(form.kind == "inequality" and not math_notation.letters(form.text) for form in (left, right)):
        return "unknown", "not_a_formula"
    if len(left.parts) > 1 or (right.kind == "inequality" and len(right.parts) > 1):
        outcome = _in_any_order(left, right, formulas) if right.kind == "inequality" else ("unknown", "not_comparable")
        return outcome if outcome is None or outcome[0] == "correct" else ("unknown", outcome[1])
    return formulas(left.text, right.text)


def _ratios(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    """a : b : c are the quotients a/b and b/c."""
    if len(left.parts) != len(right.parts):
        return "unknown", "other_count"
    quotients = (
        [rf"\frac{{{a}}}{{{b}}}" for a, b in zip(form.parts, form.parts[1:], strict=False)] for form in (left, right)
    )
    return _all([_compare_values(a, b, formulas) for a, b in zip(*quotients, strict=True)])


def _ratio_against_value(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    if len(left.parts) != 2 or re.fullmatch(r"-?\d+", right.text):  # 2 : 1 is hardly 2.
        return "unknown", "not_comparable"
    return _compare_values(rf"\frac{{{left.parts[0]}}}{{{left.parts[1]}}}", right.text, formulas)


def _ranges(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    outcome = _in_order(left, right, formulas)
    return ("unknown", "not_comparable") if outcome and outcome[0] == "wrong" else outcome


def _clocks(left: Form, right: Form, formulas: Formulas) -> Outcome:
    """Times of day; 12:30 may be a ratio as well."""
    times = [_time(form) for form in (left, right)]
    if times[0] & times[1]:
        sure = times[0] == times[1] or "".join(left.parts[3:] + right.parts[3:])  # 3:00 may be 15:00.
        return ("correct", "same_time") if sure else ("unknown", "ambiguous_notation")
    ratios = [Fraction(int(form.parts[0]), int(form.parts[1] or 0) or 61) for form in (left, right)]
    plain = not any("".join(form.parts[2:]) for form in (left, right))
    return ("unknown", "ambiguous_notation") if plain and ratios[0] == ratios[1] else ("wrong", "other_time")


def _time(form: Form) -> set[int]:
    """The seconds since midnight that a time may stand for."""
    hour, minute, second, half = form.parts
    start = int(minute) * 60 + int(second or 0)
    if half:
        return {start + (int(hour) % 12 + (12 if half == "p" else 0)) * 3600}
    hours = {int(hour) % 24} if int(hour) > 12 or hour == "00" else {int(hour) % 12, int(hour) % 12 + 12}
    return {start + hour * 3600 for hour in hours}


def _clock_against_ratio(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    """Wrong if it is as a ratio, too."""
    outcome = _ratios(left._replace(parts=left.parts[:2]), right, formulas)
    return ("unknown", "not_comparable") if outcome and outcome[0] == "correct" else outcome


# Values.


def _values(left: Form, right: Form, formulas: Formulas) -> Outcome | None:
    return _compare_values(left.text, right.text, formulas)


def _compare_values(gold: str, found: str, formulas: Formulas) -> Outcome | None:
    """Numbers, quantities, formulas."""
    if _SUBSCRIPT.findall(gold) != _SUBSCRIPT.findall(found):
        return "unknown", "other_subscripts"
    (left, unit), (right, other) = math_notation.split_unit(gold), math_notation.split_unit(found)
    same = math_notation.normalize(left) == math_notation.normalize(right)
    decided: Outcome | None = ("correct", "same_text") if same else compare_numbers(left, right)
    if unit == other:
        return decided or _compare_formulas(left, right, formulas)
    if {unit, other} in ({"°", ""}, {"°", "radian"}, {"°", "rad"}) and (
        not decided or decided[0] != "correct" or (unit and other)
    ):
        return _compare_angles((left, unit), (right, other), formulas)
    measured = _compare_measures(left, unit, right, other)
    if measured is not None:
        return measured
    # 18 dollars are 1800 cents, 5 m may be a product, and 2 dozen are not 2.
    only = unit or other
    if (unit and other) or re.fullmatch("[a-z][23]?", only) or only.startswith("dozen"):
        return "unknown", "other_units"
    if decided and decided[0] == "wrong" and only not in _SIGNS:
        return "unknown", "other_units"
    return decided or ("unknown", "other_units")


def _compare_formulas(gold: str, found: str, formulas: Formulas) -> Outcome | None:
    if _unreadable(gold, found):
        return "unknown", "not_a_formula"
    letters = math_notation.letters(gold) | math_notation.letters(found)
    if len({letter.lower() for letter in letters}) < len(letters):  # The parser reads N as n.
        return "unknown", "other_variables"
    return formulas(gold, found)


def _compare_angles(gold: tuple[str, str], found: tuple[str, str], formulas: Formulas) -> Outcome | None:
    """Degrees against a number that may be meant in degrees or radians."""
    (degrees, _), (number, unit) = (gold, found) if gold[1] == "°" else (found, gold)
    if "\\pi" in number:
        return _compare_formulas(rf"\frac{{({degrees})\pi}}{{180}}", number, formulas)
    left, right = math_notation.rational(degrees), math_notation.rational(number)
    if unit or left is None or right is None:
        return "unknown", "degrees_against_number"
    near = abs(float(left) * pi / 180 - float(right)) <= abs(float(right)) / 100
    return ("unknown", "degrees_against_number") if near else ("wrong", "other_number")


def _compare_measures(gold: str, unit: str, found: str, other: str) -> Outcome | None:
    """Two quantities in different units of the same kind."""
    left, right = math_notation.rational(gold), math_notation.rational(found)
    sizes = math_units.measure(unit), math_units.measure(other)
    if left is None or right is None or sizes[0] is None or sizes[1] is None or sizes[0][0] != sizes[1][0]:
        return None
    left, right = left * sizes[0][1], right * sizes[1][1]
    if left == right:
        return "correct", "same_quantity"
    near = abs(left - right) <= max(abs(left), abs(right)) / 100  # 5 miles are 8.05 km.
    return ("unknown", "rounded") if near else ("wrong", "other_quantity")


def compare_numbers(gold: str, found: str) -> Outcome | None:
    left, right = math_notation.rational(gold), math_notation.rational(found)
    if left is None or right is None:
        return None
    percent = math_notation.is_percentage(gold), math_notation.is_percentage(found)
    if percent[0] != percent[1]:
        share, number = (left / 100, right) if percent[0] else (right / 100, left)
        if share == number:
            return "correct", "same_percentage"
        if share * 100 == number:  # The sign was left out, unless the number is a share: 0.5 is not 0.5 %.
            return ("correct", "same_number") if abs(number) > 1 else ("unknown", "share_or_percentage")
    elif left == right:
        return "correct", "same_number"
    if _is_rounding(found, right, left) or _is_rounding(gold, left, right):
        return "unknown", "rounded"
    return "wrong", "other_number"


def _is_rounding(text: str, rounded: Fraction, exact: Fraction) -> bool:
    """Whether `text`, of the value `rounded`, is `exact` cut or rounded to its decimals."""
    decimals = math_notation.decimals(text)
    return decimals >= 1 and abs(rounded - exact) < Fraction(1, 10**decimals)


def _unreadable(*answers: str) -> bool:
    """Whether Math-Verify would read only some part: prose, numbers side by side, or names of points as products."""
    return any(
        _GEOMETRY.search(answer)
        or _DOTS.search(answer)
        or math_notation.is_prose(answer)
        or (math_notation.rational(answer) is None and re.search(r"(?<![_^\d])\d+ \d", math_notation.normalize(answer)))
        for answer in answers
    )


# Words.


def _compare_truth(gold: str, found: str) -> Outcome | None:
    """Yes or true against no or false."""
    left, right = (_TRUTH.get(math_notation.normalize(answer).lower()) for answer in (gold, found))
    return ("wrong", "other_words") if left is not None and right is not None and left != right else None


def _compare_choices(gold: str, found: str) -> Outcome | None:
    """A letter of a multiple choice against a letter, with or without the text of the choice."""
    left, right = math_notation.choice(gold), math_notation.choice(found)
    if left and right:
        # Two bare letters may be variables, but different variables are different answers, too.
        return ("correct", "same_choice") if left[0] == right[0] else ("wrong", "other_choice")
    if not left and not right:
        return None
    (_, text), other = (left, found) if left else (right, gold)  # type: ignore[misc]
    if text and math_notation.normalize(text) == math_notation.normalize(other):
        return "correct", "same_text"
    return "unknown", "choice_against_answer"


def _compare_words(gold: str, found: str) -> Outcome | None:
    left, right = math_notation.words(gold), math_notation.words(found)
    if left is None and right is None:
        return None
    if left is None or right is None:
        return "unknown", "words_against_formula"
    if left.replace(" ", "") == right.replace(" ", ""):
        return "correct", "same_words"
    # Words of the same letters may be products, abc and cba; others may say the same: no solution, none.
    comparable = " " not in left + right and not {left, right} & _WITH_SYNONYMS
    alike = sorted(left) == sorted(right) or left.startswith(right) or right.startswith(left)
    return ("wrong" if comparable and not alike else "unknown"), "other_words"


_RULES: Mapping[tuple[Kind, Kind], _Rule] = MappingProxyType(
    {
        ("list", "list"): _in_any_order,
        ("list", "set"): _in_any_order,
        ("set", "set"): _in_any_order,
        ("list", "value"): _list_against_value,
        ("set", "value"): _list_against_value,
        ("tuple", "tuple"): _in_order,
        ("list", "tuple"): _list_against_tuple,
        ("named", "named"): _named,
        ("named", "tuple"): _named_against_tuple,
        ("named", "list"): _named_against_values,
        ("named", "set"): _named_against_values,
        ("named", "value"): _named_against_values,
        ("equation", "equation"): _equations,
        ("named", "equation"): _equations,
        ("equation", "value"): _equation_against_value,
        ("inequality", "inequality"): _regions,
        ("inequality", "tuple"): _regions,
        ("inequality", "value"): _regions,
        ("tuple", "value"): _equations,
        ("ratio", "ratio"): _ratios,
        ("ratio", "value"): _ratio_against_value,
        ("range", "range"): _ranges,
        ("clock", "clock"): _clocks,
        ("clock", "ratio"): _clock_against_ratio,
        ("value", "value"): _values,
    }
)
"""How two kinds are compared; those that are not here are not."""
