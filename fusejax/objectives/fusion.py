"""Explicit fusion: the assistant's tokens, and beside each another model's distribution at its place.

FuseLLM (Wan et al. 2024, arXiv:2401.10491), equation 6: `lambda CLM + (1 - lambda) CE(P, softmax z)`, with the cross
entropy of the real tokens, CLM, and that of the fused distribution P. It is the cross entropy of one soft target,
`lambda onehot(token) + (1 - lambda) P`. A place without a distribution has `onehot(token)`: it is plain CLM.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def fusion_losses(
    target: Float[Array, "*B L"], soft: Float[Array, "*B L"], weights: Float[Array, "*B L K"], clm_weight: float
) -> Float[Array, "*B L"]:
    """Cross entropy of each token's soft target, in nats.

    Args:
      target: log-probability of the real token.
      soft: sum of the log-probabilities of the distribution's ids, times their probabilities.
      weights: these probabilities. They may add up to less than 1, the mass that was kept; none are no distribution.
      clm_weight: lambda.

    Example:
      >>> weights = jnp.array([[0.603749, 0.366192, 0.030059], [0.0, 0.0, 0.0]])
      >>> fusion_losses(jnp.array([-1.0659228, -1.0]), jnp.array([-1.4339269, 0.0]), weights, 0.9).round(4)
      Array([1.1027, 1.    ], dtype=float32)
    """
    has_one = jnp.any(weights > 0, axis=-1)
    return -(jnp.where(has_one, clm_weight, 1.0) * target + (1.0 - clm_weight) * soft)


def teacher_entropy(weights: Float[Array, "*B L K"]) -> Float[Array, "*B L"]:
    """What the cross entropy of a distribution is at least, in nats: less by it, that is the KL divergence.

    Of probabilities p that add up to m: `-sum_k p_k log p_k`; the divergence is then that of a measure of mass m.
    """
    return -jnp.sum(jnp.where(weights > 0, weights * jnp.log(jnp.where(weights > 0, weights, 1.0)), 0.0), axis=-1)
