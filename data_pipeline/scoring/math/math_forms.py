"""What kind of thing an answer is: a value, an equation, a list, a time of day, ...; only some kinds can be equal.

`x = 3` is a name with its value, `x + y = 3` an equation, which no number equals; `3:4` is a ratio and `3:15` may be a
time; `2, 3` are two values, and so is `\\pm 2`. Values themselves are not read here.
"""

import re
from typing import Literal, NamedTuple

from data_pipeline.scoring.math.math_notation import INEQUALITY, letters, normalize

Kind = Literal[
    "clock", "equation", "inequality", "list", "named", "range", "ratio", "set", "tuple", "value"
]  # fmt: skip


class Form(NamedTuple):
    kind: Kind
    text: str
    """All of the answer."""
    parts: tuple[str, ...] = ()
    """Values of a list, set, tuple, ratio, range or of names; sides of an equation; hour, minute, second, a or p."""
    names: tuple[str, ...] = ()
    """Of `parts`, for the kind `named`, all different."""


_GREEK = (
    r"\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|varphi|omega|Delta|Omega)"
)
_LETTER = rf"(?:[a-zA-Z]|{_GREEK}(?![a-zA-Z]))(?:_(?:\{{[^{{}}]*\}}|\w))?'{{0,2}}"
# A letter before parentheses is a function if it usually is one: x(x+1) = 6 is an equation.
_NAME = re.compile(
    rf"(?:{_LETTER}|[fghFGHPE](?:_\w)?'{{0,2}}\([^()]*\)|[uvspqSVT]\([txn\d]+\)|\\text\s*\{{[^{{}}]*\}}|[A-Z][a-z]{{2,}}"
    r"|m?\\(?:angle|triangle)\s*[A-Z]{1,3}|\\overline\{[A-Z]{2}\}|\|[A-Z]{2}\|"
    r"|[a-zA-Z](?:\s*:\s*[a-zA-Z])+)"
)
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d))?(?:([ap])\.?m\.?)?", re.IGNORECASE)
_NUMBER = r"\d+(?:\.\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\s*(-+|–|—)\s*({_NUMBER})|((?:(?!\bto\b).)+?)\s*\b(to)\b\s*((?:(?!\bto\b).)+)")
_CASES = re.compile(r"\\begin\{(?:cases|array|aligned)\}(?:\{\w*\})?(.*)\\end\{(?:cases|array|aligned)\}", re.DOTALL)


def read(answer: str) -> Form:
    """The kind and the parts of an answer.

    Args:
      answer: one that `math_notation.in_symbols` returned.

    >>> read("x=3")
    Form(kind='named', text='x=3', parts=('3',), names=('x',))
    >>> read("x+y=3").kind, read("x=y").kind, read("2, 3").kind, read("(1,2)").kind, read("[1,2)").kind
    ('equation', 'equation', 'list', 'tuple', 'value')
    >>> read(r"x=1\\pm\\sqrt2").parts
    ('1+\\\\sqrt2', '1-\\\\sqrt2')
    """
    if (clock := _CLOCK.fullmatch(normalize(answer))) and int(clock[1]) <= 24:
        return Form("clock", answer, tuple((part or "").lower() for part in clock.groups()))
    if cases := _CASES.fullmatch(answer):
        answer = ", ".join(line.replace("&", "").strip(" ,;") for line in re.split(r"\\\\", cases[1]) if line.strip())
    outer = _outer(answer)
    if outer is None:
        return Form("value", answer)
    if INEQUALITY.search(outer):
        return Form("inequality", answer, tuple(_split(answer, outer, "[,;]")))
    items = [one for item in _split(answer, outer, "[,;]") for one in both_signs(item)]
    if len(items) > 1:
        return _several(answer, items)
    if enclosed := _enclosed(answer):
        return enclosed
    sides = _split(answer, outer, "=")
    if len(sides) > 1:
        return _named_point(answer, sides) or _named_value(answer, sides) or Form("equation", answer, tuple(sides))
    if member := re.fullmatch(r"([a-zA-Z])\s*\\in(?![a-zA-Z])\s*(.+)", answer):
        return Form("named", answer, (member[2],), (member[1],))
    return _of_two_numbers(answer, outer)


