"""Attention of packed rows in plain XLA, a block of queries against a block of keys at a time.

The scores of a whole row are never materialised, and blocks of keys that no query of a block may see are skipped: the
cost of a row of many short sequences grows with their lengths, not with the row's. The softmax over blocks and its
backward pass are those of FlashAttention-2 (arXiv:2307.08691, algorithms 1 and 2).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Float32, Int

SAVED = "block_attention"
"""The name by which a rematerialisation policy may keep what the backward pass needs of the forward pass."""
BLOCK = 64
"""Tokens of a block: small, so that its scores stay in a CPU's cache and little beyond the diagonal is computed."""


class BlockPlacement(NamedTuple):
    """Position ids and segment ids of a row's blocks."""

    positions: Int[Array, "n C"]
    segment_ids: Int[Array, "n C"]
    first: Int[Array, "n"]
    """The first block of keys that a block of queries may see; the last is its own."""


class Settings(NamedTuple):
    """See `block_attention`."""

    scale: float
    window: int | None
    softcap: float | None
    precision: jax.lax.Precision


def block_attention(
    query: Float[Array, "B L N H"],
    key: Float[Array, "B L K H"],
    value: Float[Array, "B L K H"],
    positions: Int[Array, "B L"],
    segment_ids: Int[Array, "B L"],
    settings: Settings,
) -> Float[Array, "B L N H"]:
    """As `attention.attention`, for rows whose tokens of one segment are contiguous and in order."""
    rows, length, heads, width = query.shape
    groups = heads // key.shape[2]
    size = min(BLOCK, length)
    fill = -length % size

    def blocks(x: Array) -> Array:
        """[B, L, ...] in blocks [B, n, C, ...], the last one filled up with padding."""
        x = jnp.pad(x, ((0, 0), (0, fill)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(rows, -1, size, *x.shape[2:])

    queries = blocks(query.reshape(rows, length, -1, groups, width)).transpose(0, 1, 3, 4, 2, 5)
    queries = queries.reshape(*queries.shape[:3], groups * size, width)
    keys, values = (blocks(x).transpose(0, 1, 3, 2, 4) for x in (key, value))
    # Padding at the end is its own sequence.
    where = blocks(positions), blocks(segment_ids)
    index = jnp.arange(where[0].shape[1] * size).reshape(-1, size)
    earliest = index - where[0]
    if settings.window is not None:
        earliest = jnp.maximum(earliest, index - settings.window + 1)
    placement = BlockPlacement(*where, jnp.min(earliest, axis=2) // size)

    def row(_, arrays):
        return None, _row(*arrays, settings)

    # Rows are scanned, not batched: each computes different blocks.
    _, mixed = jax.lax.scan(row, None, (queries, keys, values, placement))
    mixed = mixed.reshape(rows, -1, heads // groups, groups, size, width).transpose(0, 1, 4, 2, 3, 5)
    return mixed.reshape(rows, -1, heads, width)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _row(
    queries: Float[Array, "n K GC H"],
    keys: Float[Array, "n K C H"],
    values: Float[Array, "n K C H"],
    placement: BlockPlacement,
    settings: Settings,
) -> Float[Array, "n K GC H"]:
    return _forward(queries, keys, values, placement, settings)[0]


def _forward(queries, keys, values, placement: BlockPlacement, settings: Settings):
    def over_queries(_, scanned):
        i, query = scanned

        def over_keys(j, stats):
            highest, total, mixed = stats
            scores, _, seen = _scores(query, keys[j], placement, i, j, settings)
            # Finite, so that what a query that sees nothing in this block adds is scaled to 0 by a later block.
            scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
            higher = jnp.maximum(highest, jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - higher[..., None])
            kept = jnp.exp(highest - higher)
            total = total * kept + jnp.sum(weights, axis=-1)
            new = _product("kqc,kch->kqh", weights.astype(values.dtype), values[j], settings)
            return higher, total, mixed * kept[..., None] + new

        lowest = jnp.full(query.shape[:2], jnp.finfo(jnp.float32).min)
        start = (lowest, jnp.zeros(query.shape[:2], jnp.float32), jnp.zeros(query.shape, jnp.float32))
        highest, total, mixed = jax.lax.fori_loop(placement.first[i], i + 1, over_keys, start)
        return None, ((mixed / total[..., None]).astype(query.dtype), highest + jnp.log(total))

    _, (mixed, normalizers) = jax.lax.scan(over_queries, None, (jnp.arange(len(queries)), queries))
    mixed, normalizers = checkpoint_name((mixed, normalizers), SAVED)
    return mixed, (queries, keys, values, placement, mixed, normalizers)


def _backward(settings: Settings, residuals, cotangent):
    queries, keys, values, placement, mixed, normalizers = residuals

    def over_queries(carry, scanned):
        i, query, mixed, normalizer, d_mixed = scanned
        shift = jnp.sum(d_mixed.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1)[..., None]

        def over_keys(j, carry):
            d_query, d_keys, d_values = carry
            scores, slope, seen = _scores(query, keys[j], placement, i, j, settings)
            weights = jnp.where(seen, jnp.exp(scores - normalizer[..., None]), 0.0)
            d_weights = _product("kqh,kch->kqc", d_mixed, values[j], settings)
            d_scores = (weights * (d_weights - shift) * slope * settings.scale).astype(query.dtype)
            d_query += _product("kqc,kch->kqh", d_scores, keys[j], settings)
            d_keys = d_keys.at[j].add(_product("kqc,kqh->kch", d_scores, query, settings))
            d_values = d_values.at[j].add(_product("kqc,kqh->kch", weights.astype(values.dtype), d_mixed, settings))
            return d_query, d_keys, d_values

        start = (jnp.zeros(query.shape, jnp.float32), *carry)
        d_query, *carry = jax.lax.fori_loop(placement.first[i], i + 1, over_keys, start)
        return tuple(carry), d_query.astype(query.dtype)

    nothing = jnp.zeros(keys.shape, jnp.float32)
    scanned = (jnp.arange(len(queries)), queries, mixed, normalizers, cotangent)
    (d_keys, d_values), d_queries = jax.lax.scan(over_queries, (nothing, nothing), scanned)
    return d_queries, d_keys.astype(keys.dtype), d_values.astype(values.dtype), None


_row.defvjp(_forward, _backward)


def _scores(
    query: Float[Array, "K GC H"], key: Float[Array, "K C H"], placement: BlockPlacement, i, j, settings: Settings
) -> tuple[Float32[Array, "K GC C"], Float32[Array, "..."], Bool[Array, "GC C"]]:
    """Scores of block `i` of queries and block `j` of keys, the soft cap's derivative there, and what may be seen."""
    scores = settings.scale * _product("kqh,kch->kqc", query, key, settings)
    slope = jnp.ones((), jnp.float32)
    if settings.softcap is not None:
        scores = settings.softcap * jnp.tanh(scores / settings.softcap)
        slope = 1.0 - jnp.square(scores / settings.softcap)
    same = placement.segment_ids[i][:, None] == placement.segment_ids[j]
    distance = placement.positions[i][:, None] - placement.positions[j]
    seen = same & (distance >= 0)
    if settings.window is not None:
        seen &= distance < settings.window
    return scores, slope, jnp.tile(seen, (query.shape[1] // len(seen), 1))


def _product(equation: str, left: Array, right: Array, settings: Settings) -> Float32[Array, "..."]:
    return jnp.einsum(equation, left, right, precision=settings.precision, preferred_element_type=jnp.float32)
