"""Log-probabilities of target tokens without materialising the logits: a chunked projection with its own backward pass.

The matrix of logits, tokens times vocabulary, is the largest array of a naive step (Gemma-2: a vocabulary of 256,000),
followed by the output projection (the head) and its gradient. Here none is ever gathered or materialised whole. Two
nested loops project one chunk of tokens onto one chunk of the vocabulary at a time. While they work on one chunk of the
vocabulary, the head's rows for the next are all-gathered, and the gradient of those of the one before is
reduce-scattered and added to the gradient accumulator. Targets
are sorted to the front and the loop stops after them, so that prompts and padding cost nothing. The backward pass
recomputes each chunk's logits.

A target may also have a *soft target*: a few ids with weights, which stand for another model's distribution at its
place. Its expected log-probability, `sum_k w_k log p_k = sum_k w_k z_k - m log Z` with logits z and mass
`m = sum_k w_k`, has the gradient `w_k - m p_k` with respect to the logits. In a chunk of the vocabulary every id is
compared with the chunk's: on TPUs that costs less than to gather and scatter single numbers
(`benchmarks/soft_targets.py`).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from fusejax.distributed.collectives import as_stored, scatter_sum


@dataclasses.dataclass(frozen=True)
class Projection:
    """How the head is laid out and cut up.

    Attributes:
      softcap: logits become `softcap * tanh(logits / softcap)` (Gemma-2), or None.
      fsdp, tensor: the mesh axes that split the head's channels and its vocabulary; None if they are not split. With
        either, the functions here must run inside a `jax.shard_map` that is manual over it.
      chunk_tokens, chunk_vocab: most tokens and ids of one chunk. The logits of a chunk, float32, take 128 MiB by
        default.
      vocab_size: ids from here on are padding of the head, and have no probability; None if there is no padding.
      exchanges: how gradients are summed along `fsdp`, as of `collectives.scatter_sum`.
    """

    softcap: float | None = None
    fsdp: str | None = None
    tensor: str | None = None
    chunk_tokens: int = 4096
    chunk_vocab: int = 8192
    vocab_size: int | None = None
    exchanges: bool = False

    def tokens_at_once(self, tokens: int) -> int:
        """Tokens of a chunk: `chunk_tokens`, or a quarter of all if less, to end soon after the last target."""
        return min(self.chunk_tokens, -(-tokens // 512) * 128)

    def turns(self, tokens: int) -> int:
        """Chunks of tokens, if all are targets."""
        return -(-tokens // self.tokens_at_once(tokens))

    def vocab_at_once(self, vocab_size: int) -> int:
        """Ids of a chunk, in whole TPU tiles. All chunks are equally large, so the last may overlap."""
        chunks = -(-vocab_size // self.chunk_vocab)
        return min(vocab_size, -(-vocab_size // (128 * chunks)) * 128)

    def vocab_chunks(self, vocab_size: int) -> int:
        return -(-vocab_size // self.vocab_at_once(vocab_size))


class SoftTargets(NamedTuple):
    """For each token, ids that another model holds possible in its place, with weights.

    No two ids of a place that have weights are equal. An id of weight 0 stands for nothing.
    """

    ids: Int[Array, "B L K"]
    weights: Float32[Array, "B L K"]


class Logprobs(NamedTuple):
    """Of each target token, given those before it in its row; 0 for other tokens. The input of losses."""

    target: Float32[Array, "B L"]
    """Log-probability of the token itself."""
    soft: Float32[Array, "B L"] | None = None
    """Sum of the log-probabilities of its soft target's ids, times their weights; None without soft targets."""


class Residuals(NamedTuple):
    """What the backward pass needs, with tokens in an order that has all targets first."""

    hidden: Float[Array, "P D"]
    targets: Int[Array, "P"]
    """Ids relative to this device's part of the vocabulary; outside of its range if another device has the token."""
    order: Int[Array, "P"]
    """Index of each token among the row-wise flattened ones."""
    targets_first: Int[Array, ""]
    """How many of the tokens are targets."""
    normalizers: Float32[Array, "P"]
    soft: SoftTargets | None
    """[K, P], with ids as in `targets`."""


