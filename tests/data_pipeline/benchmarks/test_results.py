"""What results, table and page say of grades."""

import json

import numpy as np
import polars as pl
import pytest

from data_pipeline.benchmarks import page, results, table
from data_pipeline.benchmarks.benchmark import Answer, Grade, Item
from data_pipeline.benchmarks.grading import frame
from data_pipeline.benchmarks.intervals import Difference, Interval
from data_pipeline.benchmarks.results import Pair, Result
from tests.data_pipeline.benchmarks.sums import Sums


def graded(scores: list[float | None], reasons: list[tuple[str, ...]] | None = None, details=None) -> pl.DataFrame:
    answers = [
        Answer(Item(f"q{place}", {}), 0, ("text",), reasons[place] if reasons else ("stop",), 7)
        for place in range(len(scores))
    ]
    details = details or [None] * len(scores)
    return frame(answers, [Grade(score, detail=detail) for score, detail in zip(scores, details, strict=True)])


def result(model: str, value: float, **changes) -> Result:
    whole = {
        "model": model, "benchmark": "gsm8k", "title": "GSM8K", "scale": 100.0,
        "score": Interval(value, value - 2, value + 2, 1.0), "items": 1319, "answers": 1319, "tokens": 200.0,
        "counts": {"errors": 0, "truncated": 0, "unanswered": 0, "unknown": 0, "ungraded": 0}, "judge": None,
        "data_sha256": "d", "settings_sha256": "s",
    }  # fmt: skip
    return Result(**(whole | changes))


def test_answers_that_are_not_what_they_should_be_are_counted():
    rows = graded(
        [1.0, 0.0, 0.0, 0.0, None],
        [("stop",), ("length",), ("error",), ("stop", "length"), ("stop", "error")],
        [None, "unanswered", "unknown: import", None, "unparsed"],
    )
    assert results.counts(rows) == {"errors": 2, "truncated": 2, "unanswered": 1, "unknown": 1, "ungraded": 1}


def test_what_has_no_grade_is_in_no_mean():
    assert Sums().score(graded([1.0, 0.0, None]), np.ones(3)) == 50.0


def test_a_pair_is_of_the_items_that_both_have():
    mine, other = graded([1.0, 1.0, 0.0]), graded([0.0, 1.0])
    found = results.pair(Sums(), mine, other, 100, 0)
    assert found is not None and (found.value, found.items) == (50.0, 2)
    assert results.pair(Sums(), mine, other.filter(pl.lit(False)), 100, 0) is None
    # A judge gave no grade to what the other has right.
    found = results.pair(Sums(), graded([1.0, None, 1.0]), graded([1.0, 1.0, 0.0]), 100, 0)
    assert found is not None and (found.value, found.items) == (50.0, 2)


def test_the_error_of_a_difference_is_of_both_numbers():
    score = Interval(80.0, 78.0, 82.0, 1.0)
    found = results.beside(Sums(), score, 1319, "FuseChat-Llama-3.1-8B-Instruct", False, False)
    theirs = 100 * np.sqrt(0.88 * 0.12 / 1319)
    assert found is not None and found.value == 88.0 and found.difference is not None
    assert found.difference == pytest.approx((-8.0, -8 - 1.96 * np.hypot(1, theirs), -8 + 1.96 * np.hypot(1, theirs)))


def test_between_two_judges_there_is_no_difference():
    score = Interval(80.0, 78.0, 82.0, 1.0)
    other, same = (results.beside(Sums(), score, 8, "Gemma-2-9B-It", True, each) for each in (False, True))
    assert other is not None and other.difference is None
    assert same is not None and same.difference is not None
    assert results.beside(Sums(), score, 8, None, False, False) is None


def test_a_score_that_is_none_has_no_difference():
    nothing = Interval(*[float("nan")] * 4)
    found = results.beside(Sums(), nothing, 8, "Gemma-2-9B-It", False, False)
    assert found is not None and found.difference is None
    alone = Interval(70.0, *[float("nan")] * 3)
    mine = result("mine", 0, score=alone, beside=results.beside(Sums(), alone, 1, "Gemma-2-9B-It", False, False))
    text = table.markdown([mine], [], [], "clean")
    assert "70.0 [–, –]" in text and "-18.5 [–, –]" in text and "+nan" not in text


def test_what_a_judge_did_not_give_is_told():
    counts = {**result("mine", 0).counts, "ungraded": 3}
    text = table.markdown([result("mine", 50.0, counts=counts, details={"binarised": 1.0})], [], [], "clean")
    assert "3 of 1,319 answers have no grade" in text and "100% of the preferences are letters" in text


def test_the_table_and_the_page():
    beside = results.beside(Sums(), Interval(80.0, 78.0, 82.0, 1.0), 1319, "Gemma-2-9B-It", False, False)
    mine = result(
        "mine", 80.04, beside=beside, caveats=["another grader"], held=3, without_held=Interval(79, 77, 81, 1)
    )
    counts = {**mine.counts, "truncated": 27}
    paper = result("paper", 81.0, counts=counts, held=3)
    pair = Pair("gsm8k", "mine", "paper", Difference(-1.0, -2.5, 0.5, 0.21, 1319))
    text = table.markdown([mine, paper], [pair], ["MT-Bench: it needs a judge"], "clean")
    assert "| GSM8K | 80.0 [78.0, 82.0] | ~88.5 (1) | 81.0 [79.0, 83.0] |" in text
    assert "\n1. another grader\n" in text
    assert "| GSM8K | mine | Gemma-2-9B-It | ~-8.5 [-11.1, -5.9] (1) |" in text
    assert "| GSM8K | mine | paper | -1.0 [-2.5, +0.5] | 0.21 | 1,319 |" in text
    assert "| GSM8K | mine | 3 of 1,319 | 80.0 [78.0, 82.0] | 79.0 [77.0, 81.0] |" in text
    assert "- paper, GSM8K: 27 of 1,319 answers were cut at the limit" in text and "mine, GSM8K: 0" not in text
    assert "- MT-Bench: it needs a judge" in text
    html = page.report([mine, paper], [pair], ["MT-Bench: <needs>"], "clean")
    for shown in ("~88.5 (1)", "another grader", "-1.0 [-2.5, +0.5]", "MT-Bench: &lt;needs&gt;", "Gemma-2-9B-It"):
        assert shown in html


def test_results_are_plain_json():
    nothing = Interval(float("nan"), float("nan"), float("nan"), float("nan"))
    beside = results.Beside("paper", 85.0, (-5.0, -7.0, -3.0))
    found = results.as_json(
        [result("mine", 80.0, beside=beside), result("other", 0.0, score=nothing)], [], {"profile": "clean"}
    )
    assert found["models"]["mine"]["gsm8k"]["less_published"] == {"value": -5.0, "low": -7.0, "high": -3.0}
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["models"]["other"]["gsm8k"]["value"] is None
    assert found["models"]["mine"]["gsm8k"]["low"] == 78.0
