"""Attention by backend: grouped queries, packed segments, sliding window, soft cap.

The mask is given by position ids and segment ids, never as an array, so that fused kernels that never materialise the
scores of a whole row can replace plain XLA: `splash` on TPUs and `gpu` on NVIDIA GPUs.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fusejax.models.attention import block_attention, gpu_attention, splash

Kernel = Literal["xla", "splash", "gpu"]


def kernel_for(platform: str) -> Kernel:
    """The kernel for a computation compiled for `platform`, as `jax.Device.platform` and lowering name it.

    The target decides, not this machine: programs for TPUs are also compiled on machines without one.
    """
    kernels: dict[str, Kernel] = {"tpu": "splash", "gpu": "gpu", "cuda": "gpu"}
    return kernels.get(platform, "xla")


class Placement(NamedTuple):
    """Position ids and segment ids of tokens, from which attention derives its mask."""

    positions: Int[Array, "B L"]
    """Position ids, from 0 in each sequence."""
    segment_ids: Int[Array, "B L"]
    """The row's sequence that a token belongs to; 0 is padding."""


def visible(queries: Placement, keys: Placement, window: int | None) -> Bool[Array, "B T S"]:
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
    query_placement: Placement,
    key_placement: Placement,
    scale: float,
    window: int | None,
    softcap: float | None,
    precision: jax.lax.Precision,
    kernel: Kernel = "xla",
) -> Float[Array, "B T N H"]:
    """Softmax attention; query heads `n` of one group of `N / K` share key-value head `n // (N / K)`.

    Scores and softmax are float32; products take their inputs in the compute dtype. Keys and values are never
    repeated. Padding gets finite but meaningless outputs.

    The fused kernels compute attention of whole rows in bfloat16. Plain XLA does the rest: other dtypes, what no GPU
    kernel supports (`gpu_attention.implementation`), and, with all scores at once, decoding (fewer queries than keys).

    Args:
      scale: factor on the query-key products.
      window: see `visible`.
      softcap: scores become `softcap * tanh(scores / softcap)` before masking (Gemma-2), or None.
      precision: of the two matrix products in XLA.
      kernel: see `kernel_for`. A fused kernel works on one device's arrays, so under `jax.jit` over several devices it
        needs a `jax.shard_map` around it. Where there are as many queries as keys, they are the same tokens, and those
        of one segment are contiguous and in order.
    """
    whole_rows = query.shape[1] == key.shape[1]
    if query.dtype != jnp.bfloat16 or not whole_rows:
        kernel = "xla"
    what: dict[str, Any] = {"scale": scale, "window": window, "softcap": softcap}
    if kernel == "splash":
        return _over_whole_blocks(splash.splash_attention, query, key, value, key_placement.segment_ids, **what)
    if kernel == "gpu":
        implementation = gpu_attention.implementation(query.shape[3], softcap)
        if implementation is not None:
            fused = functools.partial(gpu_attention.gpu_attention, implementation=implementation)
            return _over_whole_blocks(fused, query, key, value, key_placement.segment_ids, **what)
    if whole_rows:
        settings = block_attention.Settings(**what, precision=precision)
        return block_attention.block_attention(query, key, value, *key_placement, settings)
    where: dict[str, Any] = {"query_placement": query_placement, "key_placement": key_placement}
    return dense_attention(query, key, value, **where, **what, precision=precision)


def dense_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    query_placement: Placement,
    key_placement: Placement,
    scale: float,
    window: int | None,
    softcap: float | None,
    precision: jax.lax.Precision,
) -> Float[Array, "B T N H"]:
    """`attention` with all scores at once, for any tokens in any order; the reference in tests."""
    rows, length, heads, width = query.shape
    groups = query.reshape(rows, length, key.shape[2], heads // key.shape[2], width)
    scores = scale * jnp.einsum(
        "btkgh,bskh->bkgts", groups, key, precision=precision, preferred_element_type=jnp.float32
    )
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = visible(query_placement, key_placement, window)[:, None, None]
    # Finite, so that a query that sees nothing gives an average and not NaN.
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bkgts,bskh->btkgh", weights, value, precision=precision)
    return mixed.reshape(rows, length, heads, width)


def _over_whole_blocks(
    fused: Callable[..., Array], query: Array, key: Array, value: Array, segment_ids: Int[Array, "B T"], **what: Any
) -> Float[Array, "B T N H"]:
    """Calls a fused kernel on rows filled up with padding to a multiple of its blocks."""
    length = query.shape[1]
    fill = splash.whole_blocks(length) - length
    arrays = (jnp.pad(array, ((0, 0), (0, fill)) + ((0, 0),) * (array.ndim - 2)) for array in (query, key, value))
    return fused(*arrays, jnp.pad(segment_ids, ((0, 0), (0, fill))), **what)[:, :length]
