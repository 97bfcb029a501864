"""Final answers in mathematical text: finding them, and reading them as exact numbers where possible."""

import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal, NamedTuple

# An optional sign and currency, then a mixed number, or digits with or without thousands separators, a decimal part,
# an exponent, a denominator, a percent sign. A sign after a number is an operator.
_NUMBER = (
    r"(?:(?<!\d )(?<![\d)}])[-+−]\s?)?(?:\\?[$£€]\s?[-+−]?)?"
    r"(?:\d+ \d+/\d+|(?:(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!)\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d{1,3})?(?:\s?/\s?\d+)?(?:\s?\\?%)?)"
)
_CLEAN_NUMBER = re.compile(
    r"(?<![\^_{\\*/+a-zA-Z\d.])" + _NUMBER + r"(?![\^({_a-zA-Z\d]|\s?[+*/×]|\s?\\[a-zA-Z])"
)  # Alone, no part of a formula.
_ANY_NUMBER = re.compile(_NUMBER)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_LINE = re.compile(
    r"^[ \t]*\**(?:A|(?:[Ff]inal )?[Aa]nswer|Final Answer|答案)\**[ \t]*[::]\**[ \t]*(\S.*)$", re.MULTILINE
)
_PHRASE = re.compile(r"(?:answer[ \t]+(?:is|would[ \t]+be)|答案(?:是|为))[ \t]*[::]?[ \t]*(\S.*)$", re.M | re.I)
_FORMULA = re.compile(r"(?:\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\])(?!\d)")
_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname|mathit)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[,;: ]|\\quad|\\qquad|~")
_NOTHING = re.compile(r"\\!|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle")
_DEGREES = re.compile(r"(?<=[\d}])(?:\^\{?\\circ\}?|\\degree|°)$")
_BOXES = re.compile(r"\\f?boxed\s*(\{)|\\.|[{}]", re.DOTALL)
_FUNCTIONS = r"(?:sin|cos|tan|cot|sec|csc|log|exp|mod|sqrt|and|for|with|times|plus|minus|over)\b"
_UNIT = re.compile(
    r"(?<=[\d})%])(?:\s*\\(?:text|textrm|mathrm|mbox)\s*\{\s*([^{}]+?)\s*\}|"
    r"\s+((?:(?!" + _FUNCTIONS + r")(?:[A-Za-z]{3,}|[kcm]?m|[mk]?g|[hLs]|m[lL]|ft|in|mi|lbs?|oz|hrs?|of|sq)\.?"
    r"(?:[ /]|$))+)"
    r"|([\u4e00-\u9fff]{1,4}))"
    r"\s*(?:\^\s*\{?([23])\}?)?$"
)  # fmt: skip


class Found(NamedTuple):
    """A final answer. `trust` decides whether a mismatch means a wrong answer or, perhaps, a misread text."""

    answer: str
    trust: Literal["stated", "only", "guess"]
    """In a box or after a marker or phrase; the only number in the text; or one number among several."""


def extract(text: str, *, marked_only: bool = False) -> Found | None:
    """The final answer that a text states, as it is written there; None where it states none.

    Args:
      text: a worked solution.
      marked_only: take only explicit forms (`\\boxed{}`, `####`, `A:`), not phrases or the last number.

    >>> extract(r"so \\boxed{1} + \\boxed{\\frac{1}{2}} holds").answer
    '\\\\frac{1}{2}'
    >>> extract("He has 3 left, and 4 are gone.\\n#### 3")
    Found(answer='3', trust='stated')
    >>> extract("There are 3 left, and 4 are gone.")
    Found(answer='4', trust='guess')
    """
    boxed = _last_boxed(text)
    if boxed is not None:
        return Found(boxed, "stated") if boxed else None
    hashes = _HASHES.findall(text)
    if hashes:
        return _statement(hashes[-1])
    marks = list(_LINE.finditer(text)) + ([] if marked_only else list(_PHRASE.finditer(text)))
    if marks:
        return _statement(max(marks, key=lambda match: match.start(1))[1])
    return None if marked_only else _number_in(text)


