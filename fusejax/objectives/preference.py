"""Losses on pairs of answers, as functions of (log-probabilities, lengths, reference). No model, no batch layout.

Sources: DPO, Rafailov et al. 2023 (arXiv:2305.18290), equation 7; length normalisation as in FuseChat-3.0, after
Tulu 3 (arXiv:2411.15124), section 5.1; label smoothing is conservative DPO, Mitchell 2023.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Pairs(NamedTuple):
    """What a pair loss sees; all [P]. Log-probabilities are sums over a response's tokens, in nats."""

    chosen_logprobs: Float[Array, "P"]
    rejected_logprobs: Float[Array, "P"]
    reference_chosen_logprobs: Float[Array, "P"]
    reference_rejected_logprobs: Float[Array, "P"]
    chosen_lengths: Int[Array, "P"]
    rejected_lengths: Int[Array, "P"]
    """Tokens of each response, its end-of-turn token included, the header before it not."""


class PairLosses(NamedTuple):
    losses: Float[Array, "P"]
    chosen_rewards: Float[Array, "P"]
    rejected_rewards: Float[Array, "P"]
    """Implicit rewards: beta times the log ratio of policy and reference, per token if length-normalised."""


def dpo(pairs: Pairs, *, beta: float, length_normalized: bool = False, label_smoothing: float = 0.0) -> PairLosses:
    """`-(1 - e) log sigmoid(r_w - r_l) - e log sigmoid(r_l - r_w)` with `r = beta log(p / q)`.

    With `length_normalized`, each log ratio is divided by its own response's length, so sums become means.

    Example:
      >>> import numpy as np
      >>> zeros, ones = np.zeros(1), np.ones(1, int)
      >>> float(dpo(Pairs(zeros, zeros, zeros, zeros, ones, ones), beta=0.1).losses[0])  # log 2 where p equals q
      0.6931471824645996
    """
    chosen = pairs.chosen_logprobs - pairs.reference_chosen_logprobs
    rejected = pairs.rejected_logprobs - pairs.reference_rejected_logprobs
    if length_normalized:
        # An empty slot of a packed row has length 0; it is masked later and must not make a NaN on the way.
        chosen = chosen / jnp.maximum(pairs.chosen_lengths, 1)
        rejected = rejected / jnp.maximum(pairs.rejected_lengths, 1)
    margin = beta * (chosen - rejected)
    losses = -(1 - label_smoothing) * jax.nn.log_sigmoid(margin) - label_smoothing * jax.nn.log_sigmoid(-margin)
    return PairLosses(losses, beta * chosen, beta * rejected)


def segment_sums(
    values: Float[Array, "R L"], segment_ids: Int[Array, "R L"], segments: int
) -> Float[Array, "R {segments}"]:
    """Sums of each row's values by segment 1, 2, ..., `segments`; segment 0 is padding and left out.

    Example:
      >>> segment_sums(jnp.array([[1.0, 2.0, 4.0, 8.0]]), jnp.array([[1, 1, 2, 0]]), 3)
      Array([[3., 4., 0.]], dtype=float32)
    """

    def row(values, ids):
        return jax.ops.segment_sum(values, ids, num_segments=segments + 1)[1:]

    return jax.vmap(row)(values, segment_ids)
