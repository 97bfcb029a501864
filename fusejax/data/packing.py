"""The packing plan: which examples make up a step, and how they lie in rows. Pure NumPy, no state.

Three rules make a run reproducible. The *stream* is an endless sequence of epochs, each a seeded permutation of the
data set. Every step takes exactly `batch_size` examples of the stream. What a step holds depends on the lengths, the
seed, the batch size and the row length alone: not on hosts, devices, earlier steps or the length of the run.

Packing each step's examples on their own leaves its last row half empty on average, 3 % of a step of 16 rows. So the
steps that lie wholly inside an epoch are planned a *window* at a time: the window's examples are packed together, and
whole rows are then dealt to its steps such that each gets `batch_size` examples. A step across the border of two
epochs is packed alone, so that every epoch holds each example once.

    plan = PackingPlan(np.array([3, 5, 2, 6]), batch_size=2, row_length=8, max_examples_per_row=4, seed=0)
    plan.rows(0)    # [[1, 0]]: examples 1 and 0 (5 and 3 tokens) share a row
    plan.rows(1)    # [[3, 2]]

With prefix sharing (`fusejax.models.decoder.prefix_sharing`) an example has two lengths: the tokens that are computed
and those that are attended over. A row has a limit for each.
"""

import bisect
import functools
import heapq
import math
import operator
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from fusejax.common.cli import UserError

PackedRow = list[int]
"""Indices of the examples that lie in one row, in order."""

WINDOW = 32
"""Steps planned together: enough for full rows, few enough that a resumed run plans its first step at once."""


def num_steps(num_examples: int, batch_size: int, epochs: int) -> int:
    """Steps of a run. The last step is filled up with examples of the next epoch, so it is as large as the others.

    Raises:
      UserError: fewer examples than one step takes.
    """
    if num_examples < batch_size:
        raise UserError(f"batch_size {batch_size} is more than the data set's {num_examples} examples")
    return math.ceil(num_examples * epochs / batch_size)


