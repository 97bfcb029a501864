"""Notation of an answer: symbols in place of words, one spelling for what differs in typography alone, exact numbers.

Everything here works on text; a value that is no rational number, unit or word is left to `math_worker`.
"""

import re
from fractions import Fraction
from functools import lru_cache, partial

CACHED = 4096
"""Texts of which each function here remembers what it made: a comparison asks for the same several times."""
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
"""A formula in delimiters; one of the groups is what they hold."""
INEQUALITY = re.compile(r"[<>≤≥≠]|\\(?:[gl]eq?q?|[gl]t|neq?|[gl]eqslant)(?![a-zA-Z])")
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox|operatorname|mathit)\s*\{([^{}]*)\}"
)
_UPRIGHT = re.compile(
    r"\\(?:textrm|textnormal|textsf|mathrm|mathsf|mbox|hbox|unit|si)\s*\{(?!\s*[a-zA-Z]\s*\})|\{\\rm "
)
_SPACES = re.compile(r"\\[,;: ]|\\quad|\\qquad|~")
_THIN_SPACES = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|~|[\u00a0\u2009\u3000]")
_NOTHING = re.compile(r"\\!|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle")
_CHARACTERS: dict[int, str] = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # Full width.
    **{ord(letter): plain for letter, plain in zip("∶−’。", ":-'.", strict=True)},
    **{
        ord(letter): f"{plain} "
        for letter, plain in {"，": ",", "、": ",", "×": r"\times", "÷": r"\div", "±": r"\pm"}.items()
    },
    **{
        ord(letter): f"{plain} "
        for letter, plain in {"≤": r"\le", "≥": r"\ge", "≠": r"\ne", "π": r"\pi", "∞": r"\infty"}.items()
    },
    **{ord(letter): f"{plain} " for letter, plain in {"∪": r"\cup", "∈": r"\in", "²": "^2", "³": "^3"}.items()},
}
_EUROPEAN = (  # Beyond doubt: 1.234,5 and 1 234,5; 1.000.000; 0{,}5. A number in groups by apostrophes: 1'000.
    (
        re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+(?![\d.,])|(?<![\d.,])\d{1,3}(?: \d{3})+,\d\d?(?![\d.,])"),
        ". ",
        ",",
    ),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,])"), ".", ""),
    (re.compile(r"(?<![\d.,}])(?:0\{,\}\d+|\d+\{,\}(?:\d{1,2}|\d{4,}))(?![\d.,{])"), "{}", ","),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:'\d{3})+(?![\d'])"), "'", ""),
)
"""(pattern, what is left out, what is the decimal point)"""
_PHRASES = {
    **dict.fromkeys(
        ["no solution", "no solutions", "no real solution", "no real solutions", "empty set", "无解"], r"\emptyset"
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
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "千": 3, "万": 4, "亿": 8}
_TEXT_WORD = re.compile(
    r"\\text\s*\{\s*(and|or|to|percent|degrees?|" + "|".join(_POWERS) + r")(?![a-zA-Z])\s*([^{}]*?)\s*\}"
)
_POWER_WORD = re.compile(r"(?<=\d)\s*(?:\b(hundred|thousand|million|billion|trillion)\b|([千万亿])(?![米克瓦]))")
_CONJUNCTION = re.compile(r"(?<![A-Za-z]{2})(?<!\s)\s*(?:,\s*|\b)(?:and|or)\b(?!\s*[A-Za-z]{2})\s*")
_CHINESE_CONJUNCTION = re.compile(r"(?<=[\w)}\]])(?<![\u4e00-\u9fff])\s*,?\s*(或者?|以及|[和及与且])\s*(?=[\w\\({\[-])")
_GROUPED = re.compile(r"(?<![\d,.] )(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?![\d,]| \d)")
_DECIMAL_COMMA = re.compile(r"(?<![\d.,(\[{])(\d+),(\d+)(?![\d.,])|(?<=[(\[{])(\d+),(\d+)(?=\s*[;+*/^a-z-])")
_DESCRIBED = re.compile(r"\\\{\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|\||:)([^{}|:]+)\\\}")  # {x | x > 2}


def formula_in(match: re.Match[str]) -> str:
    """What the delimiters hold that `FORMULA` found."""
    return next(group for group in match.groups() if group is not None).strip()


@lru_cache(maxsize=CACHED)
def in_symbols(answer: str) -> str:
    """The answer with symbols in place of words and of other characters that have one, without delimiters and spacing.

    >>> in_symbols(r"1.5\\text{ million dollars}"), in_symbols(r"\\text{no solution}"), in_symbols(r"2 \\text{ or } 3")
    ('1.5\\\\times10^{6} \\\\text{dollars}', '\\\\emptyset', '2, 3')
    >>> in_symbols("x=2或x=3"), in_symbols("1.234,5"), in_symbols("１，２")
    ('x=2, x=3', '1234.5', '1, 2')
    """
    if not answer.isascii():
        answer = re.sub(r"^\s*[–—]\s*", "-", answer.translate(_CHARACTERS))
    answer = re.sub(r"\\approx(?![a-zA-Z])|≈", "=", answer).lstrip(" =")
    answer = re.sub(r"(?<!\\)\$", r"\\$", FORMULA.sub(formula_in, answer))
    answer = answer.replace("{:}", ":").replace("\\colon", ":").replace("\\langle", "(").replace("\\rangle", ")")
    answer = _NOTHING.sub("", _THIN_SPACES.sub(" ", _UPRIGHT.sub(r"\\text{", answer))).strip()
    if described := _DESCRIBED.fullmatch(answer):
        return described[1].strip()
    phrase = _unwrapped(answer).rstrip(".").lower()
    if (symbol := _PHRASES.get(re.sub(r"^(?:the|an?) ", "", phrase))) is not None:
        return symbol
    for pattern, dropped, point in _EUROPEAN:
        answer = pattern.sub(partial(_plain_number, dropped, point), answer)
    answer = _GROUPED.sub(lambda match: match[0].replace(",", "{,}"), answer)
    answer = _TEXT_WORD.sub(lambda match: f" {match[1]} " + (f"\\text{{{match[2]}}}" if match[2] else ""), answer)
    answer = re.sub(r"(?<=\d)\s*\bpercent\b", r"\\%", answer)
    answer = re.sub(r"(?<=[\d)}])\s*\b(?:degrees?)\b(?!\s*[CF\\])", r"^\\circ", answer)
    answer = _POWER_WORD.sub(lambda match: rf"\times10^{{{_POWERS[match[1] or match[2]]}}}", answer)
    if INEQUALITY.search(answer):  # "x > 2 and x < 5" is one interval, "x = 2 and x = 5" are two answers.
        return _CHINESE_CONJUNCTION.sub(lambda match: " or " if match[1][0] == "或" else " and ", answer).strip()
    return _CONJUNCTION.sub(", ", _CHINESE_CONJUNCTION.sub(", ", answer)).strip()


def _plain_number(dropped: str, point: str, number: re.Match[str]) -> str:
    kept = "".join(letter for letter in number[0] if letter not in dropped)
    return kept.replace(point, ".") if point else kept


@lru_cache(maxsize=CACHED)
def normalize(answer: str) -> str:
    """Text that is equal for answers that differ in typography alone: spacing, wrappers, letter brackets.

    A space between digits stays, unless it groups thousands.

    >>> normalize(r"\\textbf{(A)}"), normalize(r"1\\,000"), normalize(r"\\dfrac12"), normalize("3 1/2")
    ('A', '1000', '\\\\frac12', '3 1/2')
    """
    answer = _unwrapped(answer)
    answer = answer.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("−", "-").replace("{,}", ",")
    answer = re.sub(r"(?<![\d,.] )(?<![\d,.])(?!0)\d{1,3}(?:[ ,]\d{3})+(?![\d,]| \d)", _joined, answer)
    answer = re.sub(r"(?<!\d) | (?!\d)", "", answer).rstrip(".")
    answer = re.sub(r"_\{(\w)\}", r"_\1", answer)
    letter = re.fullmatch(r"\(?([A-Z])\)?", answer)
    return letter.group(1) if letter else answer


def _joined(number: re.Match[str]) -> str:
    return re.sub("[ ,]", "", number.group())


@lru_cache(maxsize=CACHED)
def _unwrapped(answer: str) -> str:
    """Without dollar signs, spacing commands and `\\text{}`; single spaces."""
    answer = _NOTHING.sub("", _SPACES.sub(" ", answer.strip().strip("$")))
    previous = None
    while previous != answer:
        previous, answer = answer, _WRAPPERS.sub(r"\1", answer)
    return " ".join(answer.split())


def other_notation(answer: str, other: str) -> str:
    """The answer as one who writes 1.234,5 or 1,00,000 may have meant it, or a list that looks like one number.

    Args:
      answer: one that `in_symbols` returned, with thousands as in `1{,}234`.
      other: the answer beside it; if that has such thousands, 12.345 is no number in groups.

    >>> other_notation("1,5", "2"), other_notation("12.345", "2"), other_notation("12.345", "1{,}234")
    ('1.5', '12345', '12.345')
    >>> other_notation("100{,}200", "2")
    '100, 200'
    """
    if "{,}" in answer + other:
        return answer.replace("{,}", ", ")
    answer = re.sub(r"(?<![\d.,])[1-9]\d{0,2}\.\d{3}(?![\d.,])", lambda match: match[0].replace(".", ""), answer)
    answer = re.sub(r"(?<![\d.,])[1-9]\d?(?:,\d\d)+,\d{3}(?![\d,])", lambda match: match[0].replace(",", ""), answer)
    return _DECIMAL_COMMA.sub(lambda match: match[0].replace(",", "."), answer)


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


def letters(answer: str) -> set[str]:
    """The letters that stand for something, without those of commands, of words in a wrapper and of LaTeX's structure.

    >>> sorted(letters(r"x\\sin N + \\text{if}")), letters("1e5")
    (['N', 'x'], {'e'})
    """
    text = re.sub(r"\b(?:and|or)\b", " ", _WRAPPERS.sub(" ", answer))
    return set(re.findall("[a-zA-Z]", re.sub(r"\\(?:begin|end)\{\w+\}|\\[a-zA-Z]+", " ", text)))


_FUNCTIONS = r"(?:sin|cos|tan|cot|sec|csc|log|exp|mod|sqrt|and|for|with|times|plus|minus|over|more|less|fewer)\b"
_UNIT = re.compile(
    r"(?<=[\d})%])(?:\s*\\(?:text|textrm|mathrm|mbox)\s*\{\s*([^{}]+?)\s*\}|"
    r"\s+((?:(?!" + _FUNCTIONS + r")(?:[A-Za-z]{3,}|[kcm]?m|[mk]?g|[hLs]|m[lL]|ft|in|mi|lbs?|oz|hrs?|of|sq)\.?"
    r"(?:[ /]|$))+)"
    r"|\s*([\u4e00-\u9fff]{1,4}|[£€¥₹])|(?<=\d)([kcm]m|[mk]g|m[lL]|°[CF]?))"
    r"\s*(?:\^\s*\{?([23])\}?)?$"
)  # fmt: skip
_DEGREES = re.compile(r"(?<=[\d)}])\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|°)\s*(?:\\text\{)?\s*([CF]?)\s*\}?$")
_TRIGONOMETRY = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_CURRENCY = re.compile(
    r"([-+]?)\s*(?:US)?(?:(\\?\$)|([£€¥₹])|\\(?:text)?(euro|pounds)(?:\{\})?)\s*(?=[-+]?[\d.])(.+)", re.DOTALL
)


@lru_cache(maxsize=CACHED)
def split_unit(answer: str) -> tuple[str, str]:
    """(the answer, its unit or currency, singular, "" if there is none).

    >>> split_unit("18 dollars"), split_unit(r"5\\text{ km}"), split_unit("x+1")
    (('18', 'dollar'), ('5', 'km'), ('x+1', ''))
    >>> split_unit(r"-\\$5"), split_unit(r"45^\\circ"), split_unit(r"20^\\circ C")
    (('-5', '$'), ('45', '°'), ('20', '°c'))
    """
    answer = answer.strip()
    sign = _CURRENCY.fullmatch(answer)
    if sign:
        rest, unit = split_unit(sign[1] + sign[5])
        name = "$" if sign[2] else sign[3] or {"euro": "€", "pounds": "£"}[sign[4]]
        return rest, f"{name} {unit}" if unit and unit != name else name
    if (degrees := _DEGREES.search(answer)) and not _TRIGONOMETRY.search(answer):
        return answer[: degrees.start()].strip(), "°" + degrees[1].lower()
    answer = (
        answer.removesuffix("\\$") if answer.endswith("\\$") and answer[:1].isdigit() else answer.strip("$").strip()
    )
    match = _UNIT.search(answer)
    if not match:
        return answer, ""
    unit = next(group for group in match.groups()[:4] if group is not None).strip(" .")
    unit = unit if re.fullmatch(r"[MG][a-zA-Z]{1,2}", unit) else unit.lower()  # Mg are not mg.
    singular = re.sub(r"(?<=..)(?:(?<=inch)e)?s$", "", unit)
    return answer[: match.start()].strip(), singular + (match.group(5) or "")


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
_QUOTIENT = re.compile(r"([-+]?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")
_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\{?|\()(\d+)[})]?")
_SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)(?:\\times|\\cdot|\*|×)10\^\{?([-+]?\d{1,4})\}?")


