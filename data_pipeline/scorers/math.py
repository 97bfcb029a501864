"""Correctness of a final answer in mathematics: correct, wrong or unknown.

Cheap and certain comparisons come first, since Math-Verify says False both for "wrong" and for "not understood", and
True where floating point cannot tell two numbers apart:

1. the final answers of text and label (last balanced `\\boxed{}`, `#### N`, `A: N`, `answer is N`, final number);
2. equal after normalising: correct; both words, or both exact rational numbers: their comparison decides;
3. otherwise Math-Verify in both orders, in a worker process that is killed at the time limit (see `math_worker`).
"""

from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

from data_pipeline.config import ScorerConfig
from data_pipeline.scorers import math_answers, math_worker
from data_pipeline.scorers.base import Item, Score
from data_pipeline.scorers.workers import WorkerPool
from data_pipeline.store import fingerprint


class MathScorer:
    """Compares the text's final answer with the prompt's `answer`."""

    def __init__(self, config: ScorerConfig, workers: int | None):
        self._timeout, self._memory, self._workers = config.timeout_seconds, config.memory_mb, workers
        self._known: dict[tuple[str, str], Score] = {}
        files = (Path(module.__file__ or "") for module in (math_answers, math_worker))
        self.fingerprint = fingerprint(version("math-verify"), self._timeout, self._memory, Path(__file__), *files)

    def score(self, items: Sequence[Item]) -> list[Score]:
        """One score an item, in order; see `base.Scorer`. Equal questions are decided once."""
        pairs = [self._pair(item) for item in items]
        hard: list[tuple[str, str]] = []
        for pair in pairs:
            if pair is not None and pair not in self._known:
                decided = compare_exactly(*pair)
                self._known[pair] = decided or Score(verdict="unknown")
                if decided is None:
                    hard.append(pair)
        if hard:
            with WorkerPool(
                math_worker.verify, timeout=self._timeout, memory_mb=self._memory, workers=self._workers
            ) as pool:
                for pair, result in zip(hard, pool.map(hard), strict=True):
                    if isinstance(result, str):  # "timeout", "crashed" or "out_of_memory".
                        result = "unknown", result
                    self._known[pair] = Score(None, result[0], pair[1], result[1])
        return [
            Score(verdict="unknown", detail="no_final_answer") if pair is None else self._known[pair] for pair in pairs
        ]

    @staticmethod
    def _pair(item: Item) -> tuple[str, str] | None:
        found = math_answers.extract(item.text)
        if found is None:
            return None
        # A label is a bare answer, or a worked solution that ends in one.
        gold = item.prompt["answer"] or ""
        return math_answers.extract(gold, marked_only=True) or gold.strip(), found


def compare_exactly(gold: str, found: str) -> Score | None:
    """The verdict where text or exact numbers decide it, else None."""
    if math_answers.normalize(gold) == math_answers.normalize(found):
        return Score(verdict="correct", extracted=found, detail="same_text")
    words = math_answers.words(gold), math_answers.words(found)
    if words[0] and words[1]:
        if words[0] == words[1]:
            return Score(verdict="correct", extracted=found, detail="same_words")
        # Words of the same letters may be products: abc and cba.
        other = sorted(words[0]) != sorted(words[1])
        return Score(verdict="wrong" if other else "unknown", extracted=found, detail="other_words")
    if words[0] or words[1]:
        return Score(verdict="unknown", extracted=found, detail="words_against_formula")
    numbers = math_answers.rational(gold), math_answers.rational(found)
    if numbers[0] is None or numbers[1] is None:
        return None
    if numbers[0] == numbers[1]:
        return Score(verdict="correct", extracted=found, detail="same_number")
    if math_answers.is_percentage(gold) != math_answers.is_percentage(found):
        # 50 % against 0.5: the same value; a percent sign against none at all was equal above.
        larger, smaller = sorted((abs(numbers[0]), abs(numbers[1])), reverse=True)
        if smaller * 100 == larger and (numbers[0] > 0) == (numbers[1] > 0):
            return Score(verdict="correct", extracted=found, detail="same_percentage")
    if _is_rounding(found, numbers[1], numbers[0]) or _is_rounding(gold, numbers[0], numbers[1]):
        return Score(verdict="unknown", extracted=found, detail="rounded")
    return Score(verdict="wrong", extracted=found, detail="other_number")


def _is_rounding(text: str, rounded: Fraction, exact: Fraction) -> bool:
    """Whether `text`, of the value `rounded`, is `exact` cut or rounded to two or more decimals."""
    decimals = math_answers.decimals(text)
    return decimals >= 2 and abs(rounded - exact) < Fraction(1, 10**decimals)
