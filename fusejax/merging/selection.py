"""The k largest elements of a tensor, and signs that a majority has: what several methods are made of."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt32

from fusejax.merging.stack import Chunk, Stack


@dataclasses.dataclass(frozen=True)
class Largest:
    """Which elements of a tensor are its k largest; of equal ones, the first are."""

    threshold: float
    last: int
    """Index of the last element equal to the threshold that still is among them."""

    def mask(self, values: Float[np.ndarray, " N"], start: int) -> Bool[np.ndarray, " N"]:
        """Which of the elements from index `start` on are among the largest."""
        mask = values > self.threshold
        if start <= self.last:
            equal = np.flatnonzero(values[: self.last + 1 - start] == self.threshold)
            mask[equal] = True
        return mask


Measure = Callable[[Chunk], Float32[np.ndarray, " N"]]
"""Of each element a number of at least 0."""


def largest(stack: Stack, measure: Measure, count: Callable[[int], int]) -> Largest:
    """The elements of the largest measures.

    An array of all measures, and a sorted copy, would take as much memory as two models more. Numbers of at least 0 are
    in the order of their bits, so three passes over the tensor will do: two find the threshold, first the upper half of
    its bits, then the lower; the third finds the last element equal to it.

    Args:
      stack: the tensor.
      measure: of each chunk's elements.
      count: number of elements whose measure is not 0 -> how many are wanted.
    """

    def bits(chunk: Chunk) -> UInt32[np.ndarray, " N"]:
        # Without the sign, which a zero can have.
        return np.abs(measure(chunk)).view(np.uint32)

    def first(chunk: Chunk) -> tuple[Int64[np.ndarray, " B"], int]:
        found = bits(chunk)
        return np.bincount(found >> 16, minlength=2**15), int(np.count_nonzero(found))

    uppers, nonzero = np.zeros(2**15, np.int64), 0
    for counts, others in stack.map(first):
        uppers += counts
        nonzero += others
    wanted = min(count(nonzero), stack.size)
    if wanted == 0:
        return Largest(np.inf, -1)
    upper, above = _at(uppers, wanted)

    def second(chunk: Chunk) -> Int64[np.ndarray, " B"]:
        found = bits(chunk)
        return np.bincount(found[found >> 16 == upper] & 0xFFFF, minlength=2**16)

    lower, above_too = _at(sum(stack.map(second), np.zeros(2**16, np.int64)), wanted - above)
    threshold = (upper << 16) | lower
    missing = wanted - above - above_too
    for start, equal in stack.map(lambda chunk: (chunk.start, np.flatnonzero(bits(chunk) == threshold))):
        if len(equal) >= missing:
            return Largest(float(np.uint32(threshold).view(np.float32)), start + int(equal[missing - 1]))
        missing -= len(equal)
    raise AssertionError("the threshold is one of the measures")


def _at(counts: Int64[np.ndarray, " B"], wanted: int) -> tuple[int, int]:
    """The bin of the `wanted`-th largest number, and how many numbers are in bins above it."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, wanted))
    return len(counts) - 1 - place, int(from_top[place] - counts[::-1][place])


def elected(deltas: Float[np.ndarray, "K N"]) -> Bool[np.ndarray, "K N"]:
    """Which deltas have the sign of the sum of all, where 0 counts as positive; a delta of 0 has no sign.

    Source: TIES, Yadav et al. 2023 (arXiv:2306.01708), section 4.

    Example:
      >>> elected(np.float32([[1, 1, 0], [-3, 1, 0]]))
      array([[False,  True, False],
             [ True,  True, False]])
    """
    return np.where(deltas.sum(axis=0) >= 0, deltas > 0, deltas < 0)


def mean_of_elected(
    deltas: Float[np.ndarray, "K N"], weights: Float[np.ndarray, "K 1"], chosen: Bool[np.ndarray, "K N"]
) -> Float[np.ndarray, " N"]:
    """The weighted mean of the chosen deltas of each element; 0 where none is chosen, or all of their weights are 0."""
    shares = weights * chosen
    total = shares.sum(axis=0)
    return np.divide((shares * deltas).sum(axis=0), total, out=np.zeros_like(total), where=total > 0)


def weighted_mean(values: Float[np.ndarray, "K N"], weights: Float[np.ndarray, "K _"]) -> Float[np.ndarray, " N"]:
    """The sum of weights times values, for weights that add up to 1; exact where all values are equal."""
    return values[0] + (weights[1:] * (values[1:] - values[0])).sum(axis=0)