def target_logprobs(
    hidden: Float[Array, "B L D"],
    head: Float[Array, "words channels"],
    tokens: Int[Array, "B L"],
    loss_mask: Bool[Array, "B L"],
    projection: Projection,
    soft: SoftTargets | None = None,
) -> tuple[Logprobs, Residuals]:
    """Log-probabilities of the target tokens, and of their soft targets.

    Args:
      hidden: the decoder's output after its final norm; position `i - 1` predicts token `i`.
      head: the output projection, or this device's part of it, tied or not; products take their factors in `hidden`'s
        dtype and are accumulated in float32.
      tokens: token ids.
      loss_mask: True where `tokens[b, i]` is a target. Never True at a sequence's first token, which nothing predicts.
      projection: see there.
      soft: soft targets, aligned with `tokens`. Those of other tokens than targets do not count.

    Returns:
      The log-probabilities, aligned with `tokens`; and what `target_logprobs_vjp` needs.
    """
    rows, length, width = hidden.shape
    mask = loss_mask[:, 1:].reshape(-1)
    size = projection.tokens_at_once(mask.size)
    order = jnp.pad(jnp.argsort(~mask, stable=True), (0, -mask.size % size))
    first_id = _first_id(head, projection)
    residuals = Residuals(
        hidden=hidden[:, :-1].reshape(-1, width)[order],
        targets=tokens[:, 1:].reshape(-1)[order] - first_id,
        order=order,
        targets_first=jnp.sum(mask, dtype=jnp.int32),
        normalizers=jnp.zeros(order.shape, jnp.float32),
        soft=None if soft is None else _in_order(soft, mask.size, order, first_id),
    )

    def over_vocab(chunk, kernel, stats):
        start, fresh = _vocab_ids(head, chunk, projection)

        def over_tokens(turn, stats):
            at = turn * size
            highest, total, target, *expected = (jax.lax.dynamic_slice_in_dim(x, at, size) for x in stats)
            chunk_hidden, targets = _tokens(residuals, at, size)
            logits = _logits(chunk_hidden, kernel, fresh, projection)
            higher = jnp.maximum(highest, jnp.max(logits, axis=1))
            total = total * jnp.exp(highest - higher) + jnp.sum(jnp.exp(logits - higher[:, None]), axis=1)
            target += jnp.sum(jnp.where(_is_target(targets, start, kernel, fresh), logits, 0.0), axis=1)
            if residuals.soft is not None:
                weights = _soft_weights(_soft_tokens(residuals.soft, at, size), start, kernel, fresh)
                expected = [expected[0] + jnp.sum(jnp.where(fresh, weights * logits, 0.0), axis=1)]
            new = (higher, total, target, *expected)
            return tuple(jax.lax.dynamic_update_slice_in_dim(x, y, at, 0) for x, y in zip(stats, new, strict=True))

        return _for_tokens(residuals, size, projection, over_tokens, stats)

    nothing = jnp.zeros(order.shape, jnp.float32)
    # Not -inf: a device whose ids are all padding would subtract it from itself.
    start = (jnp.full(order.shape, jnp.finfo(jnp.float32).min), nothing, nothing, *([] if soft is None else [nothing]))
    highest, total, *sums = _for_vocab(head, projection, hidden.dtype, over_vocab, start)
    if projection.tensor is not None:
        # Padded tokens have no highest logit; their sums stay 0.
        everywhere = jax.lax.pmax(highest, projection.tensor)
        total = jax.lax.psum(jnp.where(total > 0, total * jnp.exp(highest - everywhere), 0.0), projection.tensor)
        sums, highest = jax.lax.psum(sums, projection.tensor), everywhere
    is_target = jnp.arange(order.size) < residuals.targets_first
    normalizers = jnp.where(is_target, highest + jnp.log(jnp.where(is_target, total, 1.0)), 0.0)
    masses: list[Array | float] = [1.0]
    if residuals.soft is not None:
        masses.append(jnp.sum(residuals.soft.weights, axis=0))

    def logprobs(weighted: Array, mass: Array | float) -> Array:
        values = _unsort(order, jnp.where(is_target, weighted - mass * normalizers, 0.0), mask.size)
        return jnp.pad(values.reshape(rows, length - 1), ((0, 0), (1, 0)))

    return Logprobs(*map(logprobs, sums, masses)), residuals._replace(normalizers=normalizers)


