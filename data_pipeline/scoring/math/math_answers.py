"""Final answers in mathematical text: what a worked solution states last, and how sure it is that it means it.

An answer is stated in a box, behind `####`, on a line `A: ...`, or in a phrase (`the answer is ...`). What is stated
last counts, if nothing behind it takes it back. Without a statement there may be a last formula or a last number.
"""

import re
from collections import deque
from typing import Literal, NamedTuple

from data_pipeline.scoring.math import math_units
from data_pipeline.scoring.math.math_notation import FORMULA, formula_in, is_prose, normalize, rational, split_unit

# An optional sign and currency, then a mixed number, or digits with or without thousands separators, a decimal part,
# an exponent, a denominator, a percent sign. A sign after a number is an operator.
_NUMBER = (
    r"(?:(?<!\d )(?<![\d)}])[-+−]\s?)?(?:\\?[$£€¥]\s?[-+−]?)?"
    r"(?:\d+ \d+/\d+|(?:(?:\d{1,3}(?:(?:,|\{,\}|\\,|\\!)\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+]?\d{1,3})?(?:\s?/\s?\d+)?(?:\s?\\?%)?)"
)
_CLEAN_NUMBER = re.compile(
    r"(?<![\^_{\\*/+a-zA-Z\d.])" + _NUMBER + r"(?![\^({_a-zA-Z\d]|\s?[+*/×]|\s?\\[a-zA-Z])"
)  # Alone, no part of a formula.
_ANY_NUMBER = re.compile(_NUMBER)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(?=\S)", re.MULTILINE)
_LINE = re.compile(r"^[ \t]*\**(?:A|(?:[Ff]inal )?[Aa]nswer|Final Answer|答案)\**[ \t]*:\**[ \t]*(?=\S)", re.MULTILINE)
_PHRASE = re.compile(
    r"(?:\banswers?(?:[ \t]+(?:is|are|(?:would|should|must)[ \t]+be)\b|\**:)|答案(?:应该?)?(?:是|为|:))"
    r"\**[ \t]*:?[ \t]*(?=\S)",
    re.IGNORECASE,
)
_WIDE = str.maketrans("：；！？", ":;!?")
_BOXES = re.compile(r"\\f?boxed\s*(\{)|\\.|[{}]", re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\**$)|。")
_CLAUSE_START = re.compile(r"[.!?;,:\n。，]|\b(?:so|thus|hence|therefore|but|because)\b", re.IGNORECASE)

