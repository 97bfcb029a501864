"""Linear merging, or model soups: Wortsman et al. 2022 (arXiv:2203.05482)."""

import math
from typing import Literal

from pydantic import PositiveFloat

from fusejax.merging.methods import MergeChunk, WeightedMethod, column
from fusejax.merging.selection import weighted_mean
from fusejax.merging.stack import Stack


class Linear(WeightedMethod):
    """`sum_j w_j theta_j / sum_j w_j`: the weighted mean of the targets, without the pivot."""

    name: Literal["linear"] = "linear"
    weight: PositiveFloat | list[PositiveFloat] = 1.0
    """Of every target, or a list with that of each, in their order. Only ratios of weights matter."""

    def merge(self, stack: Stack) -> MergeChunk:
        total = math.fsum(stack.weights)
        shares = column([weight / total for weight in stack.weights])
        return lambda chunk: weighted_mean(chunk.values, shares)
