"""Attention of packed rows on NVIDIA GPUs: Tokamax's flash attention kernels (Pallas), forward and backward.

A query's keys are a range of indices: from the start of its segment, or of its window, up to itself. The kernels take
that range and skip blocks outside it, so no queries x keys array is materialised in the forward pass.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fusejax.common.cli import UserError

Implementation = Literal["mosaic_gpu", "triton"]


def first_visible(segment_ids: Int[Array, "B T"], window: int | None) -> Int[Array, "B T"]:
    """Index of the first token that each token sees; it sees all from there up to itself.

    Example: segments 1 1 1 2 2 give 0 0 0 3 3, and with window 2 they give 0 0 1 3 3.
    """
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape)
    begins = jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1]) != 0
    start = jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    return start if window is None else jnp.maximum(start, index - (window - 1))


def implementation(head_dim: int, softcap: float | None) -> Implementation | None:
    """Which kernel has a forward and a backward pass for this attention on this process's GPUs; None if none has.

    The backward pass of the Mosaic kernel needs Hopper's shared memory and instructions; on Blackwell it takes at most
    64 channels per head. The Triton kernel works from Ampere on, but has no soft cap.
    """
    major = compute_capability().partition(".")[0]
    if major == "9" and head_dim <= 256:
        return "mosaic_gpu"
    # AMD's capabilities read like "gfx942".
    if major.isdecimal() and int(major) >= 8 and head_dim <= 128 and softcap is None:
        return "triton"
    return None


def compute_capability() -> str:
    """Of this process's GPUs, such as "9.0" for Hopper."""
    return str(jax.local_devices(backend="gpu")[0].compute_capability)


def gpu_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    implementation: Implementation,
) -> Float[Array, "B T N H"]:
    """As `fusejax.models.attention.dispatch.attention`, for self-attention in bfloat16.

    Raises:
      UserError: without Tokamax, which the extra `gpu` brings.
    """
    try:
        # The public function takes masks as arrays of queries by keys only.
        from tokamax._src.ops.attention import api, base
    except ImportError as error:
        raise UserError(f"attention on NVIDIA GPUs needs Tokamax: install fusejax[gpu] ({error})") from error

    accept_program_arguments()
    kernel: Any = api.IMPLEMENTATIONS[implementation]
    mask = base.Mask(k_start=first_visible(segment_ids, window)[:, None], is_causal=True)
    return kernel(query, key, value, mask=mask, logits_scale=scale, logits_soft_cap=softcap)


def accept_program_arguments() -> None:
    """Keeps Tokamax, which parses absl flags, from reading this program's command line and refusing it."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