def _several(answer: str, items: list[str]) -> Form:
    """A list, or names with their values: `x = 1, y = 2`. `x = 1, x = 2` and `x = 1, 2` are lists of two values."""
    sides = [_split(item, _outer(item) or item, "=") for item in items]
    names = [_name(each) if len(each) > 1 else None for each in sides]
    found = [name for name in names if name]
    values = tuple(each[-1] if name else item for each, name, item in zip(sides, names, items, strict=True))
    if len(found) == len(items) == len(set(found)):
        return Form("named", answer, values, tuple(found))
    if len(set(found)) == 1 and (len(found) == len(items) or names[0]):
        return Form("list", answer, values)
    return Form("list", answer, tuple(items))


def _enclosed(answer: str) -> Form | None:
    """A set in braces, or several values in parentheses."""
    if answer.startswith("\\{") and answer.endswith("\\}"):
        kind, inner = "set", answer[2:-2].strip()
    elif answer.startswith("(") and answer.endswith(")"):
        kind, inner = "tuple", answer[1:-1].strip()
    else:
        return None
    outer = _outer(inner)
    if not inner or outer is None:
        return None
    items = _split(inner, outer, "[,;]")
    if kind == "tuple":
        return Form("tuple", answer, tuple(items)) if len(items) > 1 else None
    return Form("set", answer, tuple(one for item in items for one in both_signs(item)))


def _of_two_numbers(answer: str, outer: str) -> Form:
    parts = _split(answer, outer, ":")
    if len(parts) > 1 and all(parts):
        return Form("ratio", answer, tuple(parts))
    if match := _RANGE.fullmatch(answer):
        low, sign, high = (match[index] or match[index + 3] for index in (1, 2, 3))
        # 5 - 3 is a difference, 3 - 5 is rather "from 3 to 5".
        if sign == "to" or float(low) < float(high):
            return Form("range", answer, (low, high))
    return Form("value", answer)


def _named_value(answer: str, sides: list[str]) -> Form | None:
    name = _name(sides)
    return Form("named", answer, (sides[-1],), (name,)) if name else None


def _named_point(answer: str, sides: list[str]) -> Form | None:
    """(x, y) = (1, 2)"""
    points = [_enclosed(side) for side in sides]
    if len(points) != 2 or not points[0] or not points[1] or {point.kind for point in points if point} != {"tuple"}:
        return None
    names, values = points[0].parts, points[1].parts
    named = len(names) == len(values) == len(set(names)) and all(map(_NAME.fullmatch, names))
    return Form("named", answer, values, names) if named else None


def _name(sides: list[str]) -> str | None:
    """The name of a value: the left side, where it is a lone name; of `3 = x` and `S = ab = 6`, too."""
    if len(sides) == 2 and not _NAME.fullmatch(sides[0]) and _NAME.fullmatch(sides[1]) and not letters(sides[0]):
        sides.reverse()
    name, *others = (re.sub(r"\s", "", side) for side in sides)
    if not _NAME.fullmatch(name):
        return None
    if any(re.fullmatch(_LETTER, other) and other not in ("e", "i") for other in others):
        return None  # x = y is a line.
    function = re.match(r"\w(?=[_'(])", name)
    own = {function[0]} if function else letters(name)
    return None if own & letters(others[-1]) else name  # x = 2x + 1 gives no x.


def both_signs(item: str) -> list[str]:
    """`a \\pm b` as `a + b` and `a - b`."""
    signs = re.findall(r"\\(pm|mp)(?![a-zA-Z])\s*", item)
    if not signs or (len(signs) > 1 and len(set(signs)) == 1):  # Two signs of one kind need not go together.
        return [item]
    found = []
    for plus, minus in (("pm", "mp"), ("mp", "pm")):
        text = re.sub(rf"\\{plus}(?![a-zA-Z])\s*", "+", re.sub(rf"\\{minus}(?![a-zA-Z])\s*", "-", item))
        found.append(re.sub(r"(^|[=(,{])\s*\+", r"\1", text))
    return found


def _outer(text: str) -> str | None:
    """The text with blanks for what brackets enclose, of the same length; None where they do not balance."""
    found, depth = [], 0
    for letter in text:
        depth -= letter in ")]}"
        found.append(" " if depth else letter)
        depth += letter in "([{"
        if depth < 0:
            return None
    return None if depth else "".join(found)


def _split(text: str, outer: str, separator: str) -> list[str]:
    """The parts between separators outside of all brackets."""
    parts, start = [], 0
    for match in re.finditer(separator, outer):
        parts.append(text[start : match.start()].strip())
        start = match.end()
    return [*parts, text[start:].strip()]
