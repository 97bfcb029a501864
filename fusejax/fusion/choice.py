"""Which source to learn from, or how much from each, by how well each predicts the answer: MinCE and AvgCE.

After FuseLLM (Wan et al. 2024, arXiv:2401.10491), section 3.2, but for the unit. A cross-entropy per token favours
tokenizers that cut finely, so it is taken per byte of the answer, which is the same for all.
"""

import math

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Integer

from fusejax.fusion.sparse import add_up


def bits_per_byte(logprobs: Float[np.ndarray, "N"], num_bytes: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """Cross-entropy of answers, of at least one byte, from the sums of their tokens' log-probabilities in nats.

    Example:
      >>> realised = np.log([0.7, 0.6, 0.8, 0.9, 0.95, 0.75])  # " get some utilization."
      >>> bits_per_byte(realised.sum(keepdims=True), np.array([22])).round(6)
      array([0.100659])
    """
    return -logprobs.astype(np.float64) / (math.log(2) * num_bytes)


def min_ce(cross_entropies: Float[np.ndarray, "N S"]) -> Int[np.ndarray, "N"]:
    """The candidate of least cross-entropy for each answer, the first of equal ones. Infinity: no candidate."""
    return np.argmin(cross_entropies, axis=-1)


def avg_ce(nats: Float[np.ndarray, "N S"]) -> Float[np.ndarray, "N S"]:
    """Weights of the candidates for each answer: in proportion to 1 / perplexity, `softmax(-nats)`; they add up to 1.

    Args:
      nats: cross-entropies per token, of any one tokenizer for all candidates: bits per byte times log 2 times the
        answer's bytes, divided by its tokens under the target. Infinity: no candidate; at least one is finite.

    Example:
      >>> avg_ce(np.array([[1.2, 0.9]])).round(5)
      array([[0.42556, 0.57444]])
    """
    weights = np.exp(np.min(nats, axis=-1, keepdims=True) - nats)
    return weights / weights.sum(axis=-1, keepdims=True)


def average(
    ids: Integer[np.ndarray, "S p K"], probs: Float[np.ndarray, "S p K"], weights: Float[np.ndarray, "S p"], k: int
) -> tuple[Int32[np.ndarray, "p {k}"], Float32[np.ndarray, "p {k}"]]:
    """The weighted sum of S sparse distributions at each place, as the `k` likeliest ids; see `sparse.add_up`."""
    places = ids.shape[1]
    flat = ids.transpose(1, 0, 2).reshape(places, -1)
    return add_up(flat, (probs * weights[..., None]).transpose(1, 0, 2).reshape(places, -1), k)
