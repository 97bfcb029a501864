"""Verdicts on mathematical answers: what plain Math-Verify gets wrong, and its authors' labels on GSM8K."""

import gzip
import json
import os
import time
from pathlib import Path

import pytest

from data_pipeline.domains import VerifierLimits
from data_pipeline.scoring.math import math_answers, math_worker
from data_pipeline.scoring.math.scorer import MathScorer, compare_exactly
from data_pipeline.scoring.scorer import Item


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{12} and then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}} is it", r"\{1, 2\}"),
        (r"\boxed{3} wait, \boxed{\frac{1}{", "3"),  # Cut off: the last box that closes.
        ("He has 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,234\n", "1,234"),
        ("She pays $5.\nA: 12.50", "12.50"),
        ("**Final Answer: 9**", "9"),
        ("The answer is $x+1$.", "x+1"),
        ("So the answer is 42.", "42"),
        ("所以答案是 15。", "15"),
        ("It costs $3 and then $1,250.75 in all.", "$1,250.75"),
        ("That leaves -5", "-5"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_extract(text: str, answer: str | None):
    found = math_answers.extract(text)
    assert (found and found.answer) == answer


@pytest.mark.parametrize(
    ("text", "answer", "trust"),
    [
        ("The answer is 10^5.", "10^5", "stated"),
        ("The answer is 2x + 3.", "2x + 3", "stated"),
        (r"The answer is \(x+1\), as it must.", "x+1", "stated"),
        ("a: 5 apples\nb: 6 pears\nSo the answer is 11", "11", "stated"),
        ("The answer is 12.\nNo, wait.\nA: 18", "18", "stated"),
        ("Answer:\n7", "7", "only"),  # A marker's answer stands on its line.
        ("Answer: The total is 18 dollars.", "18 dollars", "only"),
        ("#### 18 dollars", "18 dollars", "stated"),
        ("The answer is $5 per hour times 3 = $15.", "$15", "guess"),
        ("12 - 5 = 7", "12 - 5 = 7", "stated"),
        ("So 12 - 5 leaves 7", "7", "guess"),
        ("The answer is at most 7.", "7", "guess"),
        (r"It is $\boxed{7}$, or rather 8.", "7", "guess"),
        (r"First $\boxed{7}$, then $\boxed{8}$.", "8", "guess"),
        (r"It is $\boxed{7}$ or $\boxed{8}$.", "7, 8", "stated"),
        (r"It is $\boxed{7}$. The final answer is 8.", "8", "likely"),
        (r"Hence $x=\frac{1}{2}$.", r"x=\frac{1}{2}", "likely"),
        ("I have 3 1/2", "3 1/2", "only"),
        ("so it equals 2^{10}", "2^{10}", "likely"),
        ("so it equals 2**10", "2**10", "likely"),
        ("that makes 2**10", None, None),
        ("that is 5x", None, None),
    ],
)
def test_extract_knows_how_sure_it_is(text: str, answer: str | None, trust: str | None):
    assert (math_answers.extract(text) or (None, None)) == (answer, trust)


@pytest.mark.parametrize(
    "text", ["\n" * 50_000 + "x", r"\boxed{" * 20_000, "A:" + " " * 50_000, "1 " * 10_000, "answer is " * 9_000]
)
def test_extract_takes_linear_time(text: str):
    started = time.process_time()
    math_answers.extract(text)
    assert time.process_time() - started < 1


def verdict(gold: str, found: str) -> str:
    """Both steps, without a process."""
    decided = compare_exactly(gold, found)
    return (decided or math_worker.verify((gold, found)))[0]


@pytest.mark.parametrize(
    ("gold", "found"),
    [
        ("18", "18.0"),
        ("1000", "1,000"),
        ("1000", r"1\,000"),
        ("1000", "1{,}000"),
        ("5", r"\$5"),
        ("12.5", "$12.50"),
        (r"\frac12", "0.5"),
        (r"\frac{1}{2}", "1/2"),
        (r"1\frac{1}{2}", "3/2"),
        ("50%", "0.5"),
        (r"50\%", "50"),
        ("A", r"\textbf{(A)}"),
        ("90", r"90^\circ"),
        (r"[0,1)", r"0 \le x < 1"),
        (r"0 \le x < 1", r"[0,1)"),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"\text{Evelyn}", "evelyn"),
        ("2^{10}", "1024"),
        (r"3\times10^{4}", "30000"),
        ("3 1/2", "7/2"),
        (r"3\,\frac12", "3.5"),
        ("1000000", "1e6"),
        ("1e6", "10^6"),
        ("18", "18 dollars"),
        ("18", r"18\text{ cm}^2"),
        ("B", "(B) 5"),
        ("B", r"\textbf{(B)}\ 5"),
        ("5", "(B) 5"),
        ("0.05", "5%"),
        (r"\log_2 8", "3"),
        ("12 345", "12345"),
    ],
)
def test_correct(gold: str, found: str):
    assert verdict(gold, found) == "correct"


