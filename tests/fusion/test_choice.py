"""The choice of a source by hand-computed numbers."""

import math

import numpy as np
import pytest

from fusejax.fusion.choice import average, avg_ce, bits_per_byte, min_ce
from fusejax.fusion.projection import project
from tests.fusion.example import REALISED, TEXT

VOCABULARY = np.arange(12, dtype=np.int32)
A = np.array([[7, 3, 9]]), np.array([[5.0, 4, 2]])
B = np.array([[3, 7, 1]]), np.array([[3, 2.5, 0]])
"""Two sources' top three logits at one place of a vocabulary of 12; cross-entropies 1.2 and 0.9."""


def distribution(ids, logits):
    none = np.array([-1])
    return project(ids, logits - np.log(np.exp(logits).sum()), none, none, VOCABULARY, 3, "renormalize")[:2]


def test_bits_per_byte():
    total = np.log(REALISED).sum(keepdims=True)
    assert bits_per_byte(total, np.array([len(TEXT)])) == pytest.approx(0.100659, abs=1e-6)
    assert -total / len(REALISED) == pytest.approx(0.255830, abs=1e-6), "nats per token"


def test_finer_tokens_do_not_win():
    """The same sum over twice as many tokens halves a cross-entropy per token; the one per byte is what it was."""
    total, num_bytes = np.array([-6.0, -5.9]), np.array([20, 20])
    assert np.argmin(-total / np.array([10, 5])) == 0
    assert min_ce(bits_per_byte(total, num_bytes)[None]).tolist() == [1]


def test_min_ce():
    table = np.array([[1.2, 0.9], [0.5, 0.5], [np.inf, 3], [2, np.inf]])
    assert min_ce(table).tolist() == [1, 0, 1, 0]


def test_two_sources():
    ids, probs = distribution(*A)
    assert dict(zip(ids[0].tolist(), probs[0].tolist(), strict=True)) == pytest.approx(
        {7: 0.705385, 3: 0.259496, 9: 0.035119}, abs=1e-6
    )
    ids, probs = distribution(*B)
    assert dict(zip(ids[0].tolist(), probs[0].tolist(), strict=True)) == pytest.approx(
        {3: 0.603749, 7: 0.366192, 1: 0.030059}, abs=1e-6
    )
    assert min_ce(np.array([[1.2, 0.9]])).tolist() == [1]


def test_avg_ce():
    weights = avg_ce(np.array([[1.2, 0.9], [np.inf, 0.9], [700, 1400]]))
    odds = math.exp(0.9 - 1.2)
    np.testing.assert_allclose(weights, [[odds / (1 + odds), 1 / (1 + odds)], [0, 1], [1, math.exp(-700)]])


def test_the_average_of_two_sources():
    (a, p), (b, q) = distribution(*A), distribution(*B)
    weights = np.array([[0.25], [0.75]])
    ids, probs = average(np.stack([a, b]), np.stack([p, q]), weights, 4)
    expected = {3: 0.25 * 0.259496 + 0.75 * 0.603749, 7: 0.25 * 0.705385 + 0.75 * 0.366192, 1: 0.75 * 0.030059}
    expected[9] = 0.25 * 0.035119
    assert dict(zip(ids[0].tolist(), probs[0].tolist(), strict=True)) == pytest.approx(expected, abs=1e-6)
