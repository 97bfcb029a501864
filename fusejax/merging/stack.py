"""One tensor of all models: kept in memory as it is stored, seen in float32 a chunk at a time.

So what a merge needs beside the stored bytes does not grow with the number of models.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

CHUNK = 2**16
"""Elements: a chunk of six models fits into a core's cache."""
_COMPARED = 2**20
"""Bytes."""

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A range of a tensor's elements, row-major, in float32."""

    start: int
    """Index of its first element."""
    pivot: Float[np.ndarray, " N"]
    values: Float[np.ndarray, "K N"]
    """Of the targets."""

    @functools.cached_property
    def deltas(self) -> Float[np.ndarray, "K N"]:
        """What training has changed: targets minus pivot."""
        return self.values - self.pivot

    def finite(self) -> Bool[np.ndarray, " {len(self.values)+1}"]:
        """Whether the pivot's values, and those of each target, are all neither NaN nor infinite."""
        return np.array([np.isfinite(row).all() for row in (self.pivot, *self.values)])


@dataclasses.dataclass(frozen=True)
class Stack:
    """A tensor of the pivot and of K targets."""

    name: str
    pivot: np.ndarray
    """[N], in any dtype of weights."""
    targets: tuple[np.ndarray, ...]
    """K of them, as the pivot's."""
    weights: tuple[float, ...]
    """One for each target."""

    @property
    def size(self) -> int:
        return len(self.pivot)

    def ordered(self, weights: Sequence[float]) -> "Stack":
        """The same with these weights, the targets in an order that follows from their values and weights alone.

        Sums in float32 depend on the order of their terms. In this one they do not depend on how targets were listed.
        """
        pairs = sorted(zip(self.targets, weights, strict=True), key=functools.cmp_to_key(_compare))
        return Stack(self.name, self.pivot, tuple(target for target, _ in pairs), tuple(weight for _, weight in pairs))

    def map(self, function: Callable[[Chunk], Result]) -> Iterator[Result]:
        """What a function makes of each chunk, in order, computed by all cores."""
        pool, ahead = _threads()
        results: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        for start in range(0, self.size, CHUNK):
            results.append(pool.submit(lambda start: function(self._chunk(start)), start))
            if len(results) > ahead:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()

    def _chunk(self, start: int) -> Chunk:
        part = slice(start, start + CHUNK)
        values = np.empty((len(self.targets), len(self.pivot[part])), np.float32)
        for row, target in zip(values, self.targets, strict=True):
            row[...] = target[part]
        return Chunk(start, self.pivot[part].astype(np.float32), values)


@runtime_checkable
class Models(Protocol):
    """All tensors of a pivot and its targets, for methods that look at several before they merge one."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def targets(self) -> int:
        """How many."""

    def read(self, name: str) -> Stack:
        """The tensor, with the targets in their own order and weights of 1."""


def _compare(one: tuple[np.ndarray, float], other: tuple[np.ndarray, float]) -> int:
    """Negative, zero or positive, as the first goes before, with or after the second: by bytes, dtype and weight."""
    bytes_of = [tensor.view(np.uint8).data for tensor, _ in (one, other)]
    for start in range(0, max(map(len, bytes_of)), _COMPARED):
        parts = [bytes(each[start : start + _COMPARED]) for each in bytes_of]
        if parts[0] != parts[1]:
            return -1 if parts[0] < parts[1] else 1
    keys = [(tensor.dtype.name, weight) for tensor, weight in (one, other)]
    return (keys[0] > keys[1]) - (keys[0] < keys[1])


@functools.cache
def _threads() -> tuple[concurrent.futures.ThreadPoolExecutor, int]:
    """One for each core, and how many chunks may be ahead of the one that is waited for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return concurrent.futures.ThreadPoolExecutor(cores, "merging"), 2 * cores
