"""Packed batches of a tokenised data set, prefetched by Grain.

A *step* is one optimizer step: exactly `batch_size` examples, in as many rows as they need. A *microbatch* is the input
of one device program: a fixed number of rows, so that one compiled program serves all steps; the last microbatch of a
step is padded with empty rows. Each host assembles only its own rows of every microbatch. Batches depend on the step
number alone, so a resumed run just starts at its step.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain.python as grain
import numpy as np

from fusejax.common.cli import UserError
from fusejax.data.batch import BatchShape, max_examples_per_row
from fusejax.data.examples import Tokenized
from fusejax.data.packing import PackedRow, PackingPlan, plan_eval
from fusejax.data.records import ANSWERS


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """One optimizer step's examples; the counts are those of all hosts together."""

    step: int
    """From 0."""
    epoch: float
    """Passes over the data set when this step is done."""
    microbatches: list[dict[str, np.ndarray]]
    examples: int
    tokens: int
    target_tokens: int


def train_batches(
    tokenized: Tokenized,
    *,
    batch_size: int,
    row_length: int,
    attention_length: int | None = None,
    seed: int,
    rows_per_microbatch: int,
    num_steps: int,
    start_step: int = 0,
    local_rows: Sequence[int] | None = None,
) -> Iterator[StepBatch]:
    """Batches of steps `start_step` to `num_steps`, prepared in threads.

    Args:
      tokenized: the data set.
      batch_size: examples (pairs, triples) per step, over all hosts.
      row_length: tokens that a row computes.
      attention_length: tokens that a row attends over, where the shared prefix of an example's answers counts once for
        each. If it equals `row_length`, the default, there is no prefix sharing.
      seed: of the order of examples.
      rows_per_microbatch: R, over all hosts: rows per device times devices.
      num_steps: steps of the whole run, from `packing.num_steps`, or fewer.
      start_step: the first step to make, after a resume.
      local_rows: which rows of every microbatch this host makes, from 0; by default all.

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
                assemble(tokenized, part, row_length, attention_length)
                for part in _microbatch_rows(packed, rows_per_microbatch, local_rows)
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
    rows_per_microbatch: int,
    local_rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Microbatches that hold every example exactly once, in an order of their own: arguments as in `train_batches`."""
    attention_length = attention_length or row_length
    packed = plan_eval(**_sizes(tokenized, row_length, attention_length))
    parts = _microbatch_rows(packed, rows_per_microbatch, local_rows)
    batches = grain.MapDataset.source(parts).map(lambda part: assemble(tokenized, part, row_length, attention_length))
    return _made_ahead(batches, ahead=8)


def check_fits(tokenized: Tokenized, row_length: int, attention_length: int) -> None:
    """Raises UserError if a row cannot hold one of the examples. For use before slow work; plans raise it later."""
    computed = tokenized.computed_lengths if attention_length > row_length else tokenized.lengths
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
    lengths = np.stack([tokenized.computed_lengths, tokenized.lengths], axis=1)
    limits = np.array([row_length, attention_length])
    # The scarcer length first: rows that are full only by the other would be searched again and again.
    order = np.argsort(-lengths.sum(axis=0) / limits, kind="stable")
    return {"lengths": lengths[:, order], "row_length": limits[order].tolist(), "max_examples_per_row": limit}


def _made_ahead(batches: grain.MapDataset, ahead: int) -> Iterator:
    """Iterates with threads that prepare the next batches, and raises whatever went wrong in them."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=ahead)
    with contextlib.closing(iter(batches.to_iter_dataset(options))) as iterator:
        # Counted, because a StopIteration raised in a thread would otherwise look like the end of the data.
        for _ in range(len(batches)):
            yield next(iterator)


def _microbatch_rows(
    packed: list[PackedRow], rows_per_microbatch: int, local_rows: Sequence[int] | None
) -> list[list[PackedRow]]:
    """This host's rows of each microbatch; what the last one lacks is filled up with empty rows."""
    filled = packed + [[]] * (-len(packed) % rows_per_microbatch)
    local = range(rows_per_microbatch) if local_rows is None else local_rows
    return [[filled[start + row] for row in local] for start in range(0, len(filled), rows_per_microbatch)]


def assemble(
    tokenized: Tokenized, rows: list[PackedRow], row_length: int, attention_length: int | None = None
) -> dict[str, np.ndarray]:
    """The microbatch of the given rows of examples, without the reference's values; lengths as in `train_batches`."""
    each = tokenized.sequences_per_example
    answers = len(ANSWERS[tokenized.kind])
    soft = 0 if tokenized.soft_ids is None else tokenized.soft_ids.shape[1]
    chunks, weights = tokenized.chunk_ids is not None, tokenized.weights
    lengths = (row_length, attention_length or row_length)
    shape = BatchShape(len(rows), *lengths, answers=answers, weights=weights is not None, soft=soft, chunks=chunks)
    microbatch = shape.empty()
    for r, examples in enumerate(rows):
        row = {name: array[r] for name, array in microbatch.items()}
        sequences = [example * each + i for example in examples for i in range(each)]
        start = last_chunk = 0
        for segment, sequence in enumerate(sequences, 1):
            ids, mask = tokenized.sequence(sequence)
            span = slice(start, start + len(ids))
            row["tokens"][span] = ids
            row["positions"][span] = np.arange(len(ids))
            row["segment_ids"][span] = segment
            row["loss_mask"][span] = mask
            if shape.soft:
                targets = start + np.flatnonzero(mask)
                row["soft_ids"][targets], row["soft_weights"][targets] = tokenized.soft_targets(sequence)
            if chunks:
                targets = start + np.flatnonzero(mask)
                numbers, row["chunk_logprobs"][targets] = tokenized.chunks(sequence)
                row["chunk_ids"][targets] = np.where(numbers > 0, last_chunk + numbers, 0)
                last_chunk += int(numbers.max(initial=0))
            start += len(ids)
        if weights is not None:
            row["weights"][: len(examples)] = weights[examples]
        if answers:
            row["pair_ids"][: len(examples)] = examples
        if shape.shares_prefixes:
            _share_prefixes(tokenized, examples, row)
    return microbatch


def _share_prefixes(tokenized: Tokenized, examples: PackedRow, row: dict[str, np.ndarray]) -> None:
    """Fills a row's `first`, `second`, `third` if there are triples, and `source`."""
    each = tokenized.sequences_per_example
    token = slot = 0
    for example in examples:
        lengths = np.diff(tokenized.offsets[each * example : each * (example + 1) + 1]).tolist()
        shared = int(tokenized.shared_lengths[example])
        begins = slot + np.cumsum([0, *lengths])
        prefix = np.arange(token, token + shared)
        token += shared
        for name, begin, length in zip(("first", "second", "third"), begins, lengths, strict=False):
            row[name][prefix] = np.arange(begin, begin + shared)
            row["source"][begin : begin + shared] = prefix
            # What is a sequence's own comes after what was computed before.
            own = np.arange(token, token + length - shared)
            row["first"][own] = np.arange(begin + shared, begin + length)
            row["source"][begin + shared : begin + length] = own
            token += len(own)
        slot = begins[-1]
