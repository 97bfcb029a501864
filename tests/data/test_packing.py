"""Properties of the packing plan, for any lengths, seed and sizes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejax.common.cli import UserError
from fusejax.data import packing
from fusejax.data.packing import PackingPlan, best_fit_decreasing, num_steps, plan_eval


@st.composite
def problems(draw):
    row_length = draw(st.integers(1, 64))
    lengths = draw(st.lists(st.integers(1, row_length), min_size=1, max_size=120))
    options = {
        "batch_size": draw(st.integers(1, len(lengths))),
        "row_length": row_length,
        "max_examples_per_row": draw(st.integers(1, 8)),
        "seed": draw(st.integers(0, 3)),
    }
    return np.array(lengths), options


@settings(max_examples=300, deadline=None)
@given(problems(), st.integers(1, 3))
def test_steps_are_whole_and_epochs_hold_each_example_once(problem, epochs):
    lengths, options = problem
    plan, batch_size = PackingPlan(lengths, **options), options["batch_size"]
    steps = [plan.rows(step) for step in range(num_steps(len(lengths), batch_size, epochs))]
    seen = []
    for rows in steps:
        assert sum(map(len, rows)) == batch_size and all(rows)
        assert max(map(len, rows)) <= options["max_examples_per_row"]
        assert max(lengths[row].sum() for row in rows) <= options["row_length"]
        seen.append(Counter(example for row in rows for example in row))
    # Whatever steps lie wholly inside an epoch have no example twice, and what they leave is in the border steps.
    n = len(lengths)
    for epoch in range(epochs):
        first, last = -(-epoch * n // batch_size), (epoch + 1) * n // batch_size
        inside = sum(seen[first:last], Counter())
        assert not inside or max(inside.values()) == 1
    total = sum(seen, Counter())
    extra = len(steps) * batch_size - epochs * n
    assert all(epochs <= total[i] <= epochs + 1 for i in range(n)) and sum(total.values()) == epochs * n + extra


@settings(max_examples=200, deadline=None)
@given(problems(), st.data())
def test_each_of_several_lengths_has_its_limit(problem, data):
    lengths, options = problem
    more = [data.draw(st.integers(length, 2 * length)) for length in lengths.tolist()]
    limits = (options.pop("row_length"), data.draw(st.integers(max(more), 128)))
    both, batch_size = np.stack([lengths, more], axis=1), options["batch_size"]
    plan = PackingPlan(both, row_length=limits, **options)
    steps = [plan.rows(step) for step in range(num_steps(len(lengths), batch_size, 2))]
    assert all(sum(map(len, rows)) == batch_size for rows in steps)
    assert all((both[row].sum(axis=0) <= limits).all() for rows in steps for row in rows)
    rows = plan_eval(both, row_length=limits, max_examples_per_row=options["max_examples_per_row"])
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all((both[row].sum(axis=0) <= limits).all() for row in rows)


def test_a_second_length_is_used_to_the_full():
    """Pairs that share much and pairs that share nothing lie together, so that rows are full by both measures."""
    lengths = np.array([[6, 6], [2, 6]] * 40)
    plan = PackingPlan(lengths, batch_size=8, row_length=(8, 12), max_examples_per_row=4, seed=0)
    assert [len(plan.rows(step)) for step in range(10)] == [4] * 10
    with pytest.raises(UserError, match="rows of 12 tokens cannot hold the longest example, 13 tokens"):
        PackingPlan(np.array([[8, 13]]), batch_size=1, row_length=(8, 12), max_examples_per_row=4, seed=0)


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(0, 50))
def test_a_step_needs_only_its_number(problem, step):
    lengths, options = problem
    plan = PackingPlan(lengths, **options)
    for earlier in range(step):
        plan.rows(earlier)
    assert plan.rows(step) == PackingPlan(lengths, **options).rows(step)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_eval_holds_every_example_once(problem):
    lengths, options = problem
    limits = {name: options[name] for name in ("row_length", "max_examples_per_row")}
    rows = plan_eval(lengths, **limits)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= options["row_length"] for row in rows)
    assert all(1 <= len(row) <= options["max_examples_per_row"] for row in rows)


def test_stream_follows_the_permutations():
    plan = PackingPlan(np.ones(10, int), batch_size=4, row_length=4, max_examples_per_row=4, seed=0)
    steps = [[i for row in plan.rows(step) for i in row] for step in range(5)]  # two epochs exactly
    assert Counter(i for step in steps for i in step) == dict.fromkeys(range(10), 2)
    border = set(range(10)) - set(steps[0] + steps[1])
    assert border <= set(steps[2])  # the third step ends the first epoch and begins the second
    assert steps[0] != steps[3]


def test_seeds_and_epochs_differ():
    lengths = np.arange(1, 101)
    options = {"batch_size": 10, "row_length": 100, "max_examples_per_row": 6}
    orders = [
        tuple(map(tuple, PackingPlan(lengths, seed=seed, **options).rows(step)))
        for seed, step in ((0, 0), (1, 0), (0, 1), (0, 10))
    ]
    assert len(set(orders)) == 4


def test_order_is_fixed_for_good():
    """A resumed run relies on this: a change here is a change of the data order of every run there is."""
    plan = PackingPlan(np.arange(1, 21), batch_size=5, row_length=32, max_examples_per_row=3, seed=7)
    assert [plan.rows(0), plan.rows(5)] == [[[9, 8, 7], [19, 11]], [[9, 8, 7], [17, 13]]]


def test_rows_are_full():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6, 0.7, 3000).astype(int), 5, 2048)
    plan = PackingPlan(lengths, batch_size=128, row_length=4096, max_examples_per_row=256, seed=0)
    steps = [plan.rows(step) for step in range(num_steps(len(lengths), 128, 1))]
    tokens = sum(lengths[row].sum() for rows in steps for row in rows)
    assert tokens / (4096 * sum(map(len, steps))) > 0.985


def test_batches_are_fair():
    """Planning a window together must not gather the long examples in some of its steps, early or late."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6, 0.7, 128 * 32).astype(int), 5, 2048)
    trends = []
    for seed in range(8):
        plan = PackingPlan(lengths, batch_size=128, row_length=4096, max_examples_per_row=256, seed=seed)
        means = [np.mean([lengths[i] for row in plan.rows(step) for i in row]) for step in range(32)]
        assert np.std(means) <= lengths.std() / np.sqrt(128)  # no more than chance alone would give
        trends.append(np.corrcoef(means, np.arange(32))[0, 1])
    assert abs(np.mean(trends)) < 0.25