def _statement(text: str) -> Found | None:
    """The answer in the text after a marker: the text itself if a formula, number or word, else the number in it."""
    if formula := _FORMULA.match(text):
        return Found(next(group for group in formula.groups() if group is not None).strip(), "stated")
    sentence = _trim(re.split(r"[.!?](?=\s|\**$)|[。!?]", text, maxsplit=1)[0])
    if not sentence:
        return None
    return (_number_in(sentence) or Found(sentence, "guess")) if is_prose(sentence) else Found(sentence, "stated")


def _number_in(text: str) -> Found | None:
    """The last number, unless it is part of a formula."""
    text = re.sub(r"\*\*(?!\d)|(?<!\d)\*\*", "", text)
    numbers, clean = list(_ANY_NUMBER.finditer(text)), list(_CLEAN_NUMBER.finditer(text))
    if not clean or clean[-1].end() != numbers[-1].end():
        return None
    alone = len({normalize(number.group()) for number in numbers}) == 1
    return Found(clean[-1].group().strip(), "only" if alone else "guess")


def _last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{...}` or `\\fbox{...}` whose braces balance."""
    opened: list[tuple[int, bool]] = []
    last: tuple[int, int] | None = None
    for match in _BOXES.finditer(text):
        token = match.group()
        if token.endswith("{") and not token.startswith("\\{"):
            opened.append((match.end(), match.group(1) is not None))
        elif token == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (last is None or start > last[0]):
                last = start, match.start()
    return None if last is None else text[slice(*last)].strip()


def _trim(answer: str) -> str:
    answer = answer.strip().strip("*").rstrip(".。").strip()
    formula = _FORMULA.fullmatch(answer)
    return next(group for group in formula.groups() if group is not None).strip() if formula else answer


def normalize(answer: str) -> str:
    """Text that is equal for answers that differ in typography alone: spacing, wrappers, degree sign, letter brackets.

    A space between digits stays, unless it groups thousands.

    >>> normalize(r"\\textbf{(A)}"), normalize(r"1\\,000"), normalize(r"\\dfrac12"), normalize("3 1/2")
    ('A', '1000', '\\\\frac12', '3 1/2')
    """
    answer = _unwrapped(answer)
    answer = answer.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("−", "-").replace("{,}", ",")
    answer = re.sub(r"(?<![\d,.] )(?<![\d,.])\d{1,3}(?:[ ,]\d{3})+(?![\d,]| \d)", _joined, answer)
    answer = re.sub(r"(?<!\d) | (?!\d)", "", answer).rstrip(".")
    answer = re.sub(r"_\{(\w)\}", r"_\1", _DEGREES.sub("", answer))
    letter = re.fullmatch(r"\(?([A-Z])\)?", answer)
    return letter.group(1) if letter else answer


def _joined(number: re.Match[str]) -> str:
    return re.sub("[ ,]", "", number.group())


def _unwrapped(answer: str) -> str:
    """Without dollar signs, spacing commands and `\\text{}`; single spaces."""
    answer = _NOTHING.sub("", _SPACES.sub(" ", answer.strip().strip("$")))
    previous = None
    while previous != answer:
        previous, answer = answer, _WRAPPERS.sub(r"\1", answer)
    return " ".join(answer.split())


_PHRASES = {
    **dict.fromkeys(
        ["no solution", "no solutions", "no real solution", "no real solutions", "empty set"], r"\emptyset"
    ),
    **dict.fromkeys(["infinity", "positive infinity"], r"\infty"),
    "negative infinity": r"-\infty",
    **dict.fromkeys(["all real numbers", "all reals"], r"\mathbb{R}"),
    **{
        word: str(number)
        for number, word in enumerate(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
        )
    },
}
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_TEXT_WORD = re.compile(
    r"(?:(?<!\\)\\ )?\\(?:text|textrm|mathrm|mbox)\s*\{\s*(and|or|percent|"
    + "|".join(_POWERS)
    + r")\b\s*([^{}]*?)\s*\}"
)
_POWER_WORD = re.compile(r"(?<=\d)\s*\b(" + "|".join(_POWERS) + r")\b")
_CONJUNCTION = re.compile(r"(?<![A-Za-z]{2})(?<!\s)\s*(?:,\s*|\b)(?:and|or)\b(?!\s*[A-Za-z]{2})\s*")
_DESCRIBED = re.compile(r"\\\{\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|\||:)([^{}|:]+)\\\}")  # {x | x > 2}
_INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:[gl]eq?q?|[gl]t|neq?|[gl]eqslant)(?![a-zA-Z])")


def in_symbols(answer: str) -> str:
    """The answer with symbols in place of words that have one: numbers, powers of ten, percent, lists, the empty set.

    >>> in_symbols(r"1.5\\text{ million dollars}"), in_symbols(r"\\text{no solution}"), in_symbols(r"2 \\text{ or } 3")
    ('1.5\\\\times10^{6} \\\\text{dollars}', '\\\\emptyset', '2, 3')
    """
    answer = re.sub(r"^\s*[–—−]\s*", "-", answer)
    answer = _FORMULA.sub(lambda match: next(group for group in match.groups() if group is not None), answer)
    answer = answer.replace("\\langle", "(").replace("\\rangle", ")")
    if described := _DESCRIBED.fullmatch(bare(answer)):
        return described[1]
    phrase = _unwrapped(answer).rstrip(".").lower()
    if (symbol := _PHRASES.get(re.sub(r"^(?:the|an?) ", "", phrase))) is not None:
        return symbol
    answer = _TEXT_WORD.sub(lambda match: f" {match[1]} " + (f"\\text{{{match[2]}}}" if match[2] else ""), answer)
    answer = re.sub(r"(?<=\d)\s*\bpercent\b", r"\\%", answer)
    answer = _POWER_WORD.sub(lambda match: rf"\times10^{{{_POWERS[match[1]]}}}", answer)
    # "x > 2 and x < 5" is one interval, "x = 2 and x = 5" are two answers.
    return (answer if _INEQUALITY.search(answer) else _CONJUNCTION.sub(", ", answer)).strip()


def bare(answer: str) -> str:
    """Without the dollar signs around it and without `\\left` and `\\right`."""
    return _NOTHING.sub("", answer.strip().strip("$")).strip()


def is_tuple(answer: str) -> bool:
    """Whether it is several values in one pair of parentheses.

    >>> is_tuple(r"\\left(1, 2\\right)"), is_tuple("(0,1) + (1,2)"), is_tuple("(x+1)"), is_tuple("1, 2")
    (True, False, False, False)
    """
    text = bare(answer)
    return text.startswith("(") and text.endswith(")") and len(_items(text[1:-1])) > 1


def named_values(answer: str) -> dict[str, str]:
    """The values of `x = 2, y = -1` by letter, in the letters' order; empty for anything else.

    >>> named_values("y = -1, x = 2"), named_values("2, -1")
    ({'x': '2', 'y': '-1'}, {})
    """
    found = [re.fullmatch(r"\s*([a-zA-Z])\s*=([^=]+)", item) for item in _items(bare(answer))]
    values = {match[1]: match[2].strip() for match in found if match}
    return dict(sorted(values.items())) if 1 < len(values) == len(found) else {}


def as_tuple(values: Iterable[str]) -> str:
    return f"({', '.join(values)})"


def _items(text: str) -> list[str]:
    """The parts between commas outside of all brackets; none where brackets do not balance."""
    items, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            return []
        if letter == "," and depth == 0:
            items.append(text[start:position])
            start = position + 1
    return [] if depth else [*items, text[start:]]


def words(answer: str) -> str | None:
    """The answer in lower case if it is words of a language and no formula.

    >>> words("\\\\text{Evelyn}"), words("seven  apples"), words("xy"), words(r"\\sqrt{2}")
    ('evelyn', 'seven apples', None, None)
    """
    text = re.sub(r"^(?:the|an?) ", "", _unwrapped(answer).rstrip(".").lower())
    return text if re.fullmatch(r"[^\W\d_]+(?: [^\W\d_]+)*", text) and re.search(r"[^\W\d_]{3}", text) else None


def is_prose(answer: str) -> bool:
    """Whether it is a sentence, or a number within words, rather than a formula, a word, or a number with its unit."""
    text = re.sub(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+", " ", _unwrapped(split_unit(answer)[0]))
    found = re.findall(r"[^\W\d_]{3,}", text)
    return len(found) >= 2 or bool(found and re.search(r"\d", text))


def split_unit(answer: str) -> tuple[str, str]:
    """(the answer, the unit behind it, singular, "" if there is none).

    >>> split_unit("18 dollars"), split_unit(r"5\\text{ km}"), split_unit("x+1")
    (('18', 'dollar'), ('5', 'km'), ('x+1', ''))
    """
    answer = answer.strip().strip("$").strip()
    match = _UNIT.search(answer)
    if not match:
        return answer, ""
    unit = next(group for group in match.groups()[:3] if group is not None).strip(" .").lower()
    singular = re.sub(r"(?<=..)(?:(?<=inch)e)?s$", "", unit)
    return answer[: match.start()].strip(), singular + (match.group(4) or "")


def choice(answer: str) -> tuple[str, str] | None:
    """(letter, text) of an answer to a multiple choice: `B`, `(B)`, `(B) 5`, `B. 5`.

    >>> choice("B"), choice("(B) 5"), choice("(x) 5")
    (('B', ''), ('B', '5'), None)
    """
    text = re.sub(r"^(?:option|choice|answer) (?=\W?[A-H]\b)", "", _unwrapped(answer), flags=re.IGNORECASE)
    match = re.fullmatch(r"\(?([A-H])\)?|(?:\(([A-H])\)|([A-H])[).:]) ?([\w$\\].*)", text)
    return (match[1] or match[2] or match[3], match[4] or "") if match else None


_FRACTION = re.compile(r"([-+]?)\\frac(?:\{([-+]?[\d.]+)\}\{([-+]?[\d.]+)\}|(\d)(\d))")
_MIXED = re.compile(r"([-+]?)(\d+)(?:\\frac(?:\{(\d+)\}\{(\d+)\}|(\d)(\d))| (\d+)/(\d+))")
_RATIO = re.compile(r"([-+]?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")
_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\{?|\()(\d+)[})]?")
_SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)(?:\\times|\\cdot|\*|×)10\^\{?([-+]?\d{1,4})\}?")


def rational(answer: str) -> Fraction | None:
    """The exact value of an answer that is one rational number; a currency or percent sign is set aside.

    >>> rational("$1,234.50"), rational(r"-\\frac{3}{6}"), rational("3 1/2"), rational("1e6"), rational("x+1")
    (Fraction(2469, 2), Fraction(-1, 2), Fraction(7, 2), Fraction(1000000, 1), None)
    >>> rational(r"0.1\\overline{6}")
    Fraction(1, 6)
    """
    text = normalize(answer).replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "")
    text = re.sub(r"^([-+]?)[£€]", r"\1", text)
    text = re.sub(r"^[a-zA-Z]=", "", text)
    try:
        if match := _MIXED.fullmatch(text):
            sign, whole, *parts = match.groups()
            top, bottom = (part for part in parts if part is not None)
            return (-1 if sign == "-" else 1) * (int(whole) + Fraction(int(top), int(bottom)))
        if match := _FRACTION.fullmatch(text):
            sign, *parts = match.groups()
            top, bottom = (part for part in parts if part is not None)
            return (-1 if sign == "-" else 1) * Fraction(top) / Fraction(bottom)
        if match := _RATIO.fullmatch(text):
            return Fraction(match.group(1)) / Fraction(match.group(2))
        if match := _REPEATING.fullmatch(text):
            sign, whole, fixed, period = match.groups()
            digits = int(f"{whole}{fixed}{period}") - int(f"0{whole}{fixed}")
            return (-1 if sign == "-" else 1) * Fraction(digits, 10 ** len(fixed) * (10 ** len(period) - 1))
        if match := _SCIENTIFIC.fullmatch(text):
            return Fraction(match.group(1)) * Fraction(10) ** int(match.group(2))
        return Fraction(text) if _DECIMAL.fullmatch(text) else None
    except (ValueError, ZeroDivisionError):
        return None


def is_percentage(answer: str) -> bool:
    return answer.rstrip(" $").endswith("%")


def decimals(answer: str) -> int:
    """Digits after the point of a decimal number; 0 for anything else."""
    match = re.search(r"\.(\d+)", normalize(answer))
    return len(match.group(1)) if match and "/" not in answer and "frac" not in answer else 0
