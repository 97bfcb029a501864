"""Log-probabilities of target tokens without the logits: a chunked projection with its own backward pass.

The matrix of logits, tokens times vocabulary, is the largest array of a naive step (Gemma-2: 256,000 words). Here it
never exists. Each row's targets are moved to its front, so that prompts and padding cost nothing, and a loop with as
many turns as the fullest row needs projects one chunk of tokens at a time. The backward pass computes each chunk's
logits again rather than keep them.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

# Logits held at once, in float32: 2^26 elements are 256 MiB.
_CHUNK_ELEMENTS = 2**26


def target_logprobs(
    hidden: Float[Array, "B L D"],
    head: Float[Array, "V D"],
    tokens: Int[Array, "B L"],
    loss_mask: Bool[Array, "B L"],
    *,
    mesh: Mesh | None = None,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
) -> Float[Array, "B L"]:
    """Log-probability of each target token given those before it in its row.

    Args:
      hidden: the decoder's output after its final norm; position `i - 1` predicts token `i`.
      head: the output projection, float32 or bfloat16, tied or not; products are accumulated in float32.
      tokens: token ids.
      loss_mask: True where `tokens[b, i]` is a target. Never True at a sequence's first token, which nothing predicts.
      mesh: with axes `data` and `fsdp` that the rows lie split over; each device then walks through its own rows, and
        the head's gradient is added up over devices once, at the end. None: one device.
      softcap: logits become `softcap * tanh(logits / softcap)` (Gemma-2), or None.
      chunk_tokens: tokens that a device projects at once; by default as many as fill 256 MiB of logits.

    Returns:
      float32 [B, L], aligned with `tokens`: 0 where `loss_mask` is False. Differentiable in `hidden` and `head`.
    """
    rows, length = tokens.shape
    if mesh is not None:
        rows //= mesh.shape["data"] * mesh.shape["fsdp"]
    chunk_tokens = chunk_tokens or max(128, min(4096, _CHUNK_ELEMENTS // head.shape[0]))
    width = min(length - 1, max(1, chunk_tokens // rows))  # columns of one chunk, in which every row takes part
    # The same for all devices: where `tensor` splits the words, those of a group talk to each other in every turn.
    turns = (jnp.max(jnp.sum(loss_mask[:, 1:], axis=1)) + width - 1) // width

    def walk(hidden, head, targets, mask, turns):
        return _logprobs(hidden, head, targets, mask, turns, softcap, width)

    if mesh is not None and mesh.size > 1:
        split = PartitionSpec(("data", "fsdp"))
        walk = jax.shard_map(
            walk,
            mesh=mesh,
            in_specs=(split, PartitionSpec(), split, split, PartitionSpec()),
            out_specs=split,
            axis_names={"data", "fsdp"},
            # Unchecked, the transpose itself adds up the gradient of the head, which is whole on every device.
            check_vma=False,
        )
    logprobs = walk(hidden[:, :-1], head, tokens[:, 1:], loss_mask[:, 1:], turns)
    return jnp.pad(logprobs, ((0, 0), (1, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _logprobs(hidden, head, targets, mask, turns, softcap: float | None, width: int):
    return _forward(hidden, head, targets, mask, turns, softcap, width)[0]


def _forward(hidden, head, targets, mask, turns, softcap: float | None, width: int):
    order, counts = _targets_first(mask, width)

    def project(turn, carry):
        logprobs, normalizers = carry
        chunk_hidden, chunk_targets = _chunk(order, turn, width, hidden, targets)
        logits = _logits(chunk_hidden, head, softcap)
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        target_logits = jnp.take_along_axis(logits, chunk_targets[..., None], axis=-1)[..., 0]
        chunk_logprobs = jnp.where(_is_target(counts, turn, width), target_logits - normalizer, 0.0)
        at = (0, turn * width)
        return (
            jax.lax.dynamic_update_slice(logprobs, chunk_logprobs, at),
            jax.lax.dynamic_update_slice(normalizers, normalizer, at),
        )

    zeros = jnp.zeros(order.shape, jnp.float32)
    sorted_logprobs, normalizers = jax.lax.fori_loop(0, turns, project, (zeros, zeros))
    logprobs = _unsort(order, sorted_logprobs, mask.shape[1])
    return logprobs, (hidden, head, targets, order, counts, turns, normalizers)


def _backward(softcap: float | None, width: int, residuals, cotangent):
    hidden, head, targets, order, counts, turns, normalizers = residuals
    words = jnp.arange(head.shape[0])

    def project(turn, carry):
        d_hidden, d_head = carry
        chunk_hidden, chunk_targets, chunk_cotangent = _chunk(order, turn, width, hidden, targets, cotangent)
        normalizer = jax.lax.dynamic_slice_in_dim(normalizers, turn * width, width, axis=1)
        logits = _logits(chunk_hidden, head, softcap)
        # d logprob / d logits = onehot(target) - softmax(logits)
        d_logits = (words == chunk_targets[..., None]) - jnp.exp(logits - normalizer[..., None])
        d_logits *= jnp.where(_is_target(counts, turn, width), chunk_cotangent, 0.0)[..., None]
        if softcap is not None:
            d_logits *= 1.0 - jnp.square(logits / softcap)  # the derivative of tanh
        d_logits = d_logits.astype(hidden.dtype)
        chunk_d_hidden = _product("bcv,vd->bcd", d_logits, head.astype(hidden.dtype))
        d_head += _product("bcv,bcd->vd", d_logits, chunk_hidden)
        d_hidden = jax.lax.dynamic_update_slice(d_hidden, chunk_d_hidden.astype(hidden.dtype), (0, turn * width, 0))
        return d_hidden, d_head

    start = jnp.zeros((*order.shape, hidden.shape[-1]), hidden.dtype), jnp.zeros(head.shape, jnp.float32)
    sorted_d_hidden, d_head = jax.lax.fori_loop(0, turns, project, start)
    d_hidden = _unsort(order, sorted_d_hidden, hidden.shape[1])
    return d_hidden, d_head.astype(head.dtype), None, None, None


_logprobs.defvjp(_forward, _backward)


def _targets_first(mask: Bool[Array, "B L"], width: int) -> tuple[Int[Array, "B P"], Int[Array, "B"]]:
    """Each row's columns, targets first, filled up to a multiple of `width`; and how many of them are targets."""
    order = jnp.argsort(~mask, axis=1, stable=True)
    return jnp.pad(order, ((0, 0), (0, -mask.shape[1] % width))), jnp.sum(mask, axis=1)