def test_epochs_put_others_together():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(6, 0.7, 1280).astype(int), 5, 2048)
    plan = PackingPlan(lengths, batch_size=128, row_length=4096, max_examples_per_row=256, seed=0)
    first, second = ({frozenset(row) for step in range(10) for row in plan.rows(e * 10 + step)} for e in range(2))
    assert len(first & second) < 0.1 * len(first)


def test_windows_beat_steps_alone_and_never_lose(monkeypatch):
    rng = np.random.default_rng(1)
    lengths = rng.integers(10, 500, 900)
    for batch_size in (4, 16, 64):
        counts = {}
        for window in (1, 32):
            monkeypatch.setattr(packing, "WINDOW", window)
            plan = PackingPlan(lengths, batch_size=batch_size, row_length=1024, max_examples_per_row=64, seed=0)
            counts[window] = sum(len(plan.rows(step)) for step in range(900 // batch_size))
        assert counts[32] <= counts[1]


def test_best_fit_decreasing():
    lengths = np.array([4, 8, 1, 4, 2, 1])
    assert best_fit_decreasing(lengths, range(6), 10, 9) == [[1, 4], [0, 3, 2, 5]]
    assert best_fit_decreasing(lengths, [2, 5, 0], 10, 2) == [[0, 2], [5]]
    assert best_fit_decreasing(lengths, [], 10, 2) == []


def test_num_steps():
    assert num_steps(94_539, 128, 3) == 2216 and num_steps(64_128, 128, 1) == 501  # the published runs
    assert num_steps(5, 5, 1) == 1 and num_steps(6, 5, 1) == 2
    with pytest.raises(UserError, match="batch_size 5 is more than the data set's 4 examples"):
        num_steps(4, 5, 10)


def test_mistakes():
    options = {"max_examples_per_row": 4, "seed": 0}
    with pytest.raises(UserError, match="batch_size 3"):
        PackingPlan(np.array([1, 2]), batch_size=3, row_length=8, **options)
    with pytest.raises(UserError, match=r"rows of 8 tokens cannot hold the longest example, 9 tokens"):
        PackingPlan(np.array([1, 9]), batch_size=1, row_length=8, **options)
    with pytest.raises(UserError, match=r"rows of 8 tokens"):
        plan_eval(np.array([1, 9]), row_length=8, max_examples_per_row=4)