@lru_cache(maxsize=CACHED)
def rational(answer: str) -> Fraction | None:
    """The exact value of an answer that is one rational number; a dollar or percent sign is set aside.

    >>> rational("$1,234.50"), rational(r"-\\frac{3}{6}"), rational("3 1/2"), rational("1e6"), rational("x+1")
    (Fraction(2469, 2), Fraction(-1, 2), Fraction(7, 2), Fraction(1000000, 1), None)
    >>> rational(r"0.1\\overline{6}")
    Fraction(1, 6)
    """
    text = normalize(answer).replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "")
    try:
        if _DECIMAL.fullmatch(text):
            return Fraction(text)
        if match := _MIXED.fullmatch(text):
            sign, whole, *parts = match.groups()
            top, bottom = (part for part in parts if part is not None)
            return (-1 if sign == "-" else 1) * (int(whole) + Fraction(int(top), int(bottom)))
        if match := _FRACTION.fullmatch(text):
            sign, *parts = match.groups()
            top, bottom = (part for part in parts if part is not None)
            return (-1 if sign == "-" else 1) * Fraction(top) / Fraction(bottom)
        if match := _QUOTIENT.fullmatch(text):
            return Fraction(match.group(1)) / Fraction(match.group(2))
        if match := _REPEATING.fullmatch(text):
            sign, whole, fixed, period = match.groups()
            digits = int(f"{whole}{fixed}{period}") - int(f"0{whole}{fixed}")
            return (-1 if sign == "-" else 1) * Fraction(digits, 10 ** len(fixed) * (10 ** len(period) - 1))
        if match := _SCIENTIFIC.fullmatch(text):
            return Fraction(match.group(1)) * Fraction(10) ** int(match.group(2))
    except (ValueError, ZeroDivisionError):
        return None
    return None


def is_percentage(answer: str) -> bool:
    return answer.rstrip(" $").endswith("%")


def decimals(answer: str) -> int:
    """Digits after the point of a decimal number; 0 for anything else."""
    match = re.search(r"\.(\d+)", normalize(answer))
    return len(match.group(1)) if match and "/" not in answer and "frac" not in answer else 0
