"""DARE, drop and rescale: Yu et al. 2024 (arXiv:2311.03099)."""

from typing import Literal

import numpy as np
from jaxtyping import Bool
from pydantic import Field, NonNegativeInt, PositiveFloat

from fusejax.merging.methods import MergeChunk, WeightedMethod, column
from fusejax.merging.selection import elected
from fusejax.merging.stack import Chunk, Stack


class Dare(WeightedMethod):
    """`pivot + sum_j w_j delta_j m_j / density`; the masks `m_j` keep each element with probability `density`."""

    name: Literal["dare"] = "dare"
    weight: PositiveFloat | list[PositiveFloat] = 0.2
    """Of every target, or a list with that of each, in their order. The weights are not normalised."""
    density: float = Field(0.6, gt=0, le=1)
    """Share of each tensor's deltas that is kept, at random; these are divided by it."""
    combine: Literal["linear", "ties"] = "linear"
    """`linear`: all that are kept are added up (mergekit's `dare_linear`). `ties`: of each element, those whose sign is
    elected, as in TIES (`dare_ties`)."""
    seed: NonNegativeInt = 0
    """Of the masks, which depend on it and on the tensor, but not on the order of the targets."""

    def merge(self, stack: Stack) -> MergeChunk:
        weights = column(stack.weights)

        def chunk_of(chunk: Chunk) -> np.ndarray:
            kept = [
                keep(self.seed, stack.name, rank, self.density, chunk.start, len(chunk.pivot))
                for rank in range(len(stack.targets))
            ]
            deltas = weights * chunk.deltas * np.stack(kept) / np.float32(self.density)
            if self.combine == "ties":
                deltas *= elected(deltas)
            return chunk.pivot + deltas.sum(axis=0)

        return chunk_of


def keep(seed: int, tensor: str, rank: int, density: float, start: int, count: int) -> Bool[np.ndarray, " N"]:
    """Which elements of a tensor from `start` on are kept, each with probability `density`.

    Args:
      rank: of the target, in the order of `Stack.ordered`; each has a mask of its own.
    """
    # NumPy promises the same raw bits in all its versions, and the same numbers made of them in none.
    bits = np.random.PCG64([seed, rank, *tensor.encode()])
    bits.advance(start)
    return (bits.random_raw(count) >> np.uint64(11)) * 2.0**-53 < density
