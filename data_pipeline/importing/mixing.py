"""A mixture of several data sets at given ratios, as large as they allow."""

from collections.abc import Sequence


def sizes(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many records to take of each data set, so that these have the ratios of the weights.

    None is taken twice: the data set that is smallest for its weight is taken whole, and sets the size of the others.

    Args:
      available: how many records each has.
      weights: positive.

    >>> sizes([1000, 1000, 90], [3, 1, 1])
    [270, 90, 90]
    """
    scale = min(count / weight for count, weight in zip(available, weights, strict=True))
    return [round(scale * weight) for weight in weights]
