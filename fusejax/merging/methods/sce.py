"""SCE, select, calculate, erase: FuseChat-2.0, Wan et al. 2024 (arXiv:2408.07990), section 3.3.

There are two readings of what the selection is for. The code behind FuseChat-7B uses it for the weights alone, mergekit
and, it seems, the paper merge nothing else than what is selected.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field

from fusejax.merging.methods import MergeChunk, MergeMethod, column
from fusejax.merging.selection import elected, largest, mean_of_elected
from fusejax.merging.stack import Chunk, Stack


class Sce(MergeMethod):
    """For each tensor: Select the elements in which the deltas differ most; Calculate weights, in the ratio of the mean
    squares of the selected deltas; Erase deltas whose sign is not that of the sum of all; and add the weighted mean of
    the others to the pivot."""

    name: Literal["sce"] = "sce"
    tau: float = Field(0.1, gt=0, le=1)
    """Share of a tensor's elements that is selected, of those in which deltas differ at all: those with the largest
    variance over the targets. At 1, all elements are."""
    select: Literal["weights", "deltas"] = "weights"
    """What the selection is for. `weights`: only the weights are computed from it, and all elements are merged, as for
    the published FuseChat-7B. `deltas`: elements that are not selected keep the pivot's value, as in mergekit."""

    def merge(self, stack: Stack) -> MergeChunk:
        selected = self._selection(stack)
        squares = stack.map(lambda chunk: np.square(selected(chunk)).sum(axis=1, dtype=np.float64))
        weights = column(_shares(sum(squares, np.zeros(len(stack.targets)))))

        def chunk_of(chunk: Chunk) -> np.ndarray:
            deltas = selected(chunk) if self.select == "deltas" else chunk.deltas
            return chunk.pivot + mean_of_elected(deltas, weights, elected(deltas))

        return chunk_of

    def _selection(self, stack: Stack) -> Callable[[Chunk], Float[np.ndarray, "K N"]]:
        """A function from a chunk to its deltas, 0 where an element is not selected."""
        if self.tau == 1:
            return lambda chunk: chunk.deltas
        kept = largest(stack, lambda chunk: variance(chunk.deltas), lambda nonzero: int(self.tau * nonzero))
        return lambda chunk: chunk.deltas * kept.mask(variance(chunk.deltas), chunk.start)


def variance(deltas: Float[np.ndarray, "K N"]) -> Float[np.ndarray, " N"]:
    """The population variance of each element over the targets; exactly 0 where all are equal."""
    differences = deltas - deltas[0]
    differences -= differences.mean(axis=0)
    return np.square(differences, out=differences).mean(axis=0)


def _shares(squares: Float[np.ndarray, " K"]) -> list[float]:
    """Weights in the ratio of squares, however small these are; equal ones if all are 0."""
    total = math.fsum(squares)
    return [square / total for square in squares.tolist()] if total > 0 else [1 / len(squares)] * len(squares)
