"""Correctness of a final answer in mathematics: correct, wrong or unknown.

Cheap and certain comparisons come first, since Math-Verify says False both for "wrong" and for "not understood", and
True where floating point cannot tell two numbers apart:

1. the final answers of text and label (last balanced `\\boxed{}`; `#### N`; the last of `A: N` and `answer is N`; the
   last number: where prose leaves open which number is the answer, a mismatch is unknown);
2. equal after normalising: correct; both words, choices, exact rational numbers or quantities in known units: their
   comparison decides;
3. otherwise Math-Verify in both orders and its verdict checked, in a worker process with limits of time and memory
   (see `math_worker`).

Cases that a person could not decide either (rounded, a unit or a letter that only one of them has, 1/2x) are unknown.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.math import math_answers, math_units, math_worker
from data_pipeline.scoring.math.math_answers import Found
from data_pipeline.scoring.scorer import Item, Score, Verdict
from data_pipeline.scoring.worker_pool import WorkerPool
from data_pipeline.stage_files import fingerprint

LONGEST = 2000
"""Most characters of a final answer that is compared; a longer one is running text, on which patterns are slow."""
Outcome = tuple[Verdict, str]
_NOTHING = frozenset(
    [
        "all",
        "always",
        "dne",
        "empty",
        "false",
        "impossible",
        "infinite",
        "infinity",
        "never",
        "none",
        "nothing",
        "true",
        "undefined",
        "yes",
    ]
)
"""Words that have synonyms, so that a different word need not be a different answer."""
_TRUTH = {"yes": True, "true": True, "no": False, "false": False}
_GEOMETRY = re.compile(r"\\(?:angle|triangle|overline|overrightarrow|widehat)(?![a-zA-Z])")
_SUBSCRIPT = re.compile(r"(?<=[\d)}])_\{?(\d+)")


class MathScorer:
    """Compares the text's final answer with the prompt's `answer`."""

    def __init__(self, limits: VerifierLimits, workers: int | None):
        self._timeout, self._memory, self._workers = limits.timeout_seconds, limits.memory_mb, workers
        self._known: dict[tuple[str, str], Outcome] = {}
        files = (Path(module.__file__ or "") for module in (math_answers, math_units, math_worker))
        self.fingerprint = fingerprint(version("math-verify"), self._timeout, self._memory, Path(__file__), *files)

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score per item, in order; see `scorer.Scorer`. Equal pairs of answers are compared once."""
        pairs = [self._pair(item) for item in items]
        hard: list[tuple[str, str]] = []
        for pair in pairs:
            if pair is not None and (key := (pair[0], pair[1].answer)) not in self._known:
                decided = compare_exactly(*key)
                self._known[key] = decided or ("unknown", "not_compared")
                if decided is None:
                    hard.append(key)
        if hard:
            with WorkerPool(
                math_worker.verify, timeout=self._timeout, memory_mb=self._memory, workers=self._workers
            ) as pool:
                for key, result in zip(hard, pool.map(hard), strict=True):
                    # A string is "timeout", "crashed" or "out_of_memory".
                    self._known[key] = ("unknown", result) if isinstance(result, str) else result
        return [
            Score(verdict="unknown", detail="no_final_answer")
            if pair is None
            else _judged(*pair, *self._known[pair[0], pair[1].answer])
            for pair in pairs
        ]

    @staticmethod
    def _pair(item: Item) -> tuple[str, Found] | None:
        found = math_answers.extract(item.text)
        if found is None:
            return None
        # A label is a bare answer, or a worked solution that ends in one.
        label = item.prompt["answer"] or ""
        marked = math_answers.extract(label, marked_only=True)
        return marked.answer if marked else label.strip(), found


def _judged(gold: str, found: Found, verdict: Verdict, detail: str) -> Score:
    """A mismatch counts only where it is certain that this was the answer."""
    sure = found.trust == "stated" or (found.trust == "only" and math_answers.rational(gold) is not None)
    if verdict == "wrong" and not sure:
        verdict, detail = "unknown", f"unclear_answer: {detail}"
    return Score(verdict=verdict, extracted=found.answer, detail=detail)


