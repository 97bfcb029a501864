"""The k largest elements of a tensor, and signs that a majority has: what several methods are made of."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float


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


def largest(values: Float[np.ndarray, " N"], count: int) -> Largest:
    """The `count` largest elements.

    Example:
      >>> values = np.float32([1, 3, 2, 2, 2])
      >>> largest(values, 3).mask(values, 0)
      array([False,  True,  True,  True, False])
    """
    if count == 0:
        return Largest(np.inf, -1)
    threshold = float(np.partition(values, -count)[-count])
    missing = count - np.count_nonzero(values > threshold)
    return Largest(threshold, int(np.flatnonzero(values == threshold)[missing - 1]))


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
