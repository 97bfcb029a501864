"""The chunked projection against the dense computation, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusejax.objectives.logprobs import Logprobs, Projection, SoftTargets, target_logprobs, target_logprobs_vjp


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
        cotangent = Logprobs(jnp.asarray(weights))
        return logprobs.target, *target_logprobs_vjp(residuals, head, cotangent, jnp.asarray(before), projection)

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
        ones = Logprobs(jnp.ones_like(logprobs.target))
        return logprobs.target, *target_logprobs_vjp(residuals, part, ones, jnp.zeros_like(part), projection)

    logprobs, d_hidden, d_head = jax.vmap(device, axis_name="tensor")(jnp.asarray(parts))
    theirs, vjp = jax.vjp(lambda *a: dense_logprobs(*a, tokens, mask, softcap), hidden, head)
    for found, expected in zip((logprobs[2], d_hidden[2]), (theirs, vjp(jnp.ones_like(theirs))[0]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(d_head.reshape(8, 16)[:5], vjp(jnp.ones_like(theirs))[1], rtol=1e-4, atol=2e-5)
    np.testing.assert_array_equal(d_head.reshape(8, 16)[5:], 0)


def test_bfloat16_accumulates_in_float32():
    hidden, head, tokens, mask = case(1, 2, 64, width=256)
    half = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(head, jnp.bfloat16)
    (ours, _), _ = target_logprobs(*half, jnp.asarray(tokens), jnp.asarray(mask), Projection())
    exact = dense_logprobs(*(jnp.asarray(x, jnp.float32) for x in half), tokens, mask, None)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, atol=1e-3)


def soft_case(seed, tokens, vocabulary, k=3):
    """Soft targets of distinct ids; at a third of the places there is none, at another third one of mass below 1. The
    last id has no weight, and is the first once more."""
    rng = np.random.default_rng(seed)
    ids = rng.permuted(np.broadcast_to(np.arange(vocabulary), (*tokens.shape, vocabulary)), axis=-1)[..., :k]
    weights = rng.dirichlet(np.ones(k - 1), tokens.shape) * rng.choice([0.0, 0.7, 1.0], tokens.shape)[..., None]
    ids[..., -1], weights = ids[..., 0], np.pad(weights, [(0, 0)] * tokens.ndim + [(0, 1)])
    return SoftTargets(jnp.asarray(ids, jnp.int32), jnp.asarray(weights, jnp.float32))


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    length=st.integers(2, 20),
    chunk_tokens=st.integers(1, 70),
    chunk_vocab=st.integers(1, 50),
    share=st.sampled_from([0.3, 1.0]),
    softcap=st.sampled_from([None, 3.0]),
    padding=st.integers(0, 12),
)
def test_soft_targets_equal_the_dense_computation(seed, length, chunk_tokens, chunk_vocab, share, softcap, padding):
    hidden, head, tokens, mask = case(seed, 2, length, share=share)
    soft = soft_case(seed, tokens, len(head))
    rng = np.random.default_rng(seed + 1)
    cotangent = Logprobs(*(jnp.asarray(rng.normal(size=tokens.shape), jnp.float32) for _ in range(2)))
    padded = np.concatenate([head, 9 * rng.normal(size=(padding, head.shape[1])).astype(np.float32)])
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    chunks = {"chunk_tokens": chunk_tokens, "chunk_vocab": chunk_vocab}
    projection = Projection(softcap, **chunks, vocab_size=len(head) if padding else None)

    def dense(hidden, head):
        each = [dense_logprobs(hidden, head, soft.ids[..., k], mask, softcap) for k in range(3)]
        weighted = sum(logprobs * soft.weights[..., k] for k, logprobs in enumerate(each))
        return Logprobs(dense_logprobs(hidden, head, tokens, mask, softcap), weighted)

    @jax.jit
    def ours(hidden, head):
        logprobs, residuals = target_logprobs(hidden, head, tokens, mask, projection, soft)
        return logprobs, *target_logprobs_vjp(residuals, head, cotangent, jnp.zeros_like(head), projection)

    theirs, vjp = jax.vjp(dense, hidden, head)
    d_hidden, d_head = vjp(cotangent)
    logprobs, our_d_hidden, our_d_head = ours(hidden, padded)
    found = (*logprobs, our_d_hidden, our_d_head[: len(head)])
    for our, their in zip(found, (*theirs, d_hidden, d_head), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=5e-5)
    np.testing.assert_array_equal(our_d_head[len(head) :], 0)


LOGITS = np.array([0.5, -0.2, 0.1, 1.5, -1, 0.3, -0.4, 2, 0, -0.7, 0.2, -0.1])
FUSED = {1: 0.1 * 0.030059, 3: 0.1 * 0.603749, 7: 0.9 + 0.1 * 0.366192}
"""The token 7 with weight 0.9, and a source's distribution with 0.1."""


