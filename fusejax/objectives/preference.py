"""Inputs and outputs of the losses in `losses/`: values per pair of answers, without model or batch layout."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int


class Pairs(NamedTuple):
    """The inputs of a pair loss, all of one shape. Log-probabilities are sums over a response's tokens, in nats."""

    chosen_logprobs: Float[Array, "*P"]
    rejected_logprobs: Float[Array, "*P"]
    chosen_lengths: Int[Array, "*P"]
    rejected_lengths: Int[Array, "*P"]
    """Tokens of each response, its end-of-turn token included, the header before it not."""
    reference_chosen_logprobs: Float[Array, "*P"] | None = None
    reference_rejected_logprobs: Float[Array, "*P"] | None = None
    """Under the starting model; None for a loss that needs no reference."""

    def log_ratios(self) -> tuple[Float[Array, "*P"], Float[Array, "*P"]]:
        """`log(p / q)` of chosen and rejected responses, with policy p and reference q."""
        assert self.reference_chosen_logprobs is not None and self.reference_rejected_logprobs is not None
        return (
            self.chosen_logprobs - self.reference_chosen_logprobs,
            self.rejected_logprobs - self.reference_rejected_logprobs,
        )


class PairLosses(NamedTuple):
    losses: Float[Array, "*P"]
    chosen_rewards: Float[Array, "*P"]
    rejected_rewards: Float[Array, "*P"]
    """Implicit rewards: what the loss wants to be higher for the chosen response than for the rejected one."""


def segment_sums(
    values: Float[Array, "R L"] | Int[Array, "R L"], segment_ids: Int[Array, "R L"], segments: int
) -> Float[Array, "R {segments}"] | Int[Array, "R {segments}"]:
    """Sums of each row's values by segment 1, 2, ..., `segments`; segment 0 is padding and left out.

    Example:
      >>> import jax.numpy as jnp
      >>> segment_sums(jnp.array([[1.0, 2.0, 4.0, 8.0]]), jnp.array([[1, 1, 2, 0]]), 3)
      Array([[3., 4., 0.]], dtype=float32)
    """

    def row(values, ids):
        return jax.ops.segment_sum(values, ids, num_segments=segments + 1)[1:]

    return jax.vmap(row)(values, segment_ids)
