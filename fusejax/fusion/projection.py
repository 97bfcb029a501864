"""A source's likeliest tokens at a place, as tokens of the target."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Int32, Integer

from fusejax.fusion.sparse import add_up

Tail = Literal["renormalize", "keep"]
"""What becomes of the probability outside the ids that are kept: it is spread over these in proportion, as FuseLLM and
FuseChat do, or it is missing, so that a place has less than 1."""


def project(
    top_ids: Integer[np.ndarray, "p K"],
    top_logprobs: Float[np.ndarray, "p K"],
    next_source: Integer[np.ndarray, "p"],
    next_target: Integer[np.ndarray, "p"],
    table: Int32[np.ndarray, "V_s"],
    k: int,
    tail: Tail,
) -> tuple[Int32[np.ndarray, "p {k}"], Float32[np.ndarray, "p {k}"], Float32[np.ndarray, "p"]]:
    """Distributions over the target's tokens at places that `align` paired, of any number of answers.

    The source's real next token stands for the target's real next token, however the two cut the text that follows:
    " ut", of " util|ization" as the source cuts it, is " util" there, although the target has a token " ut" too. Every
    other token is what `table` says. Probabilities of tokens that become the same one are added.

    Args:
      top_ids: the source's likeliest tokens at each place. Ids that `table` does not reach are left out.
      top_logprobs: their log-probabilities under the source's full vocabulary, in nats.
      next_source: the token that follows in the source's tokens: at the last place of an answer the one that ends the
        turn. -1 where it is not known.
      next_target: the same in the target's tokens.
      table: of `VocabularyMap`.
      k: ids to keep at each place.

    Returns:
      Ids, their probabilities, falling, and the mass: the share of the source's probability that they hold, at most 1.
      With `tail="keep"` a place's probabilities add up to its mass, with `"renormalize"` to 1. Where nothing could be
      kept, mass and probabilities are 0. Places with fewer than `k` ids are filled up with id 0, probability 0.
    """
    probs = np.exp(top_logprobs, dtype=np.float32)
    # Log-probabilities of 16 bits may add up to a little more than 1.
    probs /= np.maximum(probs.sum(axis=1, keepdims=True), 1)
    known = top_ids < len(table)
    mapped = np.where(known, table[np.where(known, top_ids, 0)], -1)
    real = (top_ids == next_source[:, None]) & (next_source >= 0)[:, None]
    ids, probs = add_up(np.where(real, next_target[:, None], mapped), probs, k)
    mass = np.minimum(probs.sum(axis=1), 1)
    if tail == "renormalize":
        probs = probs / np.where(mass > 0, mass, 1)[:, None]
    return ids, probs, mass