def target_logprobs_vjp(
    residuals: Residuals,
    head: Float[Array, "words channels"],
    cotangent: Logprobs,
    head_gradient: Float32[Array, "words channels"],
    projection: Projection,
) -> tuple[Float[Array, "B L D"], Float32[Array, "words channels"]]:
    """The gradient with respect to `hidden`, and `head_gradient` with that with respect to `head` added in place.

    `head_gradient` has the shape of `head`; what is added to it is summed over the devices along `fsdp`.
    """
    rows, length = cotangent.target.shape
    order, dtype = residuals.order, residuals.hidden.dtype
    size = projection.tokens_at_once(rows * (length - 1))
    is_target = jnp.arange(order.size) < residuals.targets_first
    cotangents = jax.tree.map(lambda x: jnp.where(is_target, x[:, 1:].reshape(-1)[order], 0.0), cotangent)

    def add(chunk, d_kernel, head_gradient):
        """Sums a chunk's gradient over the devices along `fsdp`, and adds it in place."""
        start, _ = _vocab_ids(head, chunk, projection)
        if projection.fsdp is not None:
            d_kernel = scatter_sum(d_kernel, projection.fsdp, dimension=1, exchanges=projection.exchanges)
        before = jax.lax.dynamic_slice_in_dim(head_gradient, start, d_kernel.shape[0])
        return jax.lax.dynamic_update_slice_in_dim(head_gradient, before + d_kernel, start, 0)

    def over_vocab(chunk, kernel, carry):
        d_hidden, d_before, head_gradient = carry
        # While this chunk is computed, the gradient of the one before is summed. Before the first, that is 0.
        head_gradient = add(jnp.maximum(chunk - 1, 0), d_before, head_gradient)
        start, fresh = _vocab_ids(head, chunk, projection)

        def over_tokens(turn, carry):
            d_hidden, d_kernel = carry
            at = turn * size
            chunk_hidden, targets = _tokens(residuals, at, size)
            normalizers = jax.lax.dynamic_slice_in_dim(residuals.normalizers, at, size)
            factors = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at, size)[:, None], cotangents)
            logits = _logits(chunk_hidden, kernel, fresh, projection)
            # d logprob / d logits = onehot(target) - softmax(logits)
            probabilities = jnp.exp(logits - normalizers[:, None])
            d_logits = _is_target(targets, start, kernel, fresh) - probabilities
            d_logits *= factors.target
            if residuals.soft is not None:
                soft = _soft_tokens(residuals.soft, at, size)
                mass = jnp.sum(soft.weights, axis=0)[:, None]
                d_logits += (_soft_weights(soft, start, kernel, fresh) - mass * probabilities) * factors.soft
            if projection.softcap is not None:
                # The derivative of tanh. Ids of the chunk before, and padding, stay at exactly 0.
                slope = 1.0 - jnp.square(logits / projection.softcap)
                d_logits *= jnp.where(jnp.isfinite(logits), slope, 0.0)
            d_logits = d_logits.astype(dtype)
            old = jax.lax.dynamic_slice_in_dim(d_hidden, at, size)
            new = old + _product("cv,vd->cd", d_logits, kernel)
            return jax.lax.dynamic_update_slice_in_dim(d_hidden, new, at, 0), d_kernel + _product(
                "cv,cd->vd", d_logits, chunk_hidden
            )

        nothing = jnp.zeros(kernel.shape, jnp.float32)
        d_hidden, d_kernel = _for_tokens(residuals, size, projection, over_tokens, (d_hidden, nothing))
        return d_hidden, d_kernel, head_gradient

    nothing = jnp.zeros((projection.vocab_at_once(head.shape[0]), residuals.hidden.shape[1]), jnp.float32)
    start = (jnp.zeros(residuals.hidden.shape, jnp.float32), nothing, head_gradient)
    d_hidden, d_last, head_gradient = _for_vocab(head, projection, dtype, over_vocab, start)
    head_gradient = add(projection.vocab_chunks(head.shape[0]) - 1, d_last, head_gradient)
    if projection.tensor is not None:
        d_hidden = jax.lax.psum(d_hidden, projection.tensor)
    d_hidden = _unsort(order, d_hidden.astype(dtype), rows * (length - 1))
    return jnp.pad(d_hidden.reshape(rows, length - 1, -1), ((0, 0), (0, 1), (0, 0))), head_gradient


def _for_vocab(head: Array, projection: Projection, dtype: DTypeLike, body, carry):
    """`body(chunk, kernel, carry)` for every chunk of the vocabulary, with the head's rows for it, in `dtype`.

    The rows of the next chunk are gathered while `body` computes with those of this one.
    """
    last = projection.vocab_chunks(head.shape[0]) - 1

    def turn(chunk, carried):
        kernel, carry = carried
        following = _kernel(head, chunk + 1, projection, dtype)
        return following, body(chunk, kernel, carry)

    kernel, carry = jax.lax.fori_loop(0, last, turn, (_kernel(head, 0, projection, dtype), carry))
    return body(last, kernel, carry)