@pytest.mark.parametrize(
    ("gold", "found"),
    [
        ("18", "-18"),
        ("18", "180"),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
        ("0.0000001", "0.0000002"),
        ("10^{-7}", r"2\times10^{-7}"),
        (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
        (r"1-\frac{1}{e}", r"1+\frac{1}{e}"),
        (r"\sqrt{2}", r"\sqrt{3}"),
        ("x+1", "x+2"),
        (r"\text{even}", r"\text{odd}"),
        (r"[0,1)", r"[0,1]"),
        ("3 1/2", "31/2"),
        ("5%", "500"),
        ("B", "(C) 5"),
        ("1e6", "10^5"),
        ("5 km", "5 m"),
        (r"5\text{ km}", r"5\text{ m}"),
    ],
)
def test_wrong(gold: str, found: str):
    assert verdict(gold, found) == "wrong"


@pytest.mark.parametrize(
    ("gold", "found"),
    [
        (r"\frac{1}{3}", "0.3333"),  # Rounded: who can tell whether that was allowed.
        ("33.33", r"\frac{100}{3}"),
        (r"\{1,2\}", "x^2+1"),  # A set against an expression.
        ("7", r"\text{seven apples}"),
        ("2 3", "23"),  # Two answers, or one written badly.
        (r"2\sqrt3", "3.46"),
        ("0.3", r"\frac{1}{3}"),
        ("no solution", "None"),
        ("B", "5"),
        ("18", "1800 cents"),
        ("5", "5 m"),
        ("0.5", r"0.5\%"),
        ("(1,2)", r"\{1,2\}"),
        ("1010_2", "1010_3"),
        ("7", "either 6 apples or 7 pears"),
    ],
)
def test_unknown(gold: str, found: str):
    assert verdict(gold, found) == "unknown"


def test_scorer_asks_the_worker_only_where_needed():
    scorer = MathScorer(VerifierLimits(timeout_seconds=20), workers=1)
    pairs = [("7", r"\boxed{7}"), ("A: 7", "A: 8"), (r"\sqrt{8}", r"\boxed{2\sqrt{2}}"), ("7", "no idea")]
    scores = scorer.score([Item({"answer": gold}, text) for gold, text in pairs])
    assert [(score.verdict, score.detail) for score in scores] == [
        ("correct", "same_text"),
        ("wrong", "other_number"),
        ("correct", "same_value"),
        ("unknown", "no_final_answer"),
    ]
    assert scores[2].extracted == r"2\sqrt{2}"


def test_a_verdict_counts_only_where_the_answer_is_clear():
    scorer = MathScorer(VerifierLimits(), workers=1)
    cases = {
        ("7", "There are 8 left."): "wrong",
        ("7", "Of 15 he gave away 7, so 8 are left."): "unknown",
        ("8", "Of 15 he gave away 7, so 8 are left."): "unknown",
        ("x+1", "There are 8 left."): "unknown",
        ("15", "The answer is $5 per hour times 3 = $15."): "unknown",
        ("20", "The answer is $5 per hour times 3 = $15."): "unknown",
        ("20", "The answer is $15."): "wrong",
    }
    items = [Item({"answer": gold}, text) for gold, text in cases]
    assert dict(zip(cases, [score.verdict for score in scorer.score(items)], strict=True)) == cases


@pytest.mark.skipif("FUSEJAX_DATA" not in os.environ, reason="FUSEJAX_DATA names no directory with GSM8K solutions")
def test_gsm8k_labels():
    items, labels = [], []
    with gzip.open(Path(os.environ["FUSEJAX_DATA"]) / "math_gsm8k_model_solutions.jsonl.gz") as lines:
        for line in lines:
            problem = json.loads(line)
            for solution in problem.values():
                if isinstance(solution, dict):
                    items.append(Item({"answer": problem["ground_truth"]}, solution["solution"]))
                    labels.append(solution["is_correct"])
    scores = MathScorer(VerifierLimits(), workers=2).score(items)
    agreed = sum((score.verdict == "correct") == label for score, label in zip(scores, labels, strict=True))
    assert len(labels) == 2636
    assert agreed / len(labels) >= 0.99
