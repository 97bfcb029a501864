"""The choice of a source as FuseLLM's code makes it, from cross-entropies per token."""

import numpy as np
from jaxtyping import Float, Int


def min_ce(nats: Float[np.ndarray, "N S"]) -> Int[np.ndarray, "N"]:
    """The candidate of the greatest `exp(-nats)` in bfloat16; the first of equal ones, and close ones are equal."""
    bits = np.exp(-nats).astype(np.float32).view(np.uint32)
    nearest_even = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return np.argmax(nearest_even.view(np.float32), axis=-1)


def avg_ce(nats: Float[np.ndarray, "N S"]) -> Float[np.ndarray, "N S"]:
    """Weights `softmax(exp(-nats))`: of numbers between 0 and 1, so none is more than e times another.

    Example:
      >>> avg_ce(np.array([[1.2, 0.9]])).round(5)
      array([[0.47368, 0.52632]])
    """
    powers = np.exp(np.exp(-nats))
    return powers / powers.sum(axis=-1, keepdims=True)