def compare_exactly(gold: str, found: str) -> Outcome | None:
    """(verdict, reason) where text or exact numbers decide it, else None."""
    if len(gold) > LONGEST or len(found) > LONGEST:
        return "unknown", "too_long"
    decided = _compare_truth(gold, found)
    if decided is not None:
        return decided
    gold, found = math_answers.in_symbols(gold), math_answers.in_symbols(found)
    if math_answers.normalize(gold) == math_answers.normalize(found):
        return "correct", "same_text"
    decided = _compare_choices(gold, found) or _compare_words(gold, found)
    if decided is not None:
        return decided
    if _SUBSCRIPT.findall(gold) != _SUBSCRIPT.findall(found):
        return "unknown", "other_subscripts"
    if {"(", "\\{"} == {_bracket(gold), _bracket(found)}:
        return "unknown", "set_against_tuple"
    (left, unit), (right, other) = math_answers.split_unit(gold), math_answers.split_unit(found)
    same = math_answers.normalize(left) == math_answers.normalize(right)
    decided = ("correct", "same_text") if same else _compare_numbers(left, right)
    if unit == other:
        return decided or (("unknown", "not_a_formula") if _unreadable(left, right) else None)
    measured = _compare_measures(left, unit, right, other)
    if measured is not None:
        return measured
    # 18 dollars are 1800 cents, and 5 m may be a product.
    if (unit and other) or len((unit or other).rstrip("23")) == 1 or (decided and decided[0] == "wrong"):
        return "unknown", "other_units"
    return decided or ("unknown", "other_units")


def _compare_truth(gold: str, found: str) -> Outcome | None:
    """Yes or true against no or false."""
    left, right = (_TRUTH.get(math_answers.normalize(answer).lower()) for answer in (gold, found))
    return ("wrong", "other_words") if left is not None and right is not None and left != right else None


def _compare_measures(gold: str, unit: str, found: str, other: str) -> Outcome | None:
    """Two quantities in different units of the same kind."""
    left, right = math_answers.rational(gold), math_answers.rational(found)
    sizes = math_units.measure(unit), math_units.measure(other)
    if left is None or right is None or sizes[0] is None or sizes[1] is None or sizes[0][0] != sizes[1][0]:
        return None
    left, right = left * sizes[0][1], right * sizes[1][1]
    if left == right:
        return "correct", "same_quantity"
    near = abs(left - right) <= max(abs(left), abs(right)) / 100  # 5 miles are 8.05 km.
    return ("unknown", "rounded") if near else ("wrong", "other_quantity")


def _compare_choices(gold: str, found: str) -> Outcome | None:
    """A letter of a multiple choice against a letter, with or without the text of the choice."""
    left, right = math_answers.choice(gold), math_answers.choice(found)
    if left and right:
        # Two bare letters may be variables, but different variables are different answers, too.
        return ("correct", "same_choice") if left[0] == right[0] else ("wrong", "other_choice")
    if not left and not right:
        return None
    (_, text), other = (left, found) if left else (right, gold)  # type: ignore[misc]
    if text and math_answers.normalize(text) == math_answers.normalize(other):
        return "correct", "same_text"
    return "unknown", "choice_against_answer"


def _compare_words(gold: str, found: str) -> Outcome | None:
    left, right = math_answers.words(gold), math_answers.words(found)
    if left is None and right is None:
        return None
    if left is None or right is None:
        return "unknown", "words_against_formula"
    if left.replace(" ", "") == right.replace(" ", ""):
        return "correct", "same_words"
    # Words of the same letters may be products, abc and cba; others may say the same: no solution, none.
    comparable = " " not in left + right and not {left, right} & _NOTHING
    alike = sorted(left) == sorted(right) or left.startswith(right) or right.startswith(left)
    return ("wrong" if comparable and not alike else "unknown"), "other_words"


def _compare_numbers(gold: str, found: str) -> Outcome | None:
    left, right = math_answers.rational(gold), math_answers.rational(found)
    if left is None or right is None:
        return ("unknown", "decimal_comma") if _by_decimal_comma(gold, found) else None
    percent = math_answers.is_percentage(gold), math_answers.is_percentage(found)
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


def _by_decimal_comma(gold: str, found: str) -> bool:
    """Whether 1,5 is meant as 1.5, not as two numbers."""
    commas = [bool(re.fullmatch(r"[-+]?\d+,\d+", math_answers.normalize(answer))) for answer in (gold, found)]
    left, right = (math_answers.rational(answer.replace(",", ".")) for answer in (gold, found))
    return any(commas) and left is not None and left == right


def _is_rounding(text: str, rounded: Fraction, exact: Fraction) -> bool:
    """Whether `text`, of the value `rounded`, is `exact` cut or rounded to its decimals."""
    decimals = math_answers.decimals(text)
    return decimals >= 1 and abs(rounded - exact) < Fraction(1, 10**decimals)


def _bracket(answer: str) -> str:
    """The bracket that opens a list."""
    match = re.match(r"\(|\\\{", math_answers.normalize(answer))
    return match.group() if match and "," in answer else ""


def _unreadable(*answers: str) -> bool:
    """Whether Math-Verify would read only some part: prose, numbers side by side, or names of points as products."""
    return any(
        _GEOMETRY.search(answer)
        or math_answers.is_prose(answer)
        or (math_answers.rational(answer) is None and re.search(r"(?<![_^\d])\d+ \d", math_answers.normalize(answer)))
        for answer in answers
    )