def _is_target(counts: Int[Array, "B"], turn, width: int) -> Bool[Array, "B C"]:
    return turn * width + jnp.arange(width) < counts[:, None]


def _chunk(order, turn, width: int, *arrays):
    """Columns `order[:, turn * width : (turn + 1) * width]` of each array [B, L, ...]."""
    columns = jax.lax.dynamic_slice_in_dim(order, turn * width, width, axis=1)
    return tuple(
        jnp.take_along_axis(array, columns.reshape(columns.shape + (1,) * (array.ndim - 2)), axis=1) for array in arrays
    )


def _unsort(order: Int[Array, "B P"], values: Float[Array, "B P ..."], length: int) -> Float[Array, "B L ..."]:
    """Undoes the order of `_targets_first`; the filling beyond `length` is dropped."""
    inverse = jnp.argsort(order[:, :length], axis=1)
    return jnp.take_along_axis(values, inverse.reshape(inverse.shape + (1,) * (values.ndim - 2)), axis=1)


def _logits(hidden, head, softcap: float | None) -> Float[Array, "B C V"]:
    logits = _product("bcd,vd->bcv", hidden, head.astype(hidden.dtype))
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _product(equation: str, left: Array, right: Array) -> Array:
    """A product accumulated in float32; of float32 factors, not rounded to fewer bits as accelerators else do."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)
