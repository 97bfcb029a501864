"""Approximate likelihood matching: chunks of an answer, each as likely as a source finds it.

Minixhofer et al. 2025 (arXiv:2503.20083). Source and target agree on where chunks begin and end, not on their tokens.
Each gives a chunk one probability, p; the two are compared as those of an event that comes about or not, by a cross
entropy, at a temperature: as `p ** (1 / tau)`, for p is next to 0 for all but the shortest chunks.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fusejax.objectives.preference import segment_sums

EPSILON = 1e-6
"""Taken off the tempered log-probabilities, as the authors' code does: a chunk is never certain, and 1 - p never 0."""


def binary_cross_entropy(
    source: Float[Array, "*shape"], student: Float[Array, "*shape"], temperature: float
) -> Float[Array, "*shape"]:
    """`-(p log q + (1 - p) log(1 - q))` with p and q, of source and student, to the power of `1 / temperature`.

    It is least where both are equal: not 0, but the entropy of p.

    Args:
      source: log-probabilities of chunks, in nats. What rounding makes of them above 0 counts as 0; likewise below.
      student: the same of the model that learns.
      temperature: tau.

    Example:
      >>> source, student = jnp.log(jnp.array([0.8, 0.9, 0.95])).sum(), jnp.array(-0.5 - 0.2)  # "ut|iliz|ation"
      >>> binary_cross_entropy(source, student, 100.0).round(6), binary_cross_entropy(source, source, 100.0).round(6)
      (Array(0.025801, dtype=float32), Array(0.024923, dtype=float32))
    """
    a, b = (jnp.minimum(each, 0.0) / temperature - EPSILON for each in (source, student))
    return -(jnp.exp(a) * b - jnp.expm1(a) * jax.nn.log1mexp(-b))


def ends_chunk(chunk_ids: Int[Array, "R L"]) -> Bool[Array, "R L"]:
    """Where a chunk has its last token.

    Example:
      >>> ends_chunk(jnp.array([[0, 1, 1, 2, 0, 3]])).astype(int)
      Array([[0, 0, 1, 1, 0, 1]], dtype=int32)
    """
    following = jnp.pad(chunk_ids[:, 1:], ((0, 0), (0, 1)))
    return (chunk_ids > 0) & (chunk_ids != following)


def chunk_sums(values: Float[Array, "R L"], chunk_ids: Int[Array, "R L"]) -> Float[Array, "R L"]:
    """At each token, the sum of the values of its chunk's tokens; 0 for tokens of none.

    Example:
      >>> chunk_sums(jnp.array([[9.0, 1.0, 2.0, 4.0]]), jnp.array([[0, 1, 1, 2]]))
      Array([[0., 3., 3., 4.]], dtype=float32)
    """
    # Summed chunk by chunk: differences of sums over the row would keep the rounding of these.
    sums = segment_sums(values, chunk_ids, chunk_ids.shape[1])
    return jnp.take_along_axis(jnp.pad(sums, ((0, 0), (1, 0))), chunk_ids, axis=1)


def alm_losses(
    target: Float[Array, "R L"], chunk_ids: Int[Array, "R L"], chunk_logprobs: Float[Array, "R L"], temperature: float
) -> Float[Array, "R L"]:
    """The loss of each chunk, at its last token, in nats; 0 at other tokens.

    It is `binary_cross_entropy` times the temperature. So it is on the scale of the tokens' own cross entropy, whatever
    the temperature: where the source is certain of a chunk, it is just the sum of that over the chunk's tokens.

    Args:
      target: log-probability of each token.
      chunk_ids: chunk of each token, from 1 in each row; 0 for none.
      chunk_logprobs: at the last token of a chunk, the source's log-probability of the chunk.
      temperature: tau.

    Example:
      >>> certain = jnp.zeros((1, 2))
      >>> alm_losses(jnp.array([[-0.5, -0.2]]), jnp.array([[1, 1]]), certain, 100.0).round(2)
      Array([[0. , 0.7]], dtype=float32)
    """
    losses = temperature * binary_cross_entropy(chunk_logprobs, chunk_sums(target, chunk_ids), temperature)
    return jnp.where(ends_chunk(chunk_ids), losses, 0.0)
