"""Intervals against closed forms, and that they depend on nothing but units and seed."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.benchmarks import intervals
from data_pipeline.benchmarks.benchmark import weighted_mean


def rows(scores, units=None, strata=None) -> pl.DataFrame:
    units = units if units is not None else [f"{number:05d}" for number in range(len(scores))]
    return pl.DataFrame({"unit": units, "stratum": strata or [""] * len(scores), "score": scores})


def mean(frame: pl.DataFrame) -> intervals.Score:
    scores = frame["score"].to_numpy()
    return lambda weights: weighted_mean(scores, weights)


def test_of_a_share_it_is_the_binomial_one():
    frame = rows([1.0] * 60 + [0.0] * 140)
    found = intervals.interval(frame, mean(frame), 4000, 0, 1.0)
    error = np.sqrt(0.3 * 0.7 / 200)
    assert found.value == pytest.approx(0.3)
    assert found.error == pytest.approx(error, rel=0.05)
    assert found.low == pytest.approx(0.3 - 1.96 * error, abs=0.006)
    assert found.high == pytest.approx(0.3 + 1.96 * error, abs=0.006)


def test_rows_of_a_unit_stand_or_fall_together():
    """Ten equal samples of each problem say no more than one."""
    once = rows([1.0, 0.0] * 50)
    units = [f"{number // 10:05d}" for number in range(1000)]
    tenfold = rows(np.repeat([1.0, 0.0] * 50, 10), units)
    alone, together = (intervals.interval(each, mean(each), 500, 1, 1.0) for each in (once, tenfold))
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))


def test_strata_keep_their_sizes():
    """Nothing varies where each stratum has one score."""
    frame = rows([1.0] * 5 + [0.0] * 15, strata=["a"] * 5 + ["b"] * 15)
    found = intervals.interval(frame, mean(frame), 50, 0, 1.0)
    assert found.low == found.high == found.value == 0.25


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.randoms())
def test_the_order_of_rows_is_of_no_account(right, random):
    frame = rows([float(each) for each in right])
    shuffled = frame.sample(fraction=1, shuffle=True, seed=random.randrange(100))
    first, second = (intervals.interval(each, mean(each), 20, 3, 1.0) for each in (frame, shuffled))
    assert (first.low, first.high) == pytest.approx((second.low, second.high))


def test_a_model_against_itself_and_a_better_one():
    frame = rows([1.0, 0.0] * 40)
    same = intervals.difference((frame, mean(frame)), (frame, mean(frame)), 200, 0)
    assert (same.value, same.low, same.high, same.p, same.items) == (0.0, 0.0, 0.0, 1.0, 80)
    better = rows([1.0, 1.0] * 30 + [1.0, 0.0] * 10)
    found = intervals.difference((better, mean(better)), (frame, mean(frame)), 1000, 0)
    # Where the two differ is known item by item, so the interval is narrower than of two separate samples.
    error = np.sqrt(0.375 * 0.625 / 80)
    assert found.value == pytest.approx(0.375)
    assert found.low == pytest.approx(0.375 - 1.96 * error, abs=0.02)
    assert found.p == 2 / 1000


def test_where_nothing_varies_the_interval_is_the_binomial_one():
    """None of 40 problems solved does not mean that none ever is; nor does each of them twice."""
    for scores, units in (([0.0] * 40, None), ([0.0] * 80, [f"{number // 2:05d}" for number in range(80)])):
        frame = rows(scores, units)
        found = intervals.interval(frame, mean(frame), 50, 0, 1.0)
        assert (found.low, found.high) == pytest.approx((0.0, 0.0881), abs=1e-4)  # Clopper-Pearson, 0 of 40
    frame = rows([1.0, 1.0, None])
    found = intervals.interval(frame, mean(frame), 50, 0, 1.0)
    assert (found.low, found.high) == pytest.approx((0.025**0.5, 1.0))


def test_one_item_says_nothing():
    frame = rows([0.7])
    found = intervals.interval(frame, mean(frame), 50, 0, 1.0)
    assert found.value == 0.7 and np.isnan(found.low) and np.isnan(found.high)
    right, wrong = rows([1.0, 1.0, 1.0]), rows([0.0, 0.0, 0.0])
    assert intervals.difference((right, mean(right)), (wrong, mean(wrong)), 1000, 0).p == 0.25


def test_few_units_of_many_strata_are_drawn_together():
    """As where a limit leaves one or two questions of each subject."""
    scores = [float(number % 3 == 0) for number in range(100)]
    alone = rows(scores)
    found, expected = (
        intervals.interval(frame, mean(frame), 2000, 0, 1.0)
        for frame in (rows(scores, strata=[f"s{number // 2}" for number in range(100)]), alone)
    )
    assert found.error == pytest.approx(expected.error, rel=0.1)
