"""TIES: Yadav et al. 2023 (arXiv:2306.01708), algorithm 1, with a weight for each target as mergekit has it."""

from typing import Literal

import numpy as np
from pydantic import Field, PositiveFloat

from fusejax.merging.methods import MergeChunk, WeightedMethod, column
from fusejax.merging.selection import Measure, elected, largest, mean_of_elected
from fusejax.merging.stack import Chunk, Stack


class Ties(WeightedMethod):
    """Trims each delta to its largest elements, elects a sign for each element, and merges the deltas that have it."""

    name: Literal["ties"] = "ties"
    weight: PositiveFloat | list[PositiveFloat] = 0.2
    """Of every target, or a list with that of each, in their order."""
    density: float = Field(0.6, gt=0, le=1)
    """Share of each tensor's deltas that is kept: the largest in magnitude."""
    normalize: bool = True
    """Divides by the weights of the deltas that are merged: their weighted mean, where only ratios of weights matter.
    Without it, their weighted sum."""

    def merge(self, stack: Stack) -> MergeChunk:
        count = max(1, int(self.density * stack.size))
        weights = column(stack.weights)
        kept = [largest(stack, _magnitudes(target), lambda _: count) for target in range(len(stack.targets))]

        def chunk_of(chunk: Chunk) -> np.ndarray:
            magnitudes = np.abs(chunk.deltas)
            masks = [each.mask(row, chunk.start) for each, row in zip(kept, magnitudes, strict=True)]
            deltas = chunk.deltas * np.stack(masks)
            chosen = elected(weights * deltas)
            if self.normalize:
                return chunk.pivot + mean_of_elected(deltas, weights, chosen)
            return chunk.pivot + (weights * deltas * chosen).sum(axis=0)

        return chunk_of


def _magnitudes(target: int) -> Measure:
    return lambda chunk: np.abs(chunk.deltas[target])
