"""Supervised fine-tuning: the negative log-likelihood of the assistant's tokens."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def sft_loss(logprobs: Float[Array, "*shape"], loss_mask: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Summed cross entropy of the target tokens, in nats.

    A sum, not a mean: the step adds up its microbatches and divides once, by the exact number of targets of the whole
    batch, so that packing does not change any token's weight.
    """
    return -jnp.sum(jnp.where(loss_mask, logprobs, 0.0))
