"""Packed batches of a tokenised data set, made ahead of time by Grain.

A *step* is what the optimizer sees: exactly `batch_size` examples, in as many rows as they need. A *microbatch* is
what a device program sees: a fixed number of rows, so that one compiled program serves all steps; the last microbatch
of a step is filled up with empty rows. Each host assembles only its own rows of every microbatch. Everything follows
from the step number, so resuming is starting there.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain.python as grain
import numpy as np

from fusejax.common.cli import UserError
from fusejax.data.examples import Tokenized
from fusejax.data.packing import PackingPlan, Row, plan_eval

Microbatch = dict[str, np.ndarray]
"""Arrays of R rows by L tokens:

    tokens       int32 [R, L]; 0 where there is padding
    positions    int32 [R, L]; from 0 in each sequence
    segment_ids  int32 [R, L]; counts the sequences of a row from 1; 0 is padding
    loss_mask    bool [R, L]; True where `tokens` is a target, so never at the first token of a sequence
    pair_ids     int32 [R, P]; dpo only: the examples of the row, -1 where there are no more. The k-th of them (from 0)
                 has segment 2k + 1 for chosen and 2k + 2 for rejected

L is `attention_length`. Where that is more than `row_length`, what a pair's sequences begin with is shared, so that no
more than C = `row_length` tokens are computed (`fusejax.models.decoder.prefix_sharing`):

    first, second  int32 [R, C]
    source         int32 [R, L]
"""


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """One optimizer step's examples; the counts are those of all hosts together."""

    step: int
    """From 0."""
    epoch: float
    """Passes over the data set when this step is done."""
    microbatches: list[Microbatch]
    examples: int
    tokens: int
    target_tokens: int