class PackingPlan:
    """The rows of every step.

    Args:
      lengths: tokens of each example (a pair counts as one: both of its sequences, in one row); or several lengths of
        each, [N, K], of which the first should be the one that fills rows first.
      batch_size: examples per step.
      row_length: tokens per row; or K limits.
      max_examples_per_row: the most examples that a row holds, however short they are.
      seed: of the order of examples.

    Raises:
      UserError: fewer examples than `batch_size`, or an example longer than a row.
    """

    def __init__(
        self,
        lengths: Int[np.ndarray, "N *K"],
        *,
        batch_size: int,
        row_length: int | Sequence[int],
        max_examples_per_row: int,
        seed: int,
    ):
        num_steps(len(lengths), batch_size, epochs=1)  # raises where there is no whole step
        _check_lengths(lengths, row_length)
        self._lengths = lengths.reshape(len(lengths), -1)
        self._batch_size = batch_size
        self._limits = np.atleast_1d(row_length)
        self._max_examples = max_examples_per_row
        self._seed = seed
        # Caches of pure functions: neighbouring steps share a window, and need at most two permutations.
        self._permutation = functools.lru_cache(maxsize=2)(self._permutation)  # type: ignore[method-assign]
        self._plan_window = functools.lru_cache(maxsize=2)(self._plan_window)  # type: ignore[method-assign]

    def rows(self, step: int) -> list[PackedRow]:
        """The rows of step `step` (from 0, without end): `batch_size` examples in all."""
        epoch = step * self._batch_size // len(self._lengths)
        first = math.ceil(epoch * len(self._lengths) / self._batch_size)
        last = (epoch + 1) * len(self._lengths) // self._batch_size
        if step >= last:  # reaches into the next epoch
            return self._pack(self._stream(step, step + 1))
        windows = math.ceil((last - first) / WINDOW)
        edges = [first + (last - first) * i // windows for i in range(windows + 1)]
        window = bisect.bisect_right(edges, step) - 1
        return self._plan_window(edges[window], edges[window + 1])[step - edges[window]]

    def _stream(self, start: int, stop: int) -> list[int]:
        """The examples of steps `start` to `stop`, in the order of the stream."""
        n = len(self._lengths)
        low, high = start * self._batch_size, stop * self._batch_size
        epochs = range(low // n, (high - 1) // n + 1)
        stream = np.concatenate([self._permutation(epoch) for epoch in epochs])
        return stream[low - epochs[0] * n : high - epochs[0] * n].tolist()

    def _permutation(self, epoch: int) -> Int[np.ndarray, "N"]:
        return _shuffled(len(self._lengths), self._seed, epoch)

    def _pack(self, examples: Iterable[int]) -> list[PackedRow]:
        return best_fit_decreasing(self._lengths, examples, self._limits.tolist(), self._max_examples)

    def _plan_window(self, start: int, stop: int) -> list[list[PackedRow]]:
        """The rows of steps `start` to `stop`, which lie in one epoch."""
        rows = self._pack(self._stream(start, stop))
        # Shuffled, or steps with equally many examples would be dealt rows in order of length.
        rows = [rows[i] for i in _shuffled(len(rows), self._seed, start, stop)]
        steps = _deal(rows, stop - start)
        self._settle(steps)
        together = [steps[i] for i in _shuffled(len(steps), self._seed, start, stop, 1)]
        # With one or two rows per step there is little to deal, and settling can cost more rows than it saved.
        alone = [self._pack(self._stream(step, step + 1)) for step in range(start, stop)]
        return min(together, alone, key=lambda steps: sum(map(len, steps)))

    def _settle(self, steps: list[list[PackedRow]]) -> None:
        """Exchanges rows between steps until each holds exactly `batch_size` examples."""
        excess = [sum(map(len, rows)) - self._batch_size for rows in steps]
        while any(excess):
            giver, taker = excess.index(max(excess)), excess.index(min(excess))
            moved = _exchange(steps[giver], steps[taker], limit=min(excess[giver], -excess[taker]))
            if not moved:
                self._move_shortest(steps[giver], steps[taker])
                moved = 1
            excess[giver] -= moved
            excess[taker] += moved

    def _move_shortest(self, giver: list[PackedRow], taker: list[PackedRow]) -> None:
        """Moves one example, into the fullest row that has room for it, or else a row of its own."""
        row = min(giver, key=lambda row: self._lengths[row, 0].min())
        example = min(row, key=lambda i: self._lengths[i, 0])
        row.remove(example)
        if not row:
            giver.remove(row)
        room = self._limits - self._lengths[example]
        fitting = [
            row for row in taker if len(row) < self._max_examples and (self._lengths[row].sum(axis=0) <= room).all()
        ]
        if fitting:
            max(fitting, key=lambda row: self._lengths[row, 0].sum()).append(example)
        else:
            taker.append([example])


def plan_eval(
    lengths: Int[np.ndarray, "N *K"], *, row_length: int | Sequence[int], max_examples_per_row: int
) -> list[PackedRow]:
    """Rows that hold every example exactly once, for evaluation and the reference pass. Arguments as in `PackingPlan`.

    Raises:
      UserError: an example longer than a row.
    """
    _check_lengths(lengths, row_length)
    return best_fit_decreasing(lengths, range(len(lengths)), row_length, max_examples_per_row)


def best_fit_decreasing(
    lengths: Int[np.ndarray, "N *K"],
    examples: Iterable[int],
    row_length: int | Sequence[int],
    max_examples_per_row: int,
) -> list[PackedRow]:
    """Packs examples, the longest first, each into the row where it leaves the least room (Johnson, 1974).

    With several lengths, the first decides and the others only have to fit. Examples of about equal length keep their
    order, so that each epoch packs different examples together.
    """
    lengths = lengths.reshape(len(lengths), -1)
    limit, *other_limits = np.atleast_1d(row_length).tolist()
    grain = max(1, limit // 64)
    rows: list[PackedRow] = []
    open_rows: list[tuple[int, int]] = []  # (room, index of the row), sorted
    other_rooms: list[list[int]] = []  # by row
    for example in sorted(examples, key=lambda i: -(lengths[i, 0] // grain)):
        length, *others = lengths[example].tolist()
        place = bisect.bisect_left(open_rows, (length, -1))
        while place < len(open_rows) and any(map(operator.gt, others, other_rooms[open_rows[place][1]])):
            place += 1
        if place == len(open_rows):
            room, row = limit, len(rows)
            rows.append([])
            other_rooms.append(other_limits)
        else:
            room, row = open_rows.pop(place)
        rows[row].append(example)
        other_rooms[row] = list(map(operator.sub, other_rooms[row], others))
        if len(rows[row]) < max_examples_per_row:
            bisect.insort(open_rows, (room - length, row))
    return rows


def _deal(rows: Sequence[PackedRow], num_steps: int) -> list[list[PackedRow]]:
    """Deals rows to steps, those of many examples first, each to the step with the fewest examples so far.

    As rows are dealt by falling number of examples, steps get about equally many rows too, and the rows of one example
    at the end even out the counts: little is left for `_settle`.
    """
    steps: list[list[PackedRow]] = [[] for _ in range(num_steps)]
    counts = [(0, step) for step in range(num_steps)]  # a heap
    for row in sorted(rows, key=len, reverse=True):
        count, step = counts[0]
        steps[step].append(row)
        heapq.heapreplace(counts, (count + len(row), step))
    return steps


def _exchange(giver: list[PackedRow], taker: list[PackedRow], limit: int) -> int:
    """Swaps a row for one with up to `limit` fewer examples, or gives one away; returns how many examples moved."""
    mine = {len(row): i for i, row in enumerate(giver)}
    theirs = {len(row): i for i, row in enumerate(taker)}
    for wanted in range(limit, 0, -1):
        for size, i in mine.items():
            if size - wanted in theirs:
                j = theirs[size - wanted]
                giver[i], taker[j] = taker[j], giver[i]
                return wanted
        if wanted in mine:
            taker.append(giver.pop(mine[wanted]))
            return wanted
    return 0


def _shuffled(n: int, *key: int) -> Int[np.ndarray, "n"]:
    """A permutation of `range(n)`, from raw bits: unlike `Generator.permutation`, these are the same in every NumPy."""
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(bits, kind="stable")


def _check_lengths(lengths: Int[np.ndarray, "N *K"], row_length: int | Sequence[int]) -> None:
    longest = lengths.reshape(len(lengths), -1).max(axis=0, initial=0)
    for limit, length in zip(np.atleast_1d(row_length).tolist(), longest.tolist(), strict=True):
        if length > limit:
            raise UserError(
                f"rows of {limit} tokens cannot hold the longest example, {length} tokens: "
                "raise packing.row_length or lower max_length"
            )
