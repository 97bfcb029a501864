"""Task arithmetic: Ilharco et al. 2023 (arXiv:2212.04089)."""

from typing import Literal

from pydantic import PositiveFloat

from fusejax.merging.methods import MergeChunk, WeightedMethod, column
from fusejax.merging.stack import Stack


class TaskArithmetic(WeightedMethod):
    """`pivot + sum_j w_j delta_j`; `delta_j` is target minus pivot. The weights are not normalised."""

    name: Literal["task_arithmetic"] = "task_arithmetic"
    weight: PositiveFloat | list[PositiveFloat] = 0.3
    """Of every target, or a list with that of each, in their order."""

    def merge(self, stack: Stack) -> MergeChunk:
        weights = column(stack.weights)
        return lambda chunk: chunk.pivot + (weights * chunk.deltas).sum(axis=0)
