"""Distributions of a source over the target's tokens: the worked example, and properties for any table."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejax.fusion.alignment import align
from fusejax.fusion.projection import project
from fusejax.fusion.sparse import add_up
from fusejax.fusion.vocabulary import vocabulary_map
from tests.fusion.example import (
    ROWS,
    SOURCE,
    SOURCE_ENDS,
    SOURCE_TOKENS,
    TARGET,
    TARGET_ENDS,
    TARGET_TOKENS,
    S,
    T,
    tokenize,
)

TABLE = vocabulary_map(SOURCE, TARGET, tokenize, {S[None]: T[None]}).table


def worked_example(tail):
    """Places of the target that have a row -> tokens and probabilities, and the mass."""
    rows = align(SOURCE_ENDS, TARGET_ENDS)[:-1]
    places = np.flatnonzero(rows >= 0)
    top_ids = np.array([[S[piece] for piece in ROWS[row]] for row in rows[places].tolist()], np.uint32)
    top = np.log([list(ROWS[row].values()) for row in rows[places].tolist()])
    after = np.array(SOURCE_TOKENS)[rows[places]], np.array(TARGET_TOKENS)[places]
    ids, probs, mass = project(top_ids, top, *after, TABLE, 3, tail)
    found = {
        place: {TARGET[token]: float(p) for token, p in zip(row, ps, strict=True) if p > 0}
        for place, row, ps in zip(places.tolist(), ids, probs, strict=True)
    }
    return found, mass


def test_the_worked_example():
    found, mass = worked_example("renormalize")
    expected = {
        0: {b" get": 0.736842, b" some": 0.210526, b" use": 0.052632},
        1: {b" some": 0.666667, b" use": 0.333333},
        2: {b" util": 0.930233, b" use": 0.069767},
        4: {b".": 0.78125, b"!": 0.208333, b" some": 0.010417},
    }
    assert found.keys() == expected.keys(), "the place before ization has no row"
    for place, row in expected.items():
        assert found[place] == pytest.approx(row, abs=1e-6)
    np.testing.assert_allclose(mass, [0.95, 0.90, 0.86, 0.96], rtol=1e-6)


def test_the_worked_example_with_its_tail_kept():
    found, mass = worked_example("keep")
    assert found[2] == pytest.approx({b" util": 0.8, b" use": 0.06})
    assert [sum(row.values()) for row in found.values()] == pytest.approx(mass.tolist())


@st.composite
def problems(draw):
    places, width, vocabulary = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(6, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top_ids = np.stack([rng.permutation(vocabulary + 2)[:width] for _ in range(places)]).astype(np.uint32)
    probs = rng.dirichlet(np.full(vocabulary, draw(st.sampled_from([0.1, 1.0]))), places)
    top = -np.sort(-probs, axis=1)[:, :width]
    after = rng.integers(-1, vocabulary, places), rng.integers(0, vocabulary, places)
    table = rng.integers(-1, draw(st.integers(1, vocabulary)), vocabulary).astype(np.int32)
    with np.errstate(divide="ignore"):
        return top_ids, np.log(top).astype(np.float16), *after, table, draw(st.integers(1, 7))


def slowly(top_ids, top, next_source, next_target, table, k, tail):
    """The same, a token at a time, with dictionaries."""
    result = []
    for row, logprobs, real, other in zip(top_ids.tolist(), top.tolist(), next_source, next_target, strict=True):
        probs = np.exp(np.float64(logprobs))
        probs = probs / max(1, probs.sum())
        sums: dict[int, float] = {}
        for token, p in zip(row, probs, strict=True):
            mapped = other if token == real else table[token] if token < len(table) else -1
            if mapped >= 0:
                sums[int(mapped)] = sums.get(int(mapped), 0) + p
        kept = sorted(((-np.float32(p), token) for token, p in sums.items() if np.float32(p) > 0))[:k]
        mass = -sum(p for p, _ in kept)
        result.append({token: -p / (mass if tail == "renormalize" else 1) for p, token in kept})
    return result


@settings(max_examples=300, deadline=None)
@given(problems(), st.sampled_from(["renormalize", "keep"]))
def test_against_dictionaries(problem, tail):
    ids, probs, mass = project(*problem, tail)
    assert (ids.dtype, probs.dtype, mass.dtype) == (np.int32, np.float32, np.float32)
    assert ids.shape == probs.shape == (len(problem[0]), problem[-1])
    for row, ps, expected in zip(ids.tolist(), probs.tolist(), slowly(*problem, tail), strict=True):
        assert {token: p for token, p in zip(row, ps, strict=True) if p > 0} == pytest.approx(expected, rel=1e-5)
    assert (mass >= 0).all() and (mass <= 1).all() and (np.diff(probs, axis=1) <= 0).all()
    total = np.where(mass > 0, 1, 0) if tail == "renormalize" else mass
    np.testing.assert_allclose(probs.sum(axis=1), total, rtol=1e-5)
    assert (ids[probs == 0] == 0).all()


@settings(max_examples=100, deadline=None)
@given(problems(), st.randoms())
def test_the_order_of_the_source_tokens_does_not_matter(problem, random):
    top_ids, top, *rest = problem
    order = random.sample(range(top.shape[1]), top.shape[1])
    ids, probs, mass = project(*problem, "keep")
    others = project(top_ids[:, order], top[:, order], *rest, "keep")
    np.testing.assert_array_equal(ids, others[0])
    np.testing.assert_allclose(probs, others[1], rtol=1e-6)
    np.testing.assert_allclose(mass, others[2], rtol=1e-6)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_a_source_with_the_targets_tokenizer_is_itself(problem):
    top_ids, top, next_source, *_ = problem
    table = np.arange(top_ids.max() + 1, dtype=np.int32)
    ids, probs, _ = project(top_ids, top, next_source, next_source, table, top.shape[1], "keep")
    for row, logprobs, found, ps in zip(top_ids, top, ids, probs, strict=True):
        p = np.exp(logprobs.astype(np.float64))
        p = p / max(1, p.sum())
        expected = {int(token): value for token, value in zip(row, p, strict=True) if np.float32(value) > 0}
        assert {int(i): v for i, v in zip(found, ps, strict=True) if v > 0} == pytest.approx(expected, rel=1e-5)


def test_log_probabilities_of_16_bits_that_add_up_to_more_than_1():
    top = np.log(np.array([[0.56, 0.44]])).astype(np.float16)
    assert np.exp(top.astype(np.float64)).sum() > 1
    _, probs, mass = project(
        np.array([[0, 1]]), top, np.array([-1]), np.array([-1]), np.array([1, 0], np.int32), 2, "keep"
    )
    assert mass[0] == pytest.approx(1) and mass[0] <= 1 and probs.sum() == pytest.approx(1)


def test_nothing_can_be_kept():
    table = np.array([-1, -1], np.int32)
    for tail in ("renormalize", "keep"):
        ids, probs, mass = project(
            np.array([[0, 7]]), np.array([[-1.0, -2.0]]), np.array([-1]), np.array([3]), table, 2, tail
        )
        assert (ids == 0).all() and (probs == 0).all() and (mass == 0).all()


def test_ids_of_a_padded_head_are_left_out():
    """A head can have more rows than the tokenizer has tokens."""
    table = np.array([5, 6], np.int32)
    ids, probs, mass = project(
        np.array([[1, 2**31 + 7]], np.uint32), np.log([[0.5, 0.25]]), np.array([-1]), np.array([0]), table, 2, "keep"
    )
    assert ids.tolist() == [[6, 0]] and probs.tolist() == [[0.5, 0]] and mass.tolist() == [0.5]


def test_the_end_of_the_turn():
    """The source's end of turn is the target's, as the real next token and among the others."""
    end = np.array([[S[None], S[b"."]]])
    top = np.log([[0.75, 0.125]])
    for after in ((S[None], T[None]), (S[b"."], T[b"."])):
        ids, probs, _ = project(end, top, *map(np.atleast_1d, after), TABLE, 2, "keep")
        assert ids.tolist() == [[T[None], T[b"."]]] and probs.tolist() == [pytest.approx([0.75, 0.125])]


def test_no_places():
    empty = np.zeros((0, 3), np.uint32), np.zeros((0, 3), np.float16), np.zeros(0, int), np.zeros(0, int)
    ids, probs, mass = project(*empty, TABLE, 2, "renormalize")
    assert ids.shape == probs.shape == (0, 2) and mass.shape == (0,)


def test_equally_likely_ids():
    ids, probs = add_up(np.array([[9, 4, 6, 4]]), np.array([[0.25, 0.125, 0.25, 0.125]]), 2)
    assert ids.tolist() == [[4, 6]] and probs.tolist() == [[0.25, 0.25]]