def _for_tokens(residuals: Residuals, size: int, projection: Projection, body, carry):
    """`body(turn, carry)` for every chunk of `size` tokens that has a target."""
    return jax.lax.fori_loop(0, (residuals.targets_first + size - 1) // size, body, carry)


def _kernel(head: Array, chunk, projection: Projection, dtype: DTypeLike) -> Array:
    """The head's rows for one chunk of the vocabulary, with all of their channels."""
    start, fresh = _vocab_ids(head, chunk, projection)
    kernel = as_stored(jax.lax.dynamic_slice_in_dim(head, start, fresh.size), dtype).astype(dtype)
    if projection.fsdp is not None:
        kernel = jax.lax.all_gather(kernel, projection.fsdp, axis=1, tiled=True)
    return kernel


def _vocab_ids(head: Array, chunk, projection: Projection) -> tuple[Array, Bool[Array, "W"]]:
    """One chunk of the vocabulary: its first id, and which of its ids count: those that no earlier chunk has.

    The last chunk reaches back into the one before it where the vocabulary is not a multiple of the chunk.
    """
    size = projection.vocab_at_once(head.shape[0])
    start = jnp.minimum(chunk * size, head.shape[0] - size)
    ids = start + jnp.arange(size)
    fresh = ids >= chunk * size
    if projection.vocab_size is not None:
        fresh &= _first_id(head, projection) + ids < projection.vocab_size
    return start, fresh


def _first_id(head: Array, projection: Projection) -> int | Int[Array, ""]:
    """The first id of this device's part of the vocabulary."""
    return 0 if projection.tensor is None else jax.lax.axis_index(projection.tensor) * head.shape[0]


def _tokens(residuals: Residuals, at, size: int) -> tuple[Float[Array, "C D"], Int[Array, "C"]]:
    return (
        jax.lax.dynamic_slice_in_dim(residuals.hidden, at, size),
        jax.lax.dynamic_slice_in_dim(residuals.targets, at, size),
    )


def _is_target(targets: Int[Array, "C"], start, kernel: Array, fresh: Bool[Array, "W"]) -> Bool[Array, "C W"]:
    return (start + jnp.arange(kernel.shape[0]) == targets[:, None]) & fresh


def _in_order(soft: SoftTargets, size: int, order: Int[Array, "P"], first_id: int | Int[Array, ""]) -> SoftTargets:
    """The soft targets as `Residuals` has them."""
    ids, weights = (x[:, 1:].reshape(size, -1)[order].T for x in soft)
    # An id that stands for nothing is none.
    return SoftTargets(jnp.where(weights == 0, -1, ids - first_id), weights)


def _soft_tokens(soft: SoftTargets, at, size: int) -> SoftTargets:
    """Soft targets of a chunk of tokens, [K, C]."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at, size, axis=1), soft)


def _soft_weights(soft: SoftTargets, start, kernel: Array, fresh: Bool[Array, "W"]) -> Float32[Array, "C W"]:
    """The weight of each id of a chunk of the vocabulary in each token's soft target."""
    ids = start + jnp.arange(kernel.shape[0])
    weights = jnp.zeros((soft.ids.shape[1], ids.size), jnp.float32)
    # Selects without sums, as an id stands only once at a place.
    for each, weight in zip(soft.ids, soft.weights, strict=True):
        weights = jnp.where(each[:, None] == ids, weight[:, None], weights)
    return jnp.where(fresh, weights, 0.0)


def _logits(hidden: Array, kernel: Array, fresh: Bool[Array, "W"], projection: Projection) -> Float32[Array, "C W"]:
    logits = _product("cd,vd->cv", hidden, kernel)
    if projection.softcap is not None:
        logits = projection.softcap * jnp.tanh(logits / projection.softcap)
    return jnp.where(fresh, logits, -jnp.inf)


def _unsort(order: Int[Array, "P"], values: Float[Array, "P ..."], size: int) -> Float[Array, "{size} ..."]:
    """Restores the original order of tokens; padding beyond `size` is dropped."""
    return values[jnp.argsort(order[:size])]


def _product(equation: str, left: Array, right: Array) -> Float32[Array, "..."]:
    """A product accumulated in float32. Float32 factors are not rounded to fewer bits, the default of accelerators."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)
