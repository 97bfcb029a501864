"""Packed rows, and the comparison of any attention on them with all scores at once, for all tests of attention."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusejax.models.attention.dispatch import Placement, dense_attention


class Shape(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    softcap: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        # The scores of Gemma-2 reach its cap; let these do so too.
        scale = self.head_dim**-0.5 * (8 if self.softcap else 1)
        return {"scale": scale, "window": self.window, "softcap": self.softcap}


def packed(rows: list[list[int]], length: int) -> Placement:
    """Rows of segments of the given lengths, the rest padding."""
    positions, segment_ids = np.zeros((2, len(rows), length), np.int32)
    for row, lengths in enumerate(rows):
        start = 0
        for number, size in enumerate(lengths, 1):
            positions[row, start : start + size] = np.arange(size)
            segment_ids[row, start : start + size] = number
            start += size
        assert start <= length
    return Placement(jnp.asarray(positions), jnp.asarray(segment_ids))


def arrays(shape: Shape, rows: int, length: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Query, key, value and a cotangent of the output, in float32 but exact in bfloat16."""
    heads = (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
    draw = np.random.default_rng(0).standard_normal
    query, key, value, cotangent = (
        jnp.asarray(draw((rows, length, n, shape.head_dim)), jnp.bfloat16).astype(jnp.float32) for n in heads
    )
    return query, key, value, cotangent


def with_gradients(attend: Callable[..., jax.Array], operands: tuple[jax.Array, ...], dtype: Any) -> list[jax.Array]:
    """The output and the gradients of query, key and value."""
    *inputs, cotangent = (array.astype(dtype) for array in operands)

    def run(inputs, cotangent):
        output, backward = jax.vjp(attend, *inputs)
        return [output, *backward(cotangent)]

    return jax.jit(run)(inputs, cotangent)


def check_same(
    fused: Callable[..., jax.Array], shape: Shape, tokens: Placement, *, dtype: Any, tolerance: float
) -> None:
    """Compares `fused(query, key, value)` in `dtype` and its gradients with all scores at once in float32.

    `tolerance` is relative to the greatest value of each array, or to 1. Of padding, which no loss sees, all is finite.
    """
    real = (tokens.segment_ids > 0)[:, :, None, None]
    query, key, value, cotangent = arrays(shape, *tokens.segment_ids.shape)
    operands = (query, key, value, jnp.where(real, cotangent, 0))

    def reference(query, key, value):
        where = {"query_placement": tokens, "key_placement": tokens}
        return dense_attention(query, key, value, **where, **shape.options, precision=jax.lax.Precision.HIGHEST)

    expected = with_gradients(reference, operands, jnp.float32)
    actual = with_gradients(fused, operands, dtype)
    for name, one, other in zip(("output", "query", "key", "value"), actual, expected, strict=True):
        assert one.dtype == dtype and bool(jnp.isfinite(one).all()), name
        one, other = (jnp.where(real, array.astype(jnp.float32), 0) for array in (one, other))
        # A token that sees itself alone gives its query no gradient at all.
        error = float(jnp.abs(one - other).max() / jnp.maximum(jnp.abs(other).max(), 1))
        assert error < tolerance, f"{name} is off by {error:.2g}"