@pytest.mark.parametrize("chunk_vocab", [5, 12])
def test_a_worked_example(chunk_vocab):
    """The cross entropy of 7 is 1.06592285, the source's 1.43392685; the gradient is that of finite differences in
    float64."""
    assert {token: round(weight, 6) for token, weight in FUSED.items()} == {1: 0.003006, 3: 0.060375, 7: 0.936619}

    def loss(z):
        return sum(FUSED.values()) * np.log(np.exp(z).sum()) - sum(w * z[token] for token, w in FUSED.items())

    assert loss(LOGITS) == pytest.approx(1.10272325, abs=5e-8)  # of weights with six digits
    steps = 1e-5 * np.eye(12)
    slopes = np.array([(loss(LOGITS + step) - loss(LOGITS - step)) / 2e-5 for step in steps])

    hidden = jnp.asarray(LOGITS, jnp.float32)[None, None].repeat(2, axis=1)  # the head of ones makes these the logits
    ids, weights = (jnp.asarray([[[0] * 3, [*values]]]) for values in (FUSED, FUSED.values()))
    mask, projection = jnp.array([[False, True]]), Projection(chunk_vocab=chunk_vocab)
    logprobs, residuals = target_logprobs(
        hidden, jnp.eye(12), jnp.array([[0, 7]]), mask, projection, SoftTargets(ids, weights.astype(jnp.float32))
    )
    assert logprobs.soft is not None
    np.testing.assert_allclose(logprobs.target[0], [0, -1.06592285], atol=5e-7)
    np.testing.assert_allclose(-logprobs.soft[0], [0, 1.10272325], atol=5e-7)
    cotangent = Logprobs(jnp.zeros((1, 2)), -jnp.ones((1, 2)))
    d_hidden, _ = target_logprobs_vjp(residuals, jnp.eye(12), cotangent, jnp.zeros((12, 12)), projection)
    np.testing.assert_allclose(d_hidden[0], [slopes, np.zeros(12)], atol=1.5e-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_soft_target_of_the_token_itself_is_the_token_bit_for_bit(softcap, dtype):
    hidden, head, tokens, mask = (jnp.asarray(x) for x in case(5, 2, 30))
    hidden, head = hidden.astype(dtype), head.astype(dtype)
    soft = SoftTargets(tokens[..., None], jnp.ones((*tokens.shape, 1)))
    projection, start = Projection(softcap, chunk_tokens=9, chunk_vocab=10), jnp.zeros(head.shape)
    weights = jax.random.normal(jax.random.key(0), tokens.shape)

    @jax.jit
    def plain():
        logprobs, residuals = target_logprobs(hidden, head, tokens, mask, projection)
        return logprobs.target, *target_logprobs_vjp(residuals, head, Logprobs(weights), start, projection)

    @jax.jit
    def softly(target_weights, soft_weights):
        logprobs, residuals = target_logprobs(hidden, head, tokens, mask, projection, soft)
        cotangent = Logprobs(target_weights, soft_weights)
        return *logprobs, *target_logprobs_vjp(residuals, head, cotangent, start, projection)

    logprobs, *gradients = plain()
    nothing = jnp.zeros_like(weights)
    for both in ((nothing, weights), (weights, nothing)):  # all of the loss on the soft target, or none
        target, soft_logprobs, *found = softly(*both)
        for one, other in zip((logprobs, logprobs, *gradients), (target, soft_logprobs, *found), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("k", [0, 20])
def test_the_full_logits_never_exist(gradient, k):
    """Neither the forward nor the backward program holds an array of all tokens by all words."""
    rows, length, vocabulary = 2, 512, 4096
    hidden, head, tokens, mask = case(2, rows, length, vocabulary=vocabulary)
    projection = Projection(chunk_tokens=64, chunk_vocab=512)
    soft = soft_case(2, tokens, vocabulary, k) if k else None
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)

    def passes(hidden, head, total):
        logprobs, residuals = target_logprobs(hidden, head, tokens, mask, projection, soft)
        return target_logprobs_vjp(residuals, head, logprobs, total, projection) if gradient else logprobs

    memory = jax.jit(passes).lower(hidden, head, head).compile().memory_analysis()
    assert memory.temp_size_in_bytes < rows * length * vocabulary * 4 / 4
