"""Answers of other kinds than their labels, and answers that a text does not stand by: `math_answers.txt`."""

from pathlib import Path

import pytest

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.math.scorer import MathScorer
from data_pipeline.scoring.scorer import Item

Case = tuple[str, str, str]


def read_cases() -> dict[str, list[Case]]:
    """kind -> (verdict, label, text) of each case"""
    cases: dict[str, list[Case]] = {}
    for line in Path(__file__).with_name("math_answers.txt").read_text().splitlines():
        if line.startswith("["):
            found = cases.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            verdict, label, answer = line.split(" | ")
            boxed = rf"The answer is $\boxed{{{answer.removeprefix('= ')}}}$."
            found.append((verdict, label, boxed if answer.startswith("= ") else answer.replace("⏎", "\n")))
    return cases


CASES = read_cases()


@pytest.fixture(scope="module")
def verdicts() -> dict[Case, str | None]:
    cases = [case for found in CASES.values() for case in found]
    scorer = MathScorer(VerifierLimits(timeout_seconds=60), workers=1)
    scores = scorer.score([Item({"answer": label}, text) for _, label, text in cases])
    return {case: score.verdict for case, score in zip(cases, scores, strict=True)}


@pytest.mark.parametrize("kind", CASES)
def test_verdicts_by_kind(kind: str, verdicts: dict[Case, str | None]):
    differing = {case: verdicts[case] for case in CASES[kind] if verdicts[case] != case[0]}
    assert not differing
    assert len(CASES[kind]) >= 5
