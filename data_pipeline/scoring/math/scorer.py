"""Correctness of a final answer in mathematics: correct, wrong or unknown.

Math-Verify says False both for "wrong" and for "not understood", True where floating point cannot tell two numbers
apart, and reads of some answers only a part. So:

1. `math_answers` finds the final answers of text and label, and says how sure it is that the text stands by it;
2. `math_notation` writes them in symbols, and `math_forms` says what kind of thing each is;
3. `math_compare` compares them by their kinds: kinds that cannot be equal are unknown, lists are compared entry by
   entry; equal texts, words, choices, exact numbers and quantities in known units are decided there;
4. formulas go to Math-Verify, and its verdict is checked, in a worker process with limits of time and memory
   (`math_worker`).

Correct needs a comparison that could have failed. What a person could not decide either (rounded values, a comma that
may be a decimal point, other letters, 1/2x) is unknown. A unit that only one of them has is overlooked.
"""

import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.math import (
    math_answers,
    math_compare,
    math_forms,
    math_notation,
    math_units,
    math_worker,
)
from data_pipeline.scoring.math.math_answers import Found
from data_pipeline.scoring.math.math_compare import Outcome
from data_pipeline.scoring.scorer import Item, Score, Verdict
from data_pipeline.scoring.worker_pool import WorkerPool
from data_pipeline.stage_files import fingerprint

_PLAIN = re.compile(r"\$?-?\d+(?:\.\d\d?)?")
"""Most answers; with three decimals 1.234 might be 1234."""
LONGEST = 2000
"""Most characters of a final answer that is compared; a longer one is running text, on which patterns are slow."""


_SOURCES = (math_answers, math_compare, math_forms, math_notation, math_units, math_worker)


class MathScorer:
    """Compares the text's final answer with the prompt's `answer`."""

    def __init__(self, limits: VerifierLimits, workers: int | None):
        self._timeout, self._memory, self._workers = limits.timeout_seconds, limits.memory_mb, workers
        self._known: dict[tuple[str, str], Outcome] = {}
        files = (Path(module.__file__ or "") for module in _SOURCES)
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
    """A verdict counts only as far as it is certain that this was the answer."""
    doubted = {
        "stated": (),
        "only": () if math_notation.rational(gold) is not None else ("wrong",),
        "likely": ("wrong",),
        "guess": ("correct", "wrong"),
    }
    if verdict in doubted[found.trust]:
        verdict, detail = "unknown", f"unclear_answer: {detail}"
    return Score(verdict=verdict, extracted=found.answer, detail=detail)


def compare_exactly(gold: str, found: str) -> Outcome | None:
    """(verdict, reason) where text or exact numbers decide it, else None."""
    if len(gold) > LONGEST or len(found) > LONGEST:
        return "unknown", "too_long"
    if gold == found:
        return "correct", "same_text"
    if _PLAIN.fullmatch(gold) and _PLAIN.fullmatch(found):
        return math_compare.compare_numbers(gold, found)
    try:
        return math_compare.compare(math_notation.in_symbols(gold), math_notation.in_symbols(found), lambda *_: None)
    except RecursionError:  # Brackets in brackets in brackets.
        return "unknown", "too_long"
