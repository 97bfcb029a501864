"""Greedy answers from a decoder with a key-value cache: one prefill and one loop for each batch of prompts.

Prompts of a batch are padded on the right to a power of two, so few shapes are compiled. Padding has segment id 0, and
each row keeps its own positions, so an answer does not depend on its neighbours in the batch.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from fusejax.common.progress import Progress
from fusejax.models.attention.dispatch import Placement
from fusejax.models.decoder.decoder import Cache, Decoder

_SHORTEST = 32


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: set[int],
    pad_id: int = 0,
    batch_size: int = 64,
) -> list[list[int]]:
    """Greedy decoding: the most likely token each time, until a stop token or `max_new_tokens`.

    Args:
      model: the decoder.
      prompts: token ids; no prompt may be empty.
      max_new_tokens: of each answer.
      stop_ids: end an answer; they are not part of it.
      pad_id: any token id; it fills up rows and is never seen.
      batch_size: prompts decoded together; rounded up to a power of two.

    Returns:
      The answers' token ids, in the order of the prompts.
    """
    if not prompts:
        return []
    if not all(prompts):
        raise ValueError(f"prompt {next(i for i, prompt in enumerate(prompts) if not prompt)} is empty")
    graphdef, params = nnx.split(model, nnx.Param)
    rows = min(_power_of_two(batch_size), _power_of_two(len(prompts)))
    stops = jnp.array(sorted(stop_ids), jnp.int32)
    answers: list[list[int]] = [[] for _ in prompts]
    # Prompts of similar length share a batch; the longest come first, so that too big a batch fails at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    progress = Progress("generate", len(prompts), "answer")
    for start in range(0, len(order), rows):
        members = order[start : start + rows]
        width = _power_of_two(max(_SHORTEST, len(prompts[members[0]])))
        tokens = np.full((rows, width), pad_id, np.int32)
        lengths = np.zeros(rows, np.int32)
        for row, member in enumerate(members):
            lengths[row] = len(prompts[member])
            tokens[row, : lengths[row]] = prompts[member]
        new, counts = _decode(graphdef, params, tokens, lengths, stops, max_new_tokens=max_new_tokens)
        for member, row_tokens, count in zip(members, np.asarray(new), np.asarray(counts), strict=False):
            answers[member] = row_tokens[:count].tolist()
        progress.add(len(members))
    progress.close()
    return answers


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()


@functools.partial(jax.jit, static_argnames=("graphdef", "max_new_tokens"))
def _decode(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    prompts: Int[Array, "B L"],
    lengths: Int[Array, "B"],
    stop_ids: Int[Array, "S"],
    *,
    max_new_tokens: int,
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
    """New tokens of each row and how many of them count. Rows of length 0 are empty from the start."""
    model: Decoder = nnx.merge(graphdef, params)
    rows, width = prompts.shape
    positions = jnp.broadcast_to(jnp.arange(width), (rows, width))
    cache = model.empty_cache(rows, width + max_new_tokens)
    hidden, cache = model.decode(prompts, positions, (positions < lengths[:, None]).astype(jnp.int32), cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)

    def choose(hidden: Array, active: Bool[Array, "B"]) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
        token = jnp.argmax(model.logits(hidden[:, 0]), axis=-1).astype(jnp.int32)
        return token, active & ~jnp.isin(token, stop_ids)

    def unfinished(state) -> Bool[Array, ""]:
        step, _, active, *_ = state
        return (step < max_new_tokens) & active.any()

    def advance(state):
        step, token, active, new, counts, cache = state
        new = new.at[:, step].set(token)
        counts += active
        placement = Placement((lengths + step)[:, None], active[:, None].astype(jnp.int32))
        hidden, cache = model.decode(token[:, None], placement.positions, placement.segment_ids, cache)
        token, active = choose(hidden, active)
        return step + 1, token, active, new, counts, cache

    token, active = choose(last, lengths > 0)
    new = jnp.zeros((rows, max_new_tokens), jnp.int32)
    counts = jnp.zeros(rows, jnp.int32)
    state: tuple[Array, Array, Array, Array, Array, Cache] = (jnp.int32(0), token, active, new, counts, cache)
    _, _, _, new, counts, _ = jax.lax.while_loop(unfinished, advance, state)
    return new, counts
