"""Answers from a decoder with a key-value cache: one prefill and one loop for each batch of prompts.

Prompts of a batch are padded on the right to a power of two, so few shapes are compiled. Padding has segment id 0, and
each row keeps its own positions, so an answer does not depend on its neighbours in the batch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fusejax.common.progress import Progress
from fusejax.common.sampling import Sampling
from fusejax.models.attention.dispatch import Placement
from fusejax.models.decoder.choose import choose
from fusejax.models.decoder.decoder import Decoder

_SHORTEST = 32
GREEDY = Sampling(temperature=0)


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: set[int],
    pad_id: int = 0,
    batch_size: int = 64,
    kept: Mapping[int, list[int]] | None = None,
    keep: Callable[[dict[int, list[int]]], None] | None = None,
) -> list[list[int]]:
    """Greedy decoding: the most likely token each time, until a stop token or `max_new_tokens`.

    Args:
      model: the decoder.
      prompts: token ids; no prompt may be empty.
      max_new_tokens: of each answer.
      stop_ids: end an answer; they are not part of it.
      pad_id: any token id; it fills up rows and is never seen.
      batch_size: prompts decoded together; rounded up to a power of two.
      kept: index of a prompt -> its answer from an earlier call; a batch of which all are known is not decoded.
      keep: is given each batch's answers as soon as they are there, by the prompts' indices.

    Returns:
      The answers' token ids, in the order of the prompts.
    """
    if not prompts:
        return []
    if not all(prompts):
        raise ValueError(f"prompt {next(i for i, prompt in enumerate(prompts) if not prompt)} is empty")
    rows = min(power_of_two(batch_size), power_of_two(len(prompts)))
    answers: list[list[int]] = [[] for _ in prompts]
    kept = kept or {}
    # Prompts of similar length share a batch; the longest come first, so that too big a batch fails at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    # From all prompts, not from those left, so that what was kept changes no batch.
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    done = [batch for batch in batches if kept.keys() >= set(batch)]
    for member in (member for batch in done for member in batch):
        answers[member] = kept[member]
    progress = Progress("generate", len(prompts), "answer", done=sum(map(len, done)))
    for members in (batch for batch in batches if batch not in done):
        made = generate_batch(
            model,
            [prompts[member] for member in members],
            limits=[max_new_tokens] * len(members),
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
            pad_id=pad_id,
            rows=rows,
        )
        for member, answer in zip(members, made, strict=True):
            answers[member] = answer
        if keep is not None:
            keep(dict(zip(members, made, strict=True)))
        progress.add(len(members))
    progress.close()
    return answers


def generate_batch(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    limits: Sequence[int],
    max_new_tokens: int,
    stop_ids: set[int],
    rows: int,
    pad_id: int = 0,
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] = (),
) -> list[list[int]]:
    """The answers of one batch, as `generate` makes them.

    A program is compiled for each `rows`, `max_new_tokens`, `sampling`, and power of two that the longest prompt
    reaches.

    Args:
      model: the decoder.
      prompts: token ids; no prompt may be empty.
      limits: most tokens of each answer; 0 makes none.
      max_new_tokens: what the limits may not exceed.
      stop_ids: end an answer; they are not part of it.
      rows: at least the number of prompts.
      pad_id: any token id; it fills up rows and is never seen.
      sampling: how all of them choose their tokens; texts that stop are left to the caller.
      seeds: of the prompts, where it is not greedy: a row's numbers come from its own (NumPy's default generator).

    Returns:
      The answers' token ids, in the order of the prompts.
    """
    graphdef, params = nnx.split(model, nnx.Param)
    tokens = np.full((rows, power_of_two(max(_SHORTEST, *map(len, prompts)))), pad_id, np.int32)
    lengths, most = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    for row, prompt in enumerate(prompts):
        lengths[row], most[row] = len(prompt), limits[row]
        tokens[row, : lengths[row]] = prompt
    numbers = np.zeros((rows, max_new_tokens if seeds else 1), np.float32)
    for row, seed in enumerate(seeds):
        numbers[row] = np.random.default_rng(seed).random(max_new_tokens, np.float32)
    new, counts = _decode(
        graphdef,
        params,
        tokens,
        lengths,
        most,
        jnp.array(sorted(stop_ids), jnp.int32),
        numbers,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
    )
    kept = zip(np.asarray(new), np.asarray(counts), strict=True)
    return [row_tokens[:count].tolist() for row_tokens, count in kept][: len(prompts)]


def power_of_two(at_least: int) -> int:
    """The least power of two that is not less."""
    return 1 << (at_least - 1).bit_length()


@functools.partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "sampling"))
def _decode(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    prompts: Int[Array, "B L"],
    lengths: Int[Array, "B"],
    limits: Int[Array, "B"],
    stop_ids: Int[Array, "S"],
    numbers: Float[Array, "B _"],
    *,
    max_new_tokens: int,
    sampling: Sampling,
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
    """New tokens of each row and how many of them count. Rows with a limit of 0 are empty from the start."""
    model: Decoder = nnx.merge(graphdef, params)
    rows, width = prompts.shape
    positions = jnp.broadcast_to(jnp.arange(width), (rows, width))
    cache = model.empty_cache(rows, width + max_new_tokens)
    hidden, cache = model.decode(prompts, positions, (positions < lengths[:, None]).astype(jnp.int32), cache)
    last = jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)

    seen = said = None
    if sampling.repetition_penalty != 1:
        seen = jnp.zeros((rows, model.config.vocab_size), bool)
        seen = seen.at[jnp.arange(rows)[:, None], prompts].max(positions < lengths[:, None])
    if sampling.presence_penalty or sampling.frequency_penalty:
        said = jnp.zeros((rows, model.config.vocab_size), jnp.int32)

    def following(hidden: Array, active: Bool[Array, "B"], step: Int[Array, ""], seen, said):
        token = choose(model.logits(hidden[:, 0]), numbers[:, step], seen, said, sampling)
        return token, active & ~jnp.isin(token, stop_ids)

    def unfinished(state) -> Bool[Array, ""]:
        step, _, active, *_ = state
        return (step < max_new_tokens) & active.any()

    def advance(state):
        step, token, active, new, counts, seen, said, cache = state
        new = new.at[:, step].set(token)
        counts += active
        seen = None if seen is None else seen.at[jnp.arange(rows), token].set(True)
        said = None if said is None else said.at[jnp.arange(rows), token].add(1)
        placement = Placement((lengths + step)[:, None], active[:, None].astype(jnp.int32))
        hidden, cache = model.decode(token[:, None], placement.positions, placement.segment_ids, cache)
        token, active = following(hidden, active & (counts < limits), step + 1, seen, said)
        return step + 1, token, active, new, counts, seen, said, cache

    token, active = following(last, limits > 0, jnp.int32(0), seen, said)
    new = jnp.zeros((rows, max_new_tokens), jnp.int32)
    counts = jnp.zeros(rows, jnp.int32)
    state = (jnp.int32(0), token, active, new, counts, seen, said, cache)
    _, _, _, new, counts, *_ = jax.lax.while_loop(unfinished, advance, state)
    return new, counts
