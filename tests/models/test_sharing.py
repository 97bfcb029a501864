"""Tokens computed once and used twice: both maps and their derivatives, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejax.models.decoder.prefix_sharing import SharedPrefixes, collect, spread


@st.composite
def sharings(draw):
    """A row in which some slots share what is computed, some computed tokens are filling, and some slots padding."""
    slots = draw(st.integers(1, 12))
    most = draw(st.sampled_from([2, 3]))
    first, others, source = [], [], []
    for slot in range(slots):
        open_ = [token for token, found in enumerate(others) if len(found) < most - 1]
        if open_ and draw(st.booleans()):
            token = draw(st.sampled_from(open_))
            others[token].append(slot)
        else:
            token = len(first)
            first.append(slot)
            others.append([])
        source.append(token)
    length, computed = 13, draw(st.sampled_from([12, 13]))
    filling = [length] * (computed - len(first))
    second, third = ([found[i] if len(found) > i else length for found in others] for i in range(2))
    return SharedPrefixes(
        jnp.array([first + filling]),
        jnp.array([second + filling]),
        jnp.array([source + [computed] * (length - slots)]),
        jnp.array([third + filling]) if most == 3 else None,
    )


def matrix(shared: SharedPrefixes) -> np.ndarray:
    """Which slots take which computed token, [L, C]."""
    return (shared.source[0][:, None] == np.arange(shared.first.shape[1])).astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(sharings(), st.integers(0, 100))
def test_spread_and_its_derivative(shared, seed):
    x = np.random.default_rng(seed).normal(size=(1, shared.first.shape[1], 2, 3)).astype(np.float32)
    found, vjp = jax.vjp(lambda x: spread(x, shared), jnp.asarray(x))
    np.testing.assert_array_equal(found[0], np.einsum("lc,cab->lab", matrix(shared), x[0]))
    cotangent = np.random.default_rng(seed + 1).normal(size=found.shape).astype(np.float32)
    expected = np.einsum("lc,lab->cab", matrix(shared), cotangent[0])
    np.testing.assert_allclose(vjp(jnp.asarray(cotangent))[0][0], expected, rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(sharings(), st.integers(0, 100))
def test_collect_and_its_derivative(shared, seed):
    slots = np.arange(shared.source.shape[1])
    firsts = (shared.first[0][:, None] == slots).astype(np.float32)
    x = np.random.default_rng(seed).normal(size=(1, len(slots), 2, 3)).astype(np.float32)
    found, vjp = jax.vjp(lambda x: collect(x, shared), jnp.asarray(x))
    np.testing.assert_array_equal(found[0], np.einsum("cl,lab->cab", firsts, x[0]))
    cotangent = np.random.default_rng(seed + 1).normal(size=found.shape).astype(np.float32)
    np.testing.assert_array_equal(vjp(jnp.asarray(cotangent))[0][0], np.einsum("cl,cab->lab", firsts, cotangent[0]))