_DOUBT = re.compile(
    r"\b(?:not?|none|nobody|false|never|neither|nor|cannot|without|except|unless|if|suppose|assum\w+|doubt|wrong|"
    r"incorrect|either|or|between|from|to|at least|at most|than|up to|over|under|above|below|within|almost|nearly|"
    r"exceeds?|more|less|fewer|further|half|twice|double|triple|thrice|times|plus|minus|squared|cubed|dozen|divided|"
    r"multiplied|maybe|perhaps|possibly|any\w*|only|but|rul\w+ out|exclud\w+|other|besides)\b"
    r"|n't\b|n’t\b|\?\s*$|不|非|没|至少|至多|超过|小于|大于|到|或|之间|倍|半",
    re.IGNORECASE,
)
"""Words by which a number in a sentence need not be what the sentence states: not 5, at least 5, half of 5."""
_TAKEN_BACK = re.compile(
    r"\b(?:wait|oops|hmm|actually|sorry|apolog\w+|scratch that|strike that|never ?mind|ignore|disregard|hold on|"
    r"in fact|on (?:reflection|second thought)|correct(?:ion|ed)|mistaken?|errors?|typo|forgot|overlooked|misread|"
    r"miss?count\w*|miscalculat\w*|recalculat\w*|re-?check\w*|reconsider\w*|revis\w*|redo|try again|instead|rather|"
    r"should (?:be|have been)|must be|contradict\w*|invalid|not\s+(?:be\s+)?(?:right|correct|valid)|"
    r"(?:is|was)\s+(?:\w+\s+)?(?:wrong|incorrect|false)|(?:is|was|does|do|did|ca)n['’]t|"
    r"(?:that|this|it|which|answer|result|above|value)(?:['’]s|\s+(?:is|was))\s+not)\b"
    r"|(?:^|[.!?,—\s])[Nn]o\b[,.:;!—-]|不对|错|有误|更正|更改|改为|应为|应该|修正|重新|其实|实际上|抱歉|等等",
    re.IGNORECASE,
)
"""Words by which a text takes back what it stated before them."""
_FINAL = re.compile(r"\b(?:final|answers?|in total|altogether|finally|overall)\b|答案|最终|总共|一共", re.IGNORECASE)
_AND = re.compile(
    r"(?:\s|\\[()\[\],;: ]|\$|[,;、，]|\b(?:and|or|also)\b|\\text\s*\{\s*(?:and|or)\s*\}|\\q?quad|或者?|以及|[和及与]"
    r"|\\?[a-zA-Z]+(?:_\{?\w+\}?)?\s*=)*"
)
"""All that may be between boxes which are one answer together."""
_NAME_BEFORE = re.compile(r"((?<![\w\\^_{])\\?[a-zA-Z]+(?:_\{?\w+\}?)?)\s*=\s*$")
_CONCLUSION = re.compile(
    r"(?:\b(?:hence|thus|therefore|so|finally|consequently)\b|\\therefore|∴|所以|因此|故|解得|得到?)[\s,，:]*"
    r"(?:(?:it|this|that|the (?:total|result|sum|value|number|cost|amount)) (?:is|equals)\b|"
    r"(?:we (?:get|have|obtain|find|see|conclude)|it follows|this gives)?(?: that)?)[\s,，:]*"
    r"|\bwe (?:get|have|obtain|find|conclude)\b(?: that)?[\s,，:]*",
    re.IGNORECASE,
)
_UNIT_BEHIND = re.compile(
    r"\s*(?:\$|\\\)|\\\])?\s*(\^\s*\{?\\circ\}?\s*[CF]?|°[CF]?|\\?%|\\text\{[^{}]*\}|[£€¥]|[a-zA-Z]+)"
)
TAIL = 600
"""Characters at the end of a text in which its last sentence is sought."""
Trust = Literal["stated", "only", "likely", "guess"]


class Found(NamedTuple):
    """A final answer, and how sure it is that the text means it."""

    answer: str
    trust: Trust
    """`stated`: a verdict on it counts. `only`: the only number in the text, which counts where the label is a number,
    too. `likely`: it may be right, but a mismatch means little. `guess`: neither counts."""


class _Statement(NamedTuple):
    start: int
    end: int
    found: Found | None


def extract(text: str, *, marked_only: bool = False) -> Found | None:
    """The final answer that a text states, as it is written there; None where it states none.

    Args:
      text: a worked solution.
      marked_only: take only explicit forms (`\\boxed{}`, `####`, `A:`), not phrases, formulas or numbers.

    >>> extract(r"so \\boxed{1} + \\boxed{\\frac{1}{2}} holds").answer
    '\\\\frac{1}{2}'
    >>> extract("He has 3 left, and 4 are gone.\\n#### 3")
    Found(answer='3', trust='stated')
    >>> extract("There are 3 left, and 4 are gone.")
    Found(answer='4', trust='guess')
    >>> extract(r"So $x=\\boxed{2}$ or $x=\\boxed{3}$. Wait, $x$ is positive.")
    Found(answer='2, 3', trust='guess')
    """
    text = text if text.isascii() else text.translate(_WIDE)
    strong = _boxed(text) or _last_line(_HASHES, text)
    patterns = (_HASHES, _LINE) if marked_only else (_HASHES, _LINE, _PHRASE)
    behind = strong.end if strong else 0
    weak = max(
        (line for pattern in patterns if (line := _last_line(pattern, text, behind))),
        key=lambda line: line.start,
        default=None,
    )
    last = _later(strong, weak)
    if last is None:
        return None if marked_only else _unmarked(text)
    if last.found and (_TAKEN_BACK.search(text, last.end) or _goes_on(text[last.end :], last.found.answer)):
        return last.found._replace(trust="guess")
    return last.found


