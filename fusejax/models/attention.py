"""Attention in plain XLA: grouped queries, packed segments, sliding window, soft cap.

What may be seen is given by positions and segment ids, never by a mask array, so that a fused kernel can stand in with
the same signature.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Tokens(NamedTuple):
    """Where tokens stand: what attention needs to know of them beside their vectors."""

    positions: Int[Array, "B L"]
    """Place within the sequence, from 0."""
    segment_ids: Int[Array, "B L"]
    """Which of the row's sequences; 0 is padding."""


def visible(queries: Tokens, keys: Tokens, window: int | None) -> Bool[Array, "B T S"]:
    """True where a query may see a key: same sequence, not later, and fewer than `window` positions back.

    Example: positions 0 1 2 | 0 1 of segments 1 1 1 | 2 2, with window 2, let token 2 see tokens 1 and 2, and token 4
    see tokens 3 and 4.
    """
    same = queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :]
    distance = queries.positions[:, :, None] - keys.positions[:, None, :]
    seen = same & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    query_tokens: Tokens,
    key_tokens: Tokens,
    scale: float,
    window: int | None,
    softcap: float | None,
    precision: jax.lax.Precision,
) -> Float[Array, "B T N H"]:
    """Softmax attention; query heads `n` of one group of `N / K` share key-value head `n // (N / K)`.

    Scores and softmax are float32; products take their inputs in the compute dtype. Keys and values are never
    repeated: the group is an axis of the query.

    Args:
      scale: factor on the query-key products.
      window: see `visible`.
      softcap: scores become `softcap * tanh(scores / softcap)` before masking (Gemma-2), or None.
      precision: of the two matrix products.
    """
    rows, length, heads, width = query.shape
    groups = query.reshape(rows, length, key.shape[2], heads // key.shape[2], width)
    scores = scale * jnp.einsum(
        "btkgh,bskh->bkgts", groups, key, precision=precision, preferred_element_type=jnp.float32
    )
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = visible(query_tokens, key_tokens, window)[:, None, None]
    # Finite, so that a query that sees nothing gives an average and not NaN.
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, value, precision=precision)
    return mixed.reshape(rows, length, heads, width)
