"""The next token of each row: the likeliest, or drawn at a number in [0, 1).

The number decides alone, as the inverse of the cumulative distribution: a row's answer does not depend on the others.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fusejax.common.sampling import Sampling


def choose(
    logits: Float[Array, "B V"],
    numbers: Float[Array, "B"],
    seen: Bool[Array, "B V"] | None,
    said: Int[Array, "B V"] | None,
    sampling: Sampling,
) -> Int[Array, "B"]:
    """The next token: penalties, temperature, top-k, nucleus, min-p, in the order of transformers and vLLM.

    Args:
      logits: of the next token.
      numbers: one in [0, 1) per row.
      seen: tokens of prompt and answer so far, which the repetition penalty makes less likely (Keskar et al. 2019,
        section 4.1); None where there is none.
      said: how often the answer holds each token so far, for the presence and frequency penalties (OpenAI's API); None
        where there are none.
      sampling: the parameters; texts that stop are of no concern here.
    """
    if seen is not None:
        penalty = sampling.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    if said is not None:
        logits = logits - sampling.frequency_penalty * said - sampling.presence_penalty * (said > 0)
    if sampling.temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    every = jax.nn.softmax(logits / sampling.temperature)
    probabilities, tokens = jax.lax.top_k(every, min(sampling.top_k or every.shape[-1], every.shape[-1]))
    if sampling.top_k is not None:
        probabilities /= probabilities.sum(-1, keepdims=True)
    cumulative = probabilities.cumsum(-1)
    # The nucleus is the smallest set of likeliest tokens whose sum reaches top_p.
    last = (cumulative - probabilities < sampling.top_p).sum(-1, keepdims=True) - 1
    if sampling.min_p is not None:
        # Nguyen et al. 2024, section 3: as a share of the likeliest token's probability.
        last = jnp.minimum(last, (probabilities >= sampling.min_p * probabilities[:, :1]).sum(-1, keepdims=True) - 1)
    target = numbers[:, None] * jnp.take_along_axis(cumulative, last, -1)
    chosen = jnp.minimum((cumulative <= target).sum(-1, keepdims=True), last)
    return jnp.take_along_axis(tokens, chosen, -1)[:, 0].astype(jnp.int32)
