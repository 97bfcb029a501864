"""Final answers in mathematical text: finding them, and reading them as exact numbers where they are such."""

import re
from fractions import Fraction

# An optional sign and currency, digits with or without thousands separators, an optional fraction or decimal part.
_NUMBER = (
    r"[-+−]?\s?\\?\$?\s?[-+−]?(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!)\d{3})+(?!\d)|\d+)?"
    r"(?:\.\d+|(?<=\d))(?:\s?/\s?\d+)?\s?\\?%?"
)
_LAST_NUMBER = re.compile(_NUMBER)
_MARKED_LINE = re.compile(r"^\s*(?:####|A:|(?:Final )?Answer:|答案[::])\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE)
_PHRASE = re.compile(
    r"(?:answer\s+is|answer\s+would\s+be|答案(?:是|为))\s*:?\s*(\$[^$\n]+\$|" + _NUMBER + r"|[^\s.。]+)", re.IGNORECASE
)
_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname|mathit)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;:! ]|\\quad|\\qquad|~|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle")
_UNITS = re.compile(r"(?<=[\d}])(?:\^\{?\\circ\}?|\\degree|°)$")


def extract(text: str, *, marked_only: bool = False) -> str | None:
    """The final answer that a text states, as it is written there; None where it states none.

    Args:
      text: a worked solution.
      marked_only: take only explicit forms (`\\boxed{}`, `####`, `A:`), not phrases or the last number.

    >>> extract(r"so \\boxed{1} + \\boxed{\\frac{1}{2}} holds")
    '\\\\frac{1}{2}'
    >>> extract("He has 3 left.\\n#### 3")
    '3'
    """
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed or None
    lines = _MARKED_LINE.findall(text)
    if lines:
        return _trim(lines[-1]) or None
    if marked_only:
        return None
    phrases = _PHRASE.findall(text)
    if phrases:
        return _trim(phrases[-1]) or None
    numbers = [match.group().strip() for match in _LAST_NUMBER.finditer(text) if re.search(r"\d", match.group())]
    return numbers[-1] if numbers else None


def _last_boxed(text: str) -> str | None:
    """Content of the last `\\boxed{...}` or `\\fbox{...}` whose braces balance."""
    for start in reversed([match.end() for match in re.finditer(r"\\f?boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            escaped = end > 0 and text[end - 1] == "\\"
            depth += 0 if escaped else (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[start:end].strip()
    return None


def _trim(answer: str) -> str:
    answer = answer.strip().strip("*").rstrip(".。").strip()
    dollars = re.fullmatch(r"\$([^$]+)\$", answer)
    return dollars.group(1).strip() if dollars else answer


def normalize(answer: str) -> str:
    """Text that is equal for answers that differ in typography alone: spacing, wrappers, degree sign, letter brackets.

    >>> normalize(r"\\textbf{(A)}"), normalize(r"1\\,000"), normalize(r"\\dfrac12")
    ('A', '1000', '\\\\frac12')
    """
    answer = answer.strip().strip("$").strip()
    answer = _SPACING.sub("", answer)
    previous = None
    while previous != answer:
        previous, answer = answer, _WRAPPERS.sub(r"\1", answer)
    answer = answer.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("−", "-").replace("{,}", ",")
    answer = re.sub(r"\s+", "", answer).rstrip(".")
    answer = _UNITS.sub("", answer)
    answer = re.sub(r"(?<!\d)(\d{1,3}(?:,\d{3})+)(?![\d,])(?<!\d\d\d\d)", lambda m: m.group().replace(",", ""), answer)
    letter = re.fullmatch(r"\(?([A-Z])\)?", answer)
    return letter.group(1) if letter else answer


def words(answer: str) -> str | None:
    """The answer in lower case if it is words of a language and no formula.

    >>> words("\\\\text{Evelyn}"), words("seven apples"), words("xy"), words(r"\\sqrt{2}")
    ('evelyn', 'sevenapples', None, None)
    """
    text = normalize(answer)
    return text.lower() if re.fullmatch(r"[^\W\d_]{3,}", text) else None


_FRACTION = re.compile(r"([-+]?)\\frac(?:\{([-+]?[\d.]+)\}\{([-+]?[\d.]+)\}|(\d)(\d))")
_MIXED = re.compile(r"([-+]?)(\d+)\\frac(?:\{(\d+)\}\{(\d+)\}|(\d)(\d))")
_RATIO = re.compile(r"([-+]?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")
_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)(?:\\times|\\cdot|\*|×)10\^\{?([-+]?\d{1,4})\}?")


def rational(answer: str) -> Fraction | None:
    """The exact value of an answer that is one rational number; a currency or percent sign is set aside.

    >>> rational("$1,234.50"), rational(r"-\\frac{3}{6}"), rational("x+1")
    (Fraction(2469, 2), Fraction(-1, 2), None)
    """
    text = normalize(answer).replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "")
    text = re.sub(r"^([-+]?)£|^([-+]?)€", r"\1", text)
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
