"""Attention of packed rows on TPUs: JAX's splash attention kernel (Pallas), forward and backward.

The kernel goes over blocks of a row's scores, never holding all of them, and skips the blocks that the causal mask or
the window rules out. The mask uses indices within the row, not position ids: within a segment, whose tokens are
contiguous, their distances are the same.

XLA's cost analysis counts no operations for the kernel, and the compiler's time estimate leaves it out.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

BLOCK = 512
"""Queries, and keys, of a block of scores: 1 MB of float32."""

RESIDUALS = "attention"
"""Name, for policies of `jax.checkpoint`, of the output and of the softmax's log-sum-exp.

With both saved, the backward pass does not run the forward kernel again.
"""


def whole_blocks(length: int) -> int:
    """The row length rounded up to whole blocks, which fused kernels need."""
    return length + -length % (BLOCK if length > BLOCK else 128)


def block_sizes(length: int) -> splash.BlockSizes:
    """Blocks that divide a row and fit the scoped memory of every TPU from v4 on, at up to 256 channels per head.

    Two blocks of keys are fetched at once where that halves the steps of the grid. One fused backward kernel computes
    the gradients of queries, keys and values: two separate kernels would compute scores and their gradients twice
    (seven matrix products per block instead of five). Its cost is memory: it keeps one array of the queries' gradient,
    in the queries' dtype, for every block of keys until they are added; fetching two blocks limits that to four arrays
    for rows of 4096. Shorter rows keep single blocks, as a larger one skips less above the diagonal.
    """
    block = min(BLOCK, length)
    double = 2 * block if length % (2 * block) == 0 else block
    backward = double if length >= 8 * block else block
    return splash.BlockSizes(
        block_q=block,
        block_kv=double,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=backward,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )


def splash_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """As `fusejax.models.attention.dispatch.attention`, for self-attention.

    Args:
      query: `T` must be a result of `whole_blocks`.
      interpret: run the kernel's steps as XLA operations, on any platform.
    """
    length, heads = query.shape[1:3]
    shape = (length, length)
    mask: masks.Mask = masks.CausalMask(shape)
    if window is not None and window < length:
        mask = masks.LocalMask(shape, (window - 1, 0), 0)
    kernel = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=block_sizes(length),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=RESIDUALS,
        interpret=interpret,
    )
    # The kernel takes no scale. Applied in float32, so that a scale that is no power of two is not rounded first.
    query = (scale * query.astype(jnp.float32)).astype(query.dtype)
    by_head = (array.swapaxes(1, 2) for array in (query, key, value))
    segments = splash.SegmentIds(q=segment_ids, kv=segment_ids)
    return jax.vmap(kernel)(*by_head, segments).swapaxes(1, 2)
