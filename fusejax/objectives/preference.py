"""Inputs and outputs of the losses in `losses/`: values per pair or triple, without model or batch layout."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int


class Pairs(NamedTuple):
    """The inputs of a loss, all of one shape. Log-probabilities are sums over a response's tokens, in nats.

    A triple is a pair of the target's own responses and a third one that a source gave and that is chosen, too.
    """

    chosen_logprobs: Float[Array, "*P"]
    rejected_logprobs: Float[Array, "*P"]
    chosen_lengths: Int[Array, "*P"]
    rejected_lengths: Int[Array, "*P"]
    """Tokens of each response, its end-of-turn token included, the header before it not."""
    reference_chosen_logprobs: Float[Array, "*P"] | None = None
    reference_rejected_logprobs: Float[Array, "*P"] | None = None
    """Under the starting model; None for a loss that needs no reference."""
    source_logprobs: Float[Array, "*P"] | None = None
    source_lengths: Int[Array, "*P"] | None = None
    reference_source_logprobs: Float[Array, "*P"] | None = None
    """Of the sources' responses; None where there are only pairs."""
    progress: Float[Array, "*P"] | None = None
    """Optimizer steps done, as a share of the run's; None for a loss that does not ask for it."""
    chosen_bounds: tuple[Float[Array, "*P"], Float[Array, "*P"]] | None = None
    rejected_bounds: tuple[Float[Array, "*P"], Float[Array, "*P"]] | None = None
    """The least and the greatest of a fused reference's values, means over tokens; None for a loss without sources."""

    def log_ratios(self, *, mean: bool = False) -> tuple[Float[Array, "*P"], Float[Array, "*P"]]:
        """`log(p / q)` of chosen and rejected responses, with policy p and reference q; `mean`: over its tokens."""
        assert self.reference_chosen_logprobs is not None and self.reference_rejected_logprobs is not None
        chosen = jnp.subtract(self.chosen_logprobs, self.reference_chosen_logprobs)
        rejected = jnp.subtract(self.rejected_logprobs, self.reference_rejected_logprobs)
        if not mean:
            return chosen, rejected
        return mean_logprobs(chosen, self.chosen_lengths), mean_logprobs(rejected, self.rejected_lengths)

    def source_log_ratio(self, *, mean: bool = False) -> Float[Array, "*P"]:
        """The same of the sources' responses."""
        assert self.source_logprobs is not None and self.source_lengths is not None
        assert self.reference_source_logprobs is not None
        ratio = jnp.subtract(self.source_logprobs, self.reference_source_logprobs)
        return mean_logprobs(ratio, self.source_lengths) if mean else ratio


def mean_logprobs(sums: Float[ArrayLike, "*P"], lengths: Int[ArrayLike, "*P"]) -> Float[Array, "*P"]:
    """Means over responses' tokens, of sums over them.

    An empty slot of a packed row has length 0; it is masked later and must not make a NaN on the way.
    """
    return jnp.divide(sums, jnp.maximum(lengths, 1))


def log_sigmoid_losses(margins: Float[Array, "*P"], label_smoothing: float = 0.0) -> Float[Array, "*P"]:
    """`-(1 - e) log sigmoid(m) - e log sigmoid(-m)`, the loss of most preference objectives."""
    smoothing = label_smoothing
    return -(1 - smoothing) * jax.nn.log_sigmoid(margins) - smoothing * jax.nn.log_sigmoid(-margins)


class PairLosses(NamedTuple):
    losses: Float[Array, "*P"]
    chosen_rewards: Float[Array, "*P"]
    rejected_rewards: Float[Array, "*P"]
    """Implicit rewards: what the loss wants to be higher for the chosen response than for the rejected one."""
    metrics: Mapping[str, Float[Array, "*P"]] = {}
    """What else is logged, by name."""


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