def _goes_on(rest: str, answer: str) -> bool:
    """Whether the text ends with other numbers than the answer's, so that these may be the answer."""
    numbers = set(re.findall(r"\d+(?:\.\d+)?", answer.replace(",", "")))
    sentences = [part for part in _SENTENCE_END.split(rest[-TAIL:].replace(",", "")) if re.search(r"\d", part)]
    if not numbers or not sentences:
        return False
    others = set(re.findall(r"\d+(?:\.\d+)?", sentences[-1]))
    return not numbers <= others or bool(_DOUBT.search(sentences[-1]))


def _later(strong: _Statement | None, weak: _Statement | None) -> _Statement | None:
    """The later statement; one behind a box that says something else is only likely."""
    if strong is None or weak is None or weak.found is None:
        return strong or weak
    if strong.found and _same(strong.found.answer, weak.found.answer):
        return strong._replace(end=weak.end)
    trust: Trust = "likely" if weak.found.trust == "stated" else "guess"
    return weak._replace(found=weak.found._replace(trust=trust))


def _same(one: str, other: str) -> bool:
    first, second = (normalize(split_unit(answer)[0]).strip("\\$*") for answer in (one, other))
    return first == second or (rational(first) is not None and rational(first) == rational(second))


# Boxes.


class _Box(NamedTuple):
    start: int
    end: int
    content: str


def _boxed(text: str) -> _Statement | None:
    """The last box, with those before it that belong to it: `\\boxed{2}` or `\\boxed{3}`."""
    boxes = _boxes(text) if "box" in text else []
    if not boxes:
        return None
    first = len(boxes) - 1
    while first and _AND.fullmatch(text, boxes[first - 1].end, boxes[first].start):
        first -= 1
    group = boxes[first:]
    contents = [_with_unit(text, box) for box in group]
    if not all(contents):
        return _Statement(group[0].start, group[-1].end, None)
    names = [
        match[1] if (match := _NAME_BEFORE.search(text, max(0, box.start - 20), box.start)) else "" for box in group
    ]
    if len(set(names)) == len(names) > 1 and all(names):
        contents = [
            content if "=" in content else f"{name} = {content}" for name, content in zip(names, contents, strict=True)
        ]
    trust: Trust = "stated"
    if any(not _same(box.content, group[-1].content) for box in boxes[:first]):
        between = text[boxes[first - 1].end : group[0].start]
        trust = "likely" if _FINAL.search(between) or _TAKEN_BACK.search(between) else "guess"
    return _Statement(group[0].start, group[-1].end, Found(", ".join(dict.fromkeys(contents)), trust))


def _boxes(text: str) -> list[_Box]:
    """Every `\\boxed{...}` or `\\fbox{...}` whose braces balance; of those inside each other the inner."""
    opened: list[tuple[int, int, bool]] = []
    last_start = -1
    found = []
    for match in _BOXES.finditer(text):
        token = match.group()
        if token.endswith("{") and not token.startswith("\\{"):
            opened.append((match.start(), match.end(), match.group(1) is not None))
        elif token == "}" and opened:
            start, content, is_box = opened.pop()
            if is_box and start > last_start:
                found.append(_Box(start, match.end(), text[content : match.start()].strip()))
                last_start = start
    return found


def _with_unit(text: str, box: _Box) -> str:
    """The content with the unit or currency around the box: `\\boxed{5}` euros."""
    if rational(box.content) is None:
        return box.content
    if re.search(r"(?:£|€|¥|\\\$)\s*$", text[max(0, box.start - 3) : box.start]):
        return text[box.start - 3 : box.start].strip()[-1:].replace("$", "\\$") + box.content
    unit = _UNIT_BEHIND.match(text, box.end)
    if unit is None:
        return box.content
    answer = f"{box.content} {unit[1]}" if unit[1][0].isalpha() else box.content + unit[1]
    known = "%" in unit[1] or (unit[1] != "in" and len(unit[1]) > 1 and math_units.measure(split_unit(answer)[1]))
    return answer if known else box.content


# Lines and phrases.


