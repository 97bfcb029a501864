"""What the benchmarks of mathematics have in common: a question with one final answer, asked once, greedily.

The prompt is that of Qwen2.5-Math's evaluation, which FuseChat-3.0 used. The verdict is not: `scoring.math` compares
exactly and by Math-Verify, where Qwen's grader takes 1,800 and 0.18 for 18, and whatever is within a relative 1e-4, but
does not read "The answer is **18**." `benchmarks/math_graders.py` lists where the two part. With both, the answer that
is found last counts, whatever is said behind it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from jaxtyping import Float

from data_pipeline.benchmarks.benchmark import (
    Answer,
    Asked,
    DataFile,
    Family,
    Grade,
    Item,
    Profile,
    Prompt,
    Row,
    Tools,
    weighted_mean,
)
from data_pipeline.benchmarks.suite import columns
from data_pipeline.benchmarks.suite.raw_prompts import raw
from data_pipeline.sampling.sampler import Sampling
from data_pipeline.scoring.math.scorer import MathScorer
from data_pipeline.scoring.scorer import Item as Judged
from data_pipeline.scoring.scorer import Score

SENTENCE = r"Please reason step by step, and put your final answer within \boxed{}."
_UNCLEAR, _EQUATION = "unclear_answer", "equation_against_value"
_NUMBERS = re.compile(
    r"(?:[\d\s.,+\-*/×÷^$%(){}=]|\\(?:times|cdot|div|[dt]?frac|left|right)\b|(?<=[\d\s)])x(?=\s*[\d(]))+"
)
"""A calculation: an equation with a letter may be one to be solved."""
_WITH_SYSTEM_TURN = ("llama", "qwen")


class Mathematics:
    """Base of the benchmarks of mathematics; see `benchmark.Graded`."""

    name: str
    title: str
    files: Mapping[str, DataFile]
    published = ""
    scale = 100.0
    turns = 1

    def label(self, row: Row, where: str) -> str:
        """The right answer, or a solution that ends in it."""
        return columns.text(row, where, "answer")

    def items(self, rows: Mapping[str, Sequence[Row]]) -> list[Item]:
        taken: set[str] = set()
        found = []
        for where, number, row in columns.numbered(self.name, self.files, rows):
            question = columns.text(row, where, "question", "problem")
            found.append(
                Item(
                    id=columns.identity(row, number, taken, where, "idx", "id", "unique_id"),
                    fields={"question": question, "answer": self.label(row, where)},
                    text=question,
                )
            )
        return found

    def asked(self, item: Item, family: Family, profile: Profile) -> Asked:
        return Asked(Sampling(temperature=0.0), max_tokens=2048)

    def prompt(self, item: Item, family: Family, profile: Profile, earlier: tuple[str, ...]) -> Prompt:
        turns = _turns(item.fields["question"], family)
        return raw(family, turns) if profile == "fusechat3" else Prompt(messages=turns)

    def grade(self, answers: Sequence[Answer], profile: Profile, tools: Tools) -> list[Grade]:
        scorer = MathScorer(tools.limits, tools.workers)
        items = [Judged({"answer": answer.item.fields["answer"]}, answer.texts[-1]) for answer in answers]
        scores = scorer.score(items)
        # The verifier doubts whether the text stands by some answers, and of "9 * 2 = 18", which side is the answer.
        # Judged alone in a box, they get a verdict; of a calculation, its result.
        doubted = {index: score for index, score in enumerate(scores) if _reason(score) in (_UNCLEAR, _EQUATION)}
        meant = [replace(items[index], text=rf"\boxed{{{_meant(score)}}}") for index, score in doubted.items()]
        for (index, first), score in zip(doubted.items(), scorer.score(meant), strict=True):
            scores[index] = replace(score, extracted=first.extracted)
        return [_grade(score) for score in scores]

    def score(self, rows: pl.DataFrame, weights: Float[np.ndarray, "N"]) -> float:
        return self.scale * weighted_mean(rows["score"].to_numpy(), weights)


def _turns(question: str, family: Family) -> tuple[dict[str, str], ...]:
    if family in _WITH_SYSTEM_TURN:
        return {"role": "system", "content": SENTENCE}, {"role": "user", "content": question}
    # Gemma's template takes no system turn; of another's nobody knows.
    return ({"role": "user", "content": f"{question}\n{SENTENCE}"},)


def _reason(score: Score) -> str:
    return (score.detail or "").partition(":")[0]


def _meant(score: Score) -> str:
    answer = score.extracted or ""
    calculation, _, result = answer.rpartition("=")
    return result if _reason(score) == _EQUATION and _NUMBERS.fullmatch(calculation) else answer


def _grade(score: Score) -> Grade:
    """What cannot be compared (a rounded value, say) is wrong, and counted."""
    if score.verdict == "unknown":
        reason = "unanswered" if score.detail == "no_final_answer" else "unknown"
        return Grade(0.0, score.extracted, f"{reason}: {score.detail}")
    return Grade(float(score.verdict == "correct"), score.extracted, score.detail)
