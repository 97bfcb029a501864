"""VaRM, variation ratio merging: FuseChat-1.0, Wan et al. 2024 (arXiv:2402.16107), section 3.3.

As in the formula, each target is compared with the pivot. The published script compares the two targets with each
other, reads one file of variations for all of them, and returns the first target unless a pattern is excluded; it is
followed only in what the formula leaves open: how a group of matrices counts, and equal weights where a variation is 0.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from fusejax.merging.methods import MergeChunk, MergeMethod, column
from fusejax.merging.selection import weighted_mean
from fusejax.merging.stack import Chunk, Models, Stack


class Varm(MergeMethod):
    """`sum_j w_j theta_j`, with `w_j = v_j / sum_j v_j`: targets count by how far training has moved them."""

    name: Literal["varm"] = "varm"
    variation: Literal["square", "abs", "sum"] = "square"
    """`v`: the mean over a matrix of the squared deltas, of their absolute values, or the absolute value of their
    mean."""
    granularity: Literal["matrix", "module", "layer", "model", "element"] = "matrix"
    """What shares its weights. `matrix`: each tensor has its own. `module` and `layer`: those of attention or MLP of a
    layer, or of a whole layer, by the sum of the means; tensors outside of layers have their own. `model`: all, by the
    mean over all elements. These three read the models twice. `element`: each number has its own."""

    def weights(self, models: Models) -> Callable[[str], Sequence[float]]:
        if self.granularity in ("matrix", "element"):
            return super().weights(models)
        variations: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(models.targets))
        for name in models.names:
            stack = models.read(name)
            size = stack.size if self.granularity == "model" else 1
            variations[self._group(name)] += self._variation(stack) * size
        return lambda name: _shares(variations[self._group(name)])

    def merge(self, stack: Stack) -> MergeChunk:
        if self.granularity == "element":
            return self._merge_elements
        shares = column(_shares(self._variation(stack)) if self.granularity == "matrix" else stack.weights)
        return lambda chunk: weighted_mean(chunk.values, shares)

    def _merge_elements(self, chunk: Chunk) -> np.ndarray:
        variations = np.abs(self._of(chunk.deltas))
        total = variations.sum(axis=0)
        shares = np.divide(variations, total, out=np.full_like(variations, 1 / len(variations)), where=total > 0)
        return weighted_mean(chunk.values, shares)

    def _variation(self, stack: Stack) -> Float[np.ndarray, " K"]:
        """The mean over the tensor for each target, in float64; of `sum`, with its sign."""
        sums = stack.map(lambda chunk: self._of(chunk.deltas).sum(axis=1, dtype=np.float64))
        return sum(sums, np.zeros(len(stack.targets))) / stack.size

    def _of(self, deltas: Float[np.ndarray, "K N"]) -> Float[np.ndarray, "K N"]:
        return {"square": np.square, "abs": np.abs, "sum": np.positive}[self.variation](deltas)

    def _group(self, name: str) -> str:
        """What shares its weights with the tensor of this name.

        >>> [Varm(granularity=each)._group("model.layers.3.mlp.up_proj.weight") for each in ("module", "layer")]
        ['model.layers.3.mlp', 'model.layers.3']
        """
        if self.granularity == "model":
            return ""
        parts = name.split(".")
        depth = {"module": 4, "layer": 3}[self.granularity]
        return ".".join(parts[:depth]) if "layers" in parts else name


def _shares(variations: Float[np.ndarray, " K"]) -> list[float]:
    """Weights in the ratio of variations; equal ones if a variation is 0."""
    sizes = np.abs(variations).tolist()
    if min(sizes) == 0:
        return [1 / len(sizes)] * len(sizes)
    total = math.fsum(sizes)
    return [size / total for size in sizes]