def _last_line(pattern: re.Pattern[str], text: str, start: int = 0) -> _Statement | None:
    """The last statement behind a marker, up to the end of its line."""
    matches = deque(pattern.finditer(text, start), maxlen=1)
    if not matches:
        return None
    match = matches[0]
    line = text[match.end() :].partition("\n")[0]
    found = _statement(line)
    if found and pattern is _PHRASE:
        clause = _CLAUSE_START.split(text[max(0, match.start() - 200) : match.start()])[-1]
        if _DOUBT.search(clause):
            found = found._replace(trust="guess")
    end = _sentence_end(line)
    if found and (line[:end].endswith("?") or "吗" in line[:end]):
        found = found._replace(trust="guess")
    return _Statement(match.end(), match.end() + end, found)


def _sentence_end(text: str) -> int:
    end = _SENTENCE_END.search(text)
    return end.end() if end else len(text)


def _statement(text: str) -> Found | None:
    """The answer in the text after a marker: the text itself if a formula, number or word, else the number in it."""
    sentence = _trim(_SENTENCE_END.split(text, maxsplit=1)[0])
    if not sentence:
        return None
    if formula := FORMULA.match(sentence):
        rest = sentence[formula.end() :]
        if not re.search(r"\d|[$£€¥\\]", rest) and is_prose("1 " + rest) and not _DOUBT.search(rest):
            return Found(formula_in(formula), "stated")
    plain = FORMULA.sub(formula_in, sentence)
    if not is_prose(plain):
        return Found(plain, "stated")
    return _number_in(sentence) or Found(sentence, "guess")


def _trim(answer: str) -> str:
    answer = answer.strip().strip("*").rstrip(".。").strip()
    formula = FORMULA.fullmatch(answer)
    return formula_in(formula).rstrip(".") if formula else answer


# Texts without a statement.


def _unmarked(text: str) -> Found | None:
    """The formula in which the last sentence ends; the whole text if it is an answer; its last number."""
    tail = " ".join(re.sub(r"\n\s*(?=[A-Z])", ". ", text[-TAIL:]).split())
    sentences = [part for part in _SENTENCE_END.split(tail) if part.strip(" *")]
    if sentences and (found := _concluded(sentences[-1].strip(" *"))):
        return found
    whole = _plain(tail)
    if len(text) <= TAIL and "\n" not in text.strip() and re.search(r"[\d\\]", whole) and not is_prose(whole):
        return Found(whole, "stated")
    return _number_in(text)


def _concluded(sentence: str) -> Found | None:
    """The formula in which a sentence ends that draws a conclusion; a number, if it says nothing else."""
    conclusions = list(_CONCLUSION.finditer(sentence))
    if not conclusions:
        return None
    words, formula = sentence[: conclusions[-1].end()], _plain(sentence[conclusions[-1].end() :])
    alone = conclusions[-1].start() == 0 and formula[:1].isdigit()
    if is_prose(formula) or not (alone or re.search(r"[\\=]", formula)):
        return None
    return Found(formula, "guess" if _DOUBT.search(words) else "likely")


def _plain(text: str) -> str:
    """A formula without delimiters and without the full stop."""
    return FORMULA.sub(lambda match: formula_in(match).rstrip("."), text.strip(" *")).rstrip(".。")


def _number_in(text: str) -> Found | None:
    """The last number, unless it is part of a formula; with its unit where that is known."""
    text = re.sub(r"\*\*(?!\d)|(?<!\d)\*\*", "", text)
    numbers, clean = list(_ANY_NUMBER.finditer(text)), list(_CLEAN_NUMBER.finditer(text))
    if not clean or clean[-1].end() != numbers[-1].end():
        return None
    number = clean[-1].group().strip()
    alone = len({normalize(number.group()) for number in numbers}) == 1
    unit = re.match(r"\s+([a-zA-Z]{2,}|[£€¥])", text[clean[-1].end() :])
    if unit and unit[1] != "in" and math_units.measure(split_unit(f"1 {unit[1]}")[1]):
        number = f"{number} {unit[1]}"
    return Found(number, "only" if alone and not _DOUBT.search(text) else "guess")
