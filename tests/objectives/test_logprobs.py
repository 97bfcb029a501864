"""The chunked projection against the dense computation, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejax.objectives.logprobs import Projection, target_logprobs, target_logprobs_vjp


def dense_logprobs(hidden, head, tokens, loss_mask, softcap):
    logits = jnp.einsum("bld,vd->blv", hidden[:, :-1], head)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.where(loss_mask, jnp.pad(logprobs, ((0, 0), (1, 0))), 0.0)


def case(seed, rows, length, width=16, vocabulary=37, share=0.5):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, length, width)).astype(np.float32)
    head = rng.normal(size=(vocabulary, width)).astype(np.float32)
    tokens = rng.integers(0, vocabulary, (rows, length))
    mask = rng.random((rows, length)) < share
    mask[:, 0] = False
    return hidden, head, tokens, mask


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 3),
    length=st.integers(2, 20),
    chunk_tokens=st.integers(1, 70),
    chunk_vocab=st.integers(1, 50),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    softcap=st.sampled_from([None, 3.0]),
    padding=st.integers(0, 12),
)
def test_values_and_gradients_equal_the_dense_computation(
    seed, rows, length, chunk_tokens, chunk_vocab, share, softcap, padding
):
    """Also where the vocabulary, or the tokens, are not a multiple of their chunk; gradients are added to others.

    Rows beyond the vocabulary have no part in it, whatever they hold.
    """
    hidden, head, tokens, mask = case(seed, rows, length, share=share)
    rng = np.random.default_rng(seed + 1)
    weights = rng.normal(size=tokens.shape).astype(np.float32)
    padded = np.concatenate([head, 9 * rng.normal(size=(padding, head.shape[1])).astype(np.float32)])
    before = rng.normal(size=padded.shape).astype(np.float32)
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    chunks = {"chunk_tokens": chunk_tokens, "chunk_vocab": chunk_vocab}
    projection = Projection(softcap, **chunks, vocab_size=len(head) if padding else None)

    @jax.jit
    def ours(hidden, head):
        logprobs, residuals = target_logprobs(hidden, head, tokens, mask, projection)
        return logprobs, *target_logprobs_vjp(residuals, head, jnp.asarray(weights), jnp.asarray(before), projection)

    theirs, vjp = jax.vjp(lambda *a: dense_logprobs(*a, tokens, mask, softcap), hidden, head)
    d_hidden, d_head = vjp(weights)
    logprobs, our_d_hidden, our_d_head = ours(hidden, padded)
    expected = (theirs, d_hidden, d_head + before[: len(head)])
    for our, their in zip((logprobs, our_d_hidden, our_d_head[: len(head)]), expected, strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=2e-5)
    np.testing.assert_array_equal(our_d_head[len(head) :], before[len(head) :])


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_device_whose_ids_are_all_padding(softcap):
    """Five ids on four devices, two on each: the last has none, and the one before it has one."""
    hidden, head, tokens, mask = case(3, 2, 12, vocabulary=5)
    parts = np.concatenate([head, np.zeros((3, 16), np.float32)]).reshape(4, 2, 16)
    projection = Projection(softcap, tensor="tensor", vocab_size=5)

    def device(part):
        logprobs, residuals = target_logprobs(
            jnp.asarray(hidden), part, jnp.asarray(tokens), jnp.asarray(mask), projection
        )
        return logprobs, *target_logprobs_vjp(
            residuals, part, jnp.ones_like(logprobs), jnp.zeros_like(part), projection
        )

    logprobs, d_hidden, d_head = jax.vmap(device, axis_name="tensor")(jnp.asarray(parts))
    theirs, vjp = jax.vjp(lambda *a: dense_logprobs(*a, tokens, mask, softcap), hidden, head)
    for found, expected in zip((logprobs[2], d_hidden[2]), (theirs, vjp(jnp.ones_like(theirs))[0]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(d_head.reshape(8, 16)[:5], vjp(jnp.ones_like(theirs))[1], rtol=1e-4, atol=2e-5)
    np.testing.assert_array_equal(d_head.reshape(8, 16)[5:], 0)


def test_bfloat16_accumulates_in_float32():
    hidden, head, tokens, mask = case(1, 2, 64, width=256)
    half = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    ours, _ = target_logprobs(*half, jnp.asarray(tokens), jnp.asarray(mask), Projection())
    exact = dense_logprobs(*(jnp.asarray(x, jnp.float32) for x in half), tokens, mask, None)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, atol=1e-3)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_full_logits_never_exist(gradient):
    """Neither the forward nor the backward program holds an array of all tokens by all words."""
    rows, length, vocabulary = 2, 512, 4096
    hidden, head, tokens, mask = case(2, rows, length, vocabulary=vocabulary)
    projection = Projection(chunk_tokens=64, chunk_vocab=512)
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)

    def passes(hidden, head, total):
        logprobs, residuals = target_logprobs(hidden, head, tokens, mask, projection)
        return target_logprobs_vjp(residuals, head, logprobs, total, projection) if gradient else logprobs

    memory = jax.jit(passes).lower(hidden, head, head).compile().memory_analysis()
    assert memory.temp_size_in_bytes < rows * length * vocabulary * 4 / 4