def max_examples_per_row(row_length: int) -> int:
    """P: bounds the size of `pair_ids`, which costs a little packing only where examples average under 16 tokens."""
    return max(1, row_length // 16)


def train_batches(
    tokenized: Tokenized,
    *,
    batch_size: int,
    row_length: int,
    attention_length: int | None = None,
    seed: int,
    rows: int,
    num_steps: int,
    start_step: int = 0,
    mine: Sequence[int] | None = None,
) -> Iterator[StepBatch]:
    """Batches of steps `start_step` to `num_steps`, prepared in threads.

    Args:
      tokenized: the data set.
      batch_size: examples (pairs) a step, over all hosts.
      row_length: tokens a row computes.
      attention_length: tokens a row attends over, where those count twice that a pair's sequences share; see
        `Microbatch`. With `row_length`, the default, nothing is shared.
      seed: of the order of examples.
      rows: R of a microbatch over all hosts: rows a device times devices.
      num_steps: steps of the whole run, from `packing.num_steps`, or fewer.
      start_step: the first step to make, after a resume.
      mine: which rows of every microbatch this host makes, numbers below `rows`; by default all.

    Raises:
      UserError: fewer examples than `batch_size`, or one that does not fit a row.
    """
    attention_length = attention_length or row_length
    plan = PackingPlan(**_sizes(tokenized, row_length, attention_length), batch_size=batch_size, seed=seed)

    def batch(step: int) -> StepBatch:
        packed = plan.rows(step)
        examples = np.concatenate(packed)
        return StepBatch(
            step=step,
            epoch=(step + 1) * batch_size / len(tokenized),
            microbatches=[
                assemble(tokenized, part, row_length, attention_length) for part in _microbatch_rows(packed, rows, mine)
            ],
            examples=len(examples),
            tokens=int(tokenized.lengths[examples].sum()),
            target_tokens=int(tokenized.target_lengths[examples].sum()),
        )

    steps = grain.MapDataset.range(start_step, num_steps).map(batch)
    return _made_ahead(steps, ahead=4)


def eval_batches(
    tokenized: Tokenized,
    *,
    row_length: int,
    attention_length: int | None = None,
    rows: int,
    mine: Sequence[int] | None = None,
) -> Iterator[Microbatch]:
    """Microbatches that hold every example exactly once, in an order of their own: arguments as in `train_batches`."""
    attention_length = attention_length or row_length
    packed = plan_eval(**_sizes(tokenized, row_length, attention_length))
    parts = _microbatch_rows(packed, rows, mine)
    batches = grain.MapDataset.source(parts).map(lambda part: assemble(tokenized, part, row_length, attention_length))
    return _made_ahead(batches, ahead=8)


def check_fits(tokenized: Tokenized, row_length: int, attention_length: int) -> None:
    """Raises UserError if a row cannot hold one of the examples. Slow work comes before the plans that find out too."""
    computed = tokenized.lengths - (tokenized.shared_lengths if attention_length > row_length else 0)
    too_long = np.count_nonzero(computed > row_length)
    if too_long:
        raise UserError(
            f"packing.row_length {row_length} is less than what {too_long} of {len(tokenized)} examples compute, "
            f"{computed.max()} tokens at most: raise packing.row_length or lower max_length"
        )


def _sizes(tokenized: Tokenized, row_length: int, attention_length: int) -> dict[str, Any]:
    """What a plan needs to know of examples and rows."""
    limit = max_examples_per_row(row_length)
    if attention_length == row_length:
        return {"lengths": tokenized.lengths, "row_length": row_length, "max_examples_per_row": limit}
    lengths = np.stack([tokenized.lengths - tokenized.shared_lengths, tokenized.lengths], axis=1)
    limits = np.array([row_length, attention_length])
    # The scarcer first: rows that are full by another measure alone would be looked at again and again.
    order = np.argsort(-lengths.sum(axis=0) / limits, kind="stable")
    return {"lengths": lengths[:, order], "row_length": limits[order].tolist(), "max_examples_per_row": limit}


def _made_ahead(batches: grain.MapDataset, ahead: int) -> Iterator:
    """Iterates with threads that prepare the next batches, and raises whatever went wrong in them."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=ahead)
    with contextlib.closing(iter(batches.to_iter_dataset(options))) as iterator:
        # Counted, for a StopIteration that escapes from a thread would otherwise look like the end of the data.
        for _ in range(len(batches)):
            yield next(iterator)


def _microbatch_rows(packed: list[Row], rows: int, mine: Sequence[int] | None) -> list[list[Row]]:
    """This host's rows of each microbatch; what the last one lacks is filled up with empty rows."""
    filled = packed + [[]] * (-len(packed) % rows)
    return [
        [filled[start + row] for row in (range(rows) if mine is None else mine)]
        for start in range(0, len(filled), rows)
    ]


def assemble(tokenized: Tokenized, rows: list[Row], row_length: int, attention_length: int | None = None) -> Microbatch:
    """The arrays of the given rows of examples; lengths as in `train_batches`."""
    length = attention_length or row_length
    shape = (len(rows), length)
    tokens = np.zeros(shape, np.int32)
    positions = np.zeros(shape, np.int32)
    segment_ids = np.zeros(shape, np.int32)
    loss_mask = np.zeros(shape, bool)
    pair_ids = np.full((len(rows), max_examples_per_row(row_length)), -1, np.int32)
    for r, examples in enumerate(rows):
        pair_ids[r, : len(examples)] = examples
        each = tokenized.sequences_per_example
        sequences = [example * each + i for example in examples for i in range(each)]
        start = 0
        for segment, sequence in enumerate(sequences, 1):
            ids, mask = tokenized.sequence(sequence)
            span = slice(start, start + len(ids))
            tokens[r, span] = ids
            positions[r, span] = np.arange(len(ids))
            segment_ids[r, span] = segment
            loss_mask[r, span] = mask
            start += len(ids)
    microbatch = {"tokens": tokens, "positions": positions, "segment_ids": segment_ids, "loss_mask": loss_mask}
    if tokenized.kind == "dpo":
        microbatch["pair_ids"] = pair_ids
    if length > row_length:
        microbatch |= _sharing(tokenized, rows, row_length, length)
    return microbatch


def _sharing(tokenized: Tokenized, rows: list[Row], row_length: int, attention_length: int) -> dict[str, np.ndarray]:
    """The fields of `fusejax.models.decoder.prefix_sharing.Sharing`."""
    first = np.full((len(rows), row_length), attention_length, np.int32)
    second = first.copy()
    source = np.full((len(rows), attention_length), row_length, np.int32)
    for r, pairs in enumerate(rows):
        token = slot = 0
        for pair in pairs:
            chosen, rejected = np.diff(tokenized.offsets[2 * pair : 2 * pair + 3]).tolist()
            shared = int(tokenized.shared_lengths[pair])
            slots = np.arange(slot, slot + chosen + rejected)
            computed = np.arange(token, token + chosen + rejected - shared)
            again = slice(chosen, chosen + shared)
            first[r, computed] = np.delete(slots, again)
            second[r, computed[:shared]] = slots[again]
            source[r, slots] = np.insert(computed, chosen, computed[:shared])
            token, slot = token + len(computed), slot + len(slots)
    return {"first": first, "second": second, "source": source}
